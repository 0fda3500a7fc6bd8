"""A server that adds the noise of a tree draws each part of it once, however often it is restarted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedscale.events import Answered, Assign, Event, Initialized, Roster
from fedscale.masked import Ground
from fedscale.plan import Plan
from fedscale.run import Run
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_server.logbook import Logbook
from fedscale_server.spool import Spool
from fedscale_server.store.store import Store
from tests.server.running import plan_text
from tests.server.samples import add_member, add_run, later

NODES = tuple(f"node-{at}" for at in range(9))
SCHEMA = Schema.of({"w": np.zeros(300, np.float32)})
FIRST = np.zeros(300, np.float32)
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "unit": "node", "mechanism": "ftrl", "tree_rounds": 4}
PLAN = plan_text(rounds=6, clients={"select": 2, "min_per_round": 2}, privacy=PRIVACY)


@pytest.fixture
def opening(store: Store, tmp_path: Path) -> Callable[[], Logbook]:
    """Opens the run's logbook as a server does that has just been started."""
    add_run(store, "r1", plan=PLAN, plan_hash=Plan.from_toml(PLAN).digest)
    return lambda: Logbook.open(store, Spool(tmp_path / "r1"), store.run("r1"))


def due(run: Run, book: Logbook | None = None) -> Event:
    """What happens next: nodes are there, or the first who was asked answers by a change of nothing."""
    asked = next((task for effect in run.begin() if isinstance(effect, Assign) for task in effect.tasks), None)
    if asked is None:
        return Roster(NODES)
    if run.round is None:
        digest = book.spool.store(FIRST) if book else digest_of(FIRST.tobytes())
        return Initialized(asked.node, SCHEMA.to_json(), digest, FIRST)
    words = run.round.terms.layout.encode(Update(FIRST, 1.0))
    digest = digest_of(words.tobytes())
    if book is not None:
        path, staged = book.spool.answer("train", run.number, asked.node, digest), book.spool.blobs.staging()
        staged.write_bytes(book.spool.vault.writing(path.name).update(words.tobytes()))
        book.spool.keep(staged, path)
    return Answered(asked.node, digest, words)


def straight(secret: bytes) -> Run:
    """The same run by a server that lives through it."""
    plan = Plan.from_toml(PLAN)
    run = Run(plan, plan.strategy.build(), ground=Ground(secret=secret))
    while run.status == "running":
        run.handle(due(run))
    return run


def test_noise_is_never_drawn_anew(opening: Callable[[], Logbook], store: Store) -> None:
    secrets: set[bytes] = set()
    book = opening()
    while book.run.status == "running":
        book = opening()
        assert book.apply(due(book.run, book), later(1)) is not None
        secrets |= {book.run.kept.secret} - {b""}
    assert (book.run.status, book.run.reason) == ("completed", "")
    (secret,) = secrets
    assert book.run.digest == straight(secret).digest
    assert straight(bytes(32)).digest != book.run.digest
    checkpoint = store.last_checkpoint("r1")
    assert checkpoint is not None
    assert checkpoint.facts["secret"] == secret.hex()


def test_what_was_promised_is_in_the_record_and_the_secret_is_not(opening: Callable[[], Logbook]) -> None:
    book = opening()
    while book.run.number < 3:
        book.apply(due(book.run, book), later(1))
    record = book.record(later(2))
    told = record.extra["privacy"]
    assert isinstance(told, dict)
    assert (told["epsilon"], told["delta"], told["unit"], told["mechanism"]) == (8.0, 1e-5, "node", "ftrl")
    assert "by the coordinator" in str(told["noise"])
    assert book.run.kept.secret.hex() not in record.to_json()
    assert len({node for row in record.rounds for node in row.answered}) == 2 * len(record.rounds)


def end(number: int) -> str:
    return f"{number}:{number:064x}"


def test_the_ends_of_ledgers_are_in_the_record_and_with_the_members(opening: Callable[[], Logbook], store: Store) -> None:
    for name in NODES:
        add_member(store, name)
    book, told = opening(), dict[str, str]()
    while book.run.number < 3:
        event = due(book.run, book)
        detail = {}
        if isinstance(event, Answered):
            told[event.node] = detail["ledger"] = end(len(told) + 5)
        book = opening()
        book.apply(event, later(1), detail=detail)
    assert len(told) == 4
    assert opening().record(later(2)).extra["ledgers"] == told
    assert {member.name: member.ledger for member in store.members() if member.ledger} == told


def test_a_site_that_joined_anew_is_not_held_to_the_ledger_it_had(opening: Callable[[], Logbook], store: Store) -> None:
    for name in NODES:
        add_member(store, name)
    book, told, first = opening(), dict[str, str](), dict[str, str]()
    while book.run.number < 3:
        event = due(book.run, book)
        detail = {}
        if isinstance(event, Answered):
            told[event.node] = detail["ledger"] = end(len(told) + 5)
        book.apply(event, later(1), detail=detail)
        if book.run.number == 2 and not first:
            first = dict(told)
            for name in first:
                add_member(store, name, again=True)
    assert first
    assert {member.name: member.ledger for member in store.members() if member.ledger} == {n: h for n, h in told.items() if n not in first}


def test_an_end_that_was_noted_only_moves_forward_until_the_node_joins_again(store: Store) -> None:
    for name in ("ada", "ben"):
        add_member(store, name)
    add_run(store, "first")
    for heads in ({"ada": end(9), "ben": end(3), "nobody": end(1)}, {"ada": end(7)}, {"ben": end(10)}):
        store.checkpoint("first", 1, 1, "train", {}, "m", {}, None, later(1), heads)
    assert [member.ledger for member in store.members()] == [end(9), end(10)]
    add_member(store, "ada", again=True)
    assert [member.ledger for member in store.members()] == [None, end(10)]
