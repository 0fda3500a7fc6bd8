"""A server that is restarted before every single line of a round under secure aggregation comes to the bits of a plain run."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import Cause, Failure
from fedscale.events import Answered, Effect, Event, Failed, Fired, Initialized, Roster, Spoke, Tell
from fedscale.plan import Plan
from fedscale.ring import Words
from fedscale.run import Run, model_digest
from fedscale.secagg.node import Node
from fedscale.secagg.simulate import population
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_server.logbook import Logbook
from fedscale_server.spool import Spool
from fedscale_server.store.store import Store
from tests.server.running import plan_text
from tests.server.samples import add_run, later

SCHEMA = Schema.of({"w": np.zeros(3, np.float32)})
NODES = ("ada", "ben", "cyd", "dee")
PLAN = plan_text(rounds=2, every=2, clients={"min_per_round": 3, "wait_for": 4}, secagg={})


def words_of(run: Run, at: int) -> Words:
    """What a node sends in the clear."""
    assert run.round is not None
    layout = run.round.terms.layout
    metrics = {m.name: np.full(m.width, float(at)) for m in layout.metrics}
    return layout.encode(Update(np.full(layout.size, at / 8, np.float32), at + 1.0, metrics))


class Sites:
    """The nodes of a run; they live on while the server dies."""

    def __init__(self) -> None:
        self.sites = population(NODES)
        self.keys = {member.name: member.key.hex() for member in self.sites["ada"].roster.members}
        self.nodes: dict[tuple[str, int], Node] = {}

    def answer(self, book: Logbook, tell: Tell) -> tuple[Event, str]:
        """What a node answers, as the driver journals it."""
        run = book.run
        assert run.round is not None
        assert run.round.masked is not None
        terms = run.round.masked.server.terms
        node = self.nodes.setdefault((tell.node, terms.round), Node(self.sites[tell.node], terms))
        reply = node.handle(tell.data)
        where = f"{tell.phase}/{tell.number}"
        if reply is not None:
            return Spoke(tell.node, tell.step, b64encode(reply.message).decode()), f"spoke/{where}/{tell.step}/{tell.node}"
        body = node.submit(words_of(run, NODES.index(tell.node))).body
        assert isinstance(body, np.ndarray)
        return self.kept(book, tell.node, body), f"{where}/{tell.node}"

    def kept(self, book: Logbook, node: str, words: Words) -> Answered:
        """A masked vector in the spool."""
        assert book.run.round is not None
        digest = digest_of(words.tobytes())
        path = book.spool.answer(str(book.run.round.terms.phase), book.run.round.terms.number, node, digest)
        staged = book.spool.blobs.staging()
        staged.write_bytes(book.spool.vault.writing(path.name).update(words.tobytes()))
        book.spool.keep(staged, path)
        return Answered(node, digest, book.spool.words(path))


@pytest.fixture
def opening(store: Store, tmp_path: Path) -> Callable[[], Logbook]:
    """Opens the run's logbook as a server does that has just been started."""
    add_run(store, "r1", plan=PLAN, plan_hash=Plan.from_toml(PLAN).digest)
    return lambda: Logbook.open(store, Spool(tmp_path / "r1"), store.run("r1"))


def begun(opening: Callable[[], Logbook]) -> Logbook:
    """The run with its first model."""
    book = opening()
    first = np.array([1.0, 2.0, 3.0], np.float32)
    book.apply(Roster(NODES), later(0))
    book.apply(Initialized(book.run.asked, SCHEMA.to_json(), book.spool.store(first), first), later(0))
    return book


def plain_digest() -> str:
    """The model that comes out without masks."""
    plan = Plan.from_toml(PLAN, overrides=("secagg.enabled=false",))
    run, first = Run(plan, plan.strategy.build()), np.array([1.0, 2.0, 3.0], np.float32)
    run.handle(Roster(NODES))
    run.handle(Initialized(run.asked, SCHEMA.to_json(), model_digest(first), first))
    while run.status == "running":
        run.handle(Roster(NODES))
        for at, node in enumerate(NODES):
            run.handle(Answered(node, node, words_of(run, at))) if run.round else None
    return run.digest


def test_a_restart_before_every_line_changes_nothing(opening: Callable[[], Logbook]) -> None:
    sites, book = Sites(), begun(opening)
    steps: list[str] = []
    while book.run.status == "running":
        book = opening()
        tells = [effect for effect in book.run.begin() if isinstance(effect, Tell)]
        event, unique = sites.answer(book, tells[-1]) if tells else (Roster(NODES, sites.keys), None)
        steps += [tells[-1].step] if tells else []
        assert book.apply(event, later(1), unique) is not None
        assert unique is None or book.apply(event, later(1), unique) is None, "a line that is there already changes nothing"
    assert (book.run.status, book.run.reason) == ("completed", "")
    assert [steps.count(step) for step in dict.fromkeys(steps)] == [12] * 6
    assert book.run.digest == plain_digest()
    record = opening().record(later(2))
    assert record.extra["secagg"] == {"mode": "protocol", "profile": "malicious"}
    assert all(row.answered == NODES for row in record.rounds)


def test_a_step_that_a_timer_closed_is_closed_after_a_restart_too(opening: Callable[[], Logbook]) -> None:
    sites, book = Sites(), begun(opening)
    book.apply(Roster(NODES, sites.keys), later(1))

    def everybody_but(silent: str, step: str) -> list[Effect]:
        tells = {effect.node: effect for effect in book.run.begin() if isinstance(effect, Tell) and effect.step == step}
        effects: list[Effect] = []
        for node in sorted(tells.keys() - {silent}):
            event, unique = sites.answer(book, tells[node])
            applied = book.apply(event, later(2), unique)
            effects = applied[0] if applied else []
        return effects

    for step in ("keys", "agreement"):
        everybody_but("", step)
    everybody_but("dee", "shares")
    book.apply(Fired("train/1/shares"), later(30))
    book = opening()
    assert book.run.round is not None
    assert book.run.round.failures["dee"].cause is Cause.TIMEOUT
    book.apply(Failed("nobody", Failure(Cause.CODE, "of no interest")), later(31))
    for step in ("vector", "consent", "opening"):
        everybody_but("", step)
    assert (book.run.number, book.run.history[0].answered) == (2, ("ada", "ben", "cyd"))


def test_a_masked_vector_that_was_damaged_costs_its_node_the_round(opening: Callable[[], Logbook]) -> None:
    sites, book = Sites(), begun(opening)
    book.apply(Roster(NODES, sites.keys), later(1))
    while book.run.round and book.run.round.masked and book.run.round.masked.step != "consent":
        tell = next(effect for effect in book.run.begin() if isinstance(effect, Tell))
        event, unique = sites.answer(book, tell)
        book.apply(event, later(1), unique)
    damaged = next(book.spool.answers.iterdir())
    damaged.write_bytes(bytes(damaged.stat().st_size))
    book = opening()
    assert book.run.round is not None
    assert book.run.round.masked is not None
    assert book.run.round.masked.step == "vector"
    tells = [effect for effect in book.run.begin() if isinstance(effect, Tell)]
    assert len(tells) == 1
    node = next(node for (name, _), node in sites.nodes.items() if name == tells[0].node)
    assert node.handle(tells[0].data) is None, "it gave its vector, and gives no second one"
    book.apply(Failed(tells[0].node, Failure(Cause.POLICY, "a vector was given before")), later(2))
    asked = {effect.node: effect for effect in book.run.begin() if isinstance(effect, Tell)}
    assert {effect.step for effect in asked.values()} == {"consent"}
    # The others were told of nobody's absence before: they consent to these survivors for the first and only time.
    while book.run.number == 1 and (due := [effect for effect in book.run.begin() if isinstance(effect, Tell)]):
        event, unique = sites.answer(book, due[0])
        book.apply(event, later(3), unique)
    assert tells[0].node not in book.run.history[0].answered
