"""The durable half of a run, opened again after every single line, and with files that went missing; on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.errors import Cause, Failure, FedscaleError, NotFound, ProtocolError
from fedscale.events import Answered, Event, Failed, Initialized, Pause, Resume, Roster, Stop
from fedscale.plan import Plan
from fedscale.record import RunRecord, closed_rounds
from fedscale.run import model_digest
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_server.logbook import Entry, Logbook, bare_record
from fedscale_server.spool import Spool
from fedscale_server.store.store import Store
from tests.server.running import plan_text
from tests.server.samples import add_run, later

SCHEMA = Schema.of({"w": np.zeros(3, np.float32)})
FIRST = np.array([1.0, 2.0, 3.0], np.float32)
NODES = ("ada", "ben")
Step = Callable[[Logbook], Event]


def roster(_: Logbook) -> Event:
    return Roster(NODES)


def first(book: Logbook) -> Event:
    digest = book.spool.store(FIRST)
    return Initialized(book.run.asked, SCHEMA.to_json(), digest, FIRST)


def answer(node: str, delta: float) -> Step:
    """A sound answer, kept in the spool as the driver does."""

    def step(book: Logbook) -> Event:
        assert book.run.round is not None
        terms = book.run.round.terms
        metrics = {m.name: np.full(m.width, 2.0) for m in terms.layout.metrics}
        change = np.full(terms.layout.size, delta, np.float32)
        words = terms.layout.encode(Update(change, 4.0, metrics))
        digest = digest_of(words.tobytes())
        staged = book.spool.blobs.staging()
        path = book.spool.answer(str(terms.phase), terms.number, node, digest)
        staged.write_bytes(book.spool.vault.writing(path.name).update(words.tobytes()))
        book.spool.keep(staged, path)
        return Answered(node, digest, book.spool.words(path))

    return step


def failed(node: str) -> Step:
    return lambda _: Failed(node, Failure(Cause.DATA, "no such column"))


SCRIPT: list[Step] = [
    roster, first,
    roster, answer("ada", 0.5), answer("ben", 0.25),
    roster, answer("ben", 0.0), answer("ada", 0.0),
    roster, answer("ben", -0.5), failed("ada"),
    roster, answer("ada", 0.0), answer("ben", 0.0),
]  # fmt: skip
PLAN = plan_text(rounds=2, every=1, clients={"min_per_round": 1, "wait_for": 2}, strategy={"name": "fedadam"})


@pytest.fixture
def opening(store: Store, tmp_path: Path) -> Callable[[], Logbook]:
    """Opens the run's logbook as a server does that has just been started."""
    plan = Plan.from_toml(PLAN)
    add_run(store, "r1", plan=PLAN, plan_hash=plan.digest)
    return lambda: Logbook.open(store, Spool(tmp_path / "run"), store.run("r1"))


def unique(book: Logbook, event: Event) -> str | None:
    return f"{book.run.phase}/{book.run.number}/{event.node}" if isinstance(event, Answered | Initialized) else None


def play(book: Logbook, steps: list[Step], start: int = 0) -> list[Entry]:
    told: list[Entry] = []
    for number, step in enumerate(steps, start + 1):
        event = step(book)
        detail = {"bytes": 10} if isinstance(event, Answered) else {}
        applied = book.apply(event, later(number), unique(book, event), detail)
        assert applied is not None
        told += applied[1]
    return told


def record_of(book: Logbook) -> RunRecord:
    return book.record(later(99))


def test_a_run_leaves_a_whole_record(opening: Callable[[], Logbook], store: Store) -> None:
    book = opening()
    told = play(book, SCRIPT)
    assert [e.seq for e in told] == list(range(1, len(told) + 1))
    assert [Entry.of(row) for row in store.journal("r1")] == [replace(e, detail=json.loads(json.dumps(e.detail))) for e in told]
    assert (told[-1].kind, told[-1].detail) == ("finished", {"status": "completed", "reason": ""})
    record = record_of(book)
    assert [(r.phase, r.number, r.answered, r.seconds, r.bytes_up) for r in record.rounds] == [
        ("train", 1, ("ada", "ben"), 2.0, 20),
        ("evaluate", 1, ("ada", "ben"), 2.0, 20),
        ("train", 2, ("ben",), 2.0, 10),
        ("evaluate", 2, ("ada", "ben"), 2.0, 20),
    ]
    assert record.rounds[2].failures == {"ada": Failure(Cause.DATA, "no such column")}
    assert (record.status, record.nodes, record.bytes_up, record.seconds) == ("completed", NODES, 70, 14.0)
    row = store.run("r1")
    assert (row.status, row.finished) == ("completed", later(14))
    assert row.record is not None
    assert row.record["model_digest"] == book.run.digest
    assert list(book.spool.answers.iterdir()) == []


def test_a_round_that_failed_is_on_record_with_every_site_also_after_a_crash(opening: Callable[[], Logbook], store: Store) -> None:
    book = opening()
    play(book, [roster, first, roster, failed("ada")])
    book = opening()
    play(book, [failed("ben")], start=4)
    record = record_of(book)
    assert (record.status, closed_rounds(record)) == ("failed", 0)
    (row,) = record.rounds
    assert (row.phase, row.number, row.answered, row.metrics, row.seconds) == ("train", 1, (), {}, 2.0)
    assert row.failures == dict.fromkeys(NODES, Failure(Cause.DATA, "no such column"))
    assert set(row.lanes) == set(NODES)
    kept = store.run("r1").record
    assert kept is not None
    assert RunRecord.from_json(json.dumps(kept)).rounds == (row,)


def test_a_logbook_opened_after_any_line_goes_on_to_the_same_end(opening: Callable[[], Logbook], store: Store) -> None:
    whole = opening()
    play(whole, SCRIPT)
    expected = record_of(whole)
    for at in range(len(SCRIPT)):
        add_run(store, f"cut-{at}", plan=PLAN, plan_hash="aa")

        def again(run: str = f"cut-{at}") -> Logbook:
            return Logbook.open(store, Spool(whole.spool.folder.parent / run), store.run(run))

        play(again(), SCRIPT[:at])
        book = again()
        play(book, SCRIPT[at:], at)
        record = record_of(book)
        assert record.model_digest == expected.model_digest
        assert record.rounds == expected.rounds
        assert record.nodes == expected.nodes
        kinds = [(e.kind, e.payload["phase"], e.payload["number"]) for e in store.journal(f"cut-{at}")]
        assert kinds == [(e.kind, e.payload["phase"], e.payload["number"]) for e in store.journal("r1")]


def crash(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """Let a call fail before or after it has done its work, which is what a crash looks like from outside."""
    whole = getattr(owner, name)

    def broken(*given: Any, **named: Any) -> None:
        if after:
            whole(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["checkpoint", "finish"])
def test_what_a_crash_left_out_is_written_when_the_run_is_opened(
    opening: Callable[[], Logbook], store: Store, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    book = opening()
    play(book, SCRIPT[:-1])
    with monkeypatch.context() as broken:
        crash(broken, store, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            play(book, SCRIPT[-1:], len(SCRIPT) - 1)
    if not (name == "finish" and after):
        assert [row.id for row in store.unfinished()] == ["r1"]
        opening()
    row = store.run("r1")
    assert (row.status, row.finished) == ("completed", later(14))
    assert row.record is not None
    assert [(r["phase"], r["number"]) for r in row.record["rounds"]] == [("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2)]
    assert [e.kind for e in store.journal("r1")][-3:] == ["answered", "note.closed", "note.finished"]


def test_answers_go_once_their_sum_is_stored(opening: Callable[[], Logbook]) -> None:
    book = opening()
    play(book, SCRIPT[:4])
    assert len(list(book.spool.answers.iterdir())) == 1
    play(book, SCRIPT[4:5], 4)
    assert list(book.spool.answers.iterdir()) == []


def test_a_line_is_journaled_once(opening: Callable[[], Logbook]) -> None:
    book = opening()
    play(book, SCRIPT[:3])
    event = answer("ada", 0.5)(book)
    assert book.apply(event, later(4), "train/1/ada") is not None
    assert book.apply(event, later(5), "train/1/ada") is None
    assert book.run.round is not None
    assert book.run.round.partial.count == 1


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_node_whose_answer_was_damaged_is_asked_again(opening: Callable[[], Logbook], damage: str) -> None:
    book = opening()
    play(book, SCRIPT[:4])
    [path] = book.spool.answers.iterdir()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-4] if damage == "cut" else data)
    again = opening()
    assert again.run.round is not None
    assert again.run.round.answered() == ()
    play(again, SCRIPT[3:], 3)
    assert record_of(again).status == "completed"
    assert record_of(again).rounds[0].answered == NODES


def test_a_node_whose_first_model_was_damaged_is_asked_again(opening: Callable[[], Logbook], monkeypatch: pytest.MonkeyPatch) -> None:
    book = opening()
    play(book, SCRIPT[:1])
    with monkeypatch.context() as broken:
        crash(broken, book.store, "checkpoint", after=False)
        with pytest.raises(KeyboardInterrupt):
            play(book, SCRIPT[1:2], 1)
    book.spool.blobs.delete(model_digest(FIRST))
    again = opening()
    assert again.run.asked == book.run.asked or again.run.asked in NODES
    play(again, SCRIPT[1:], 1)
    assert record_of(again).status == "completed"


def test_a_run_whose_model_is_gone_cannot_be_opened(opening: Callable[[], Logbook]) -> None:
    book = opening()
    play(book, SCRIPT[:6])
    path = book.spool.blobs.path(book.run.digest)
    path.write_bytes(b"\0" * 12)
    with pytest.raises(ProtocolError, match="a vector in the spool is damaged"):
        opening()
    path.unlink()
    with pytest.raises(NotFound, match="no such blob"):
        opening()


def test_a_journal_of_another_release_is_refused(opening: Callable[[], Logbook], store: Store) -> None:
    opening()
    store.append("r1", "teleported", {"event": {}, "phase": "init", "number": 0, "detail": {}}, later(1))
    with pytest.raises(FedscaleError, match="the journal holds an event 'teleported' that cannot be read"):
        opening()


def test_what_was_half_uploaded_is_thrown_away(opening: Callable[[], Logbook], tmp_path: Path) -> None:
    opening()
    orphan = tmp_path / "run" / "blobs" / "staging" / "0123-of-a-process-that-died"
    orphan.write_bytes(b"x")
    opening()
    assert not orphan.exists()


def test_pause_resume_and_stop_are_remembered(opening: Callable[[], Logbook], store: Store) -> None:
    book = opening()
    book.apply(Pause(), later(1))
    assert opening().run.paused
    opening().apply(Resume(), later(2))
    assert not opening().run.paused
    opening().apply(Stop("enough"), later(3))
    row = store.run("r1")
    assert (row.status, row.reason, row.finished) == ("stopped", "enough", later(3))
    assert [e.kind for e in store.journal("r1")] == ["pause", "resume", "stop", "note.finished"]


def test_the_record_of_a_long_run_costs_no_query(opening: Callable[[], Logbook], monkeypatch: pytest.MonkeyPatch) -> None:
    book = opening()
    play(book, SCRIPT[:6])

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the record was read from the database")

    for name in ("journal", "outcomes", "last_checkpoint", "run"):
        monkeypatch.setattr(book.store, name, asked)
    assert [r.phase for r in record_of(book).rounds] == ["train"]
    assert record_of(book).seconds == 99.0


def test_of_a_run_that_cannot_be_read_there_is_a_bare_record(store: Store) -> None:
    record = bare_record(add_run(store, "r9"), "failed", "damaged", later(5))
    assert RunRecord.from_json(record.to_json()) == record
    assert (record.run, record.status, record.reason, record.seconds, record.rounds) == ("r9", "failed", "damaged", 5.0, ())
