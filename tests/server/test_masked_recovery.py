"""A server that is restarted before every single line of a round under secure aggregation comes to the bits of a plain run."""

from __future__ import annotations

import asyncio
import itertools
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.clock import SystemClock
from fedscale.errors import Cause, Failure, Unreachable
from fedscale.events import Answered, Effect, Event, Failed, Fired, Initialized, Roster, Spoke, Tell
from fedscale.learner import Phase
from fedscale.masked import Ground
from fedscale.plan import Plan
from fedscale.ring import Words
from fedscale.run import Run, model_digest
from fedscale.secagg.node import Node
from fedscale.secagg.simulate import population
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale.wire.convert import Parts
from fedscale_server.driver import Driver
from fedscale_server.logbook import Logbook
from fedscale_server.sessions import Session, Sessions
from fedscale_server.spool import Spool
from fedscale_server.store.depot import FolderDepot, Shelf
from fedscale_server.store.store import Store
from fedscale_server.tally import Tally
from fedscale_server.work import World
from tests.server.running import plan_text
from tests.server.samples import add_run, later

SCHEMA = Schema.of({"w": np.zeros(3, np.float32)})
NODES = ("ada", "ben", "cyd", "dee")
COHORT = {"min_per_round": 3, "wait_for": 4}
PLAN = plan_text(rounds=2, every=2, clients=COHORT, secagg={})
HIDDEN = {"epsilon": 50.0, "delta": 1e-5, "unit": "node", "clip_quantile": 0.5}
MOVING = plan_text(rounds=2, every=2, clients=COHORT, secagg={}, privacy=HIDDEN)


def words_of(run: Run, at: int) -> Words:
    """What a node sends in the clear."""
    assert run.round is not None
    layout = run.round.terms.layout
    metrics = {m.name: np.full(m.width, float(at)) for m in layout.metrics}
    return layout.encode(Update(np.full(layout.size, at / 8, np.float32), min(at + 1.0, layout.weight_cap), metrics))


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
def opening(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Callable[[], Logbook]:
    """Opens the run's logbook as a server does that has just been started."""
    text = getattr(request, "param", PLAN)
    add_run(store, "r1", plan=text, plan_hash=Plan.from_toml(text).digest)
    return lambda: Logbook.open(store, Spool(tmp_path / "r1"), store.run("r1"))


def begun(opening: Callable[[], Logbook]) -> Logbook:
    """The run with its first model."""
    book = opening()
    first = np.array([1.0, 2.0, 3.0], np.float32)
    book.apply(Roster(NODES), later(0))
    book.apply(Initialized(book.run.asked, SCHEMA.to_json(), book.spool.store(first), first), later(0))
    return book


def plain_digest(plan: Plan) -> str:
    """The model that comes out without masks."""
    run, first = Run(plan, plan.strategy.build(), ground=Ground(protocol=False)), np.array([1.0, 2.0, 3.0], np.float32)
    run.handle(Roster(NODES))
    run.handle(Initialized(run.asked, SCHEMA.to_json(), model_digest(first), first))
    while run.status == "running":
        run.handle(Roster(NODES))
        for at, node in enumerate(NODES):
            run.handle(Answered(node, node, words_of(run, at))) if run.round else None
    return run.digest


def played(opening: Callable[[], Logbook]) -> Logbook:
    """The run to its end, each line of it taken by a server that was just started."""
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
    assert book.run.digest == plain_digest(book.plan)
    return book


@pytest.mark.parametrize("opening", [PLAN, MOVING], indirect=True)
def test_a_restart_before_every_line_changes_nothing(opening: Callable[[], Logbook]) -> None:
    played(opening)
    record = opening().record(later(2))
    assert record.extra["secagg"] == {"mode": "protocol", "profile": "malicious"}
    assert all(row.answered == NODES for row in record.rounds)


def test_another_server_before_every_line_changes_nothing(store: Store, tmp_path: Path) -> None:
    """Three servers take turns, line by line, each with what it has at home of its last turn and with what all of them share."""
    add_run(store, "r1", plan=PLAN, plan_hash=Plan.from_toml(PLAN).digest)
    depot, epochs = FolderDepot(tmp_path / "shared"), itertools.count(1)
    depot.begin()

    def opening() -> Logbook:
        epoch = next(epochs)
        models, answers = (Shelf(depot, collection, epoch) for collection in ("runs/r1", "answers/r1"))
        return Logbook.open(store, Spool(tmp_path / f"home-{epoch % 3}", shelf=models, common=answers), store.run("r1"))

    played(opening)
    assert depot.keys("answers") == []


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


class Circle:
    """A driver whose nodes are connected and say nothing until a test lets them."""

    def __init__(self, book: Logbook, sites: Sites) -> None:
        self.sites, self.sessions = sites, Sessions()
        for node in NODES:
            self.sessions.add(Session(node, "ward", frozenset({"default"}), "0"))
        self.driver = Driver(book, World(self.sessions, SystemClock(), lambda _: None, Tally()))

    def told(self) -> list[Tell]:
        """What all nodes were told since the last time, put together again."""
        tells = []
        for node in NODES:
            parts, outbox = Parts(), self.sessions.every()[NODES.index(node)].outbox
            while not outbox.empty():
                message = outbox.get_nowait()
                if message is not None and message.HasField("told") and (data := parts.whole(message.told)) is not None:
                    tells.append(Tell(node, message.told.key.number, Phase(message.told.key.phase), message.told.step, data))
        return tells

    async def answer_all(self, tells: list[Tell]) -> list[BaseException | None]:
        """All answers at the same time."""
        events = [self.sites.answer(self.driver.book, tell)[0] for tell in tells]
        key = ("r1", Phase(tells[0].phase), tells[0].number)
        spoken = [self.driver.spoken(key, event.node, event.step, b64decode(event.data)) for event in events if isinstance(event, Spoke)]
        return await asyncio.gather(*spoken, return_exceptions=True)


async def test_messages_that_come_together_are_one_transaction(opening: Callable[[], Logbook], monkeypatch: pytest.MonkeyPatch) -> None:
    sites, book, written = Sites(), begun(opening), list[list[str]]()
    circle, real = Circle(book, sites), Store.append_all

    def counted(self: Store, run: str, lines: Any, at: Any) -> Any:
        written.append([kind for kind, _, _ in lines])
        return real(self, run, lines, at)

    monkeypatch.setattr(Store, "append_all", counted)
    await circle.driver.handle(Roster(NODES, sites.keys))
    written.clear()
    first = circle.told()
    assert await circle.answer_all(first) == [None] * len(NODES)
    for step in ("agreement", "shares"):
        tells = circle.told()
        assert {tell.step for tell in tells} == {step}
        assert await circle.answer_all(tells) == [None] * len(NODES)
    assert written == [["spoke"] * len(NODES)] * 3
    assert await circle.answer_all(first) == [None] * len(NODES)
    assert len(written) == 3, "what was said before is not due"
    circle.driver.halt()
    again = opening()
    assert again.run.round is not None
    assert again.run.round.masked is not None
    assert again.run.round.masked.step == "vector"
    assert again.run.round.masked.outbox == {tell.node: tell.data for tell in circle.told()}


async def test_messages_that_cannot_be_stored_are_not_answered(opening: Callable[[], Logbook], monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Sites()
    circle = Circle(begun(opening), sites)
    await circle.driver.handle(Roster(NODES, sites.keys))
    tells = circle.told()

    def gone(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "append_all", gone)
    refusals = await circle.answer_all(tells)
    assert [type(refusal) for refusal in refusals] == [Unreachable] * len(NODES)
    assert circle.told() == []
    monkeypatch.undo()
    again = opening()
    assert again.run.round is not None
    assert again.run.round.masked is not None
    assert again.run.round.masked.waiting == set(NODES)


def test_what_was_said_in_a_closed_round_is_forgotten(opening: Callable[[], Logbook], store: Store) -> None:
    sites, book = Sites(), begun(opening)
    said = {1: 0, 2: 0}
    while book.run.status == "running":
        number, tells = book.run.number, [effect for effect in book.run.begin() if isinstance(effect, Tell)]
        event, unique = sites.answer(book, tells[0]) if tells else (Roster(NODES, sites.keys), None)
        assert book.apply(event, later(1), unique) is not None
        said[number] += isinstance(event, Spoke)
    assert said == {1: 20, 2: 40}, "training in both rounds, evaluation in the second"
    lines = store.journal("r1")
    left = [line.payload for line in lines if line.kind == "spoke"]
    assert len(left) == sum(said.values()), "whoever watches late sees them all"
    assert {payload["event"]["data"] for payload in left} == {""}
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert opening().run.digest == book.run.digest
