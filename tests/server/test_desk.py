"""What a leader asks of a coordinator that goes away and comes back: everything once, nothing lost, and an end to its patience."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fedscale.errors import Cause, Conflict, Unreachable
from fedscale.letters import Letter
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale_server import desk as module
from fedscale_server.desk import Desk

CONTENT = b"a model."
AWAY = Unreachable("the coordinator cannot be reached")


def letter(number: int = 1) -> Letter:
    return Letter("ada", number, "{}", digest_of(CONTENT), len(CONTENT), 60.0, "train", 1)


def scripted(*steps: Any) -> Callable[..., Any]:
    """A call that does one thing after the other: raises what is an error and returns the rest."""
    left = list(steps)

    def call(*_: Any, **__: Any) -> Any:
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return call


def desk(patience: float = 60.0, **calls: Any) -> tuple[Desk, list[float]]:
    """A desk whose coordinator answers so, and the pauses that it makes."""
    pauses: list[float] = []
    control: Any = SimpleNamespace(**calls)
    return Desk(control, "run-1", patience, pauses.append), pauses


def stream(*parts: Any) -> Iterator[pb.Reply]:
    """The parts of replies, and what the stream breaks with."""
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


def test_a_content_is_stored_where_it_is_missing_and_the_letters_are_posted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[tuple[bytes, str]] = []
    monkeypatch.setattr(module, "put", lambda _, content, run: stored.append((content, run)))
    made, pauses = desk(post=scripted(AWAY, (digest_of(CONTENT),), AWAY, ()))
    made.post([letter()], {digest_of(CONTENT): CONTENT})
    assert (stored, len(pauses)) == ([(CONTENT, "run-1")], 2)


def test_many_letters_go_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    sent: list[list[int]] = []
    made, _ = desk(post=lambda _, letters: sent.append([each.number for each in letters]))
    made.post([letter(number) for number in range(1, 6)], {})
    assert sent == [[1, 2], [3, 4], [5]]


def test_a_cause_that_a_newer_coordinator_knows_is_a_failure_all_the_same() -> None:
    """Whoever waits for the reply must not wait for ever."""
    parts = (pb.Reply(members=["ada"]), pb.Reply(sequence=4, node="ada", number=1, cause="moonlight", what="it was night"))
    made, _ = desk(collect=lambda *_: stream(*parts))
    assert [arrival.failure and (arrival.failure.cause, arrival.failure.what) for arrival in made.arrivals()] == [(Cause.WORKER, "it was night")]


def test_a_refusal_is_no_reason_to_try_again() -> None:
    made, pauses = desk(post=scripted(Conflict("the leader does not ask what it has asked before")))
    with pytest.raises(Conflict):
        made.post([letter()], {})
    assert pauses == []


def test_replies_go_on_where_they_broke_off_and_half_a_one_is_forgotten() -> None:
    asked: list[int] = []
    streams = [
        stream(pb.Reply(members=["ada"]), pb.Reply(sequence=4, node="ada", number=1, data=b"on", more=True), AWAY),
        stream(
            pb.Reply(members=["ada"]),
            pb.Reply(sequence=4, node="ada", number=1, data=b"on", more=True),
            pb.Reply(sequence=4, node="ada", number=1, data=b"ce"),
            AWAY,
        ),
        stream(pb.Reply(members=["ada"]), pb.Reply(sequence=6, node="bob", number=2, cause="code", what="it raised", where="app.py:7", hint="look")),
    ]

    def collect(_: str, after: int) -> Iterator[pb.Reply]:
        asked.append(after)
        return streams.pop(0)

    made, pauses = desk(collect=collect)
    once, failed = made.arrivals()
    assert (asked, len(pauses)) == ([0, 0, 4], 2)
    assert (once.place, once.content, once.failure) == (("ada", 1), b"once", None)
    assert failed.failure is not None
    assert (failed.place, failed.failure.cause, str(failed.failure)) == (("bob", 2), Cause.CODE, "code: app.py:7: it raised; look")


def test_patience_has_an_end_and_begins_anew_with_each_answer() -> None:
    made, pauses = desk(patience=1.0, collect=lambda *_: stream(AWAY))
    with pytest.raises(Unreachable):
        list(made.arrivals())
    assert 1.0 <= sum(pauses) < 3.0
    answered = [stream(pb.Reply(members=["ada"]), AWAY) for _ in range(20)]
    made, pauses = desk(patience=1.0, collect=lambda *_: answered.pop(0) if answered else stream())
    assert (list(made.arrivals()), len(pauses)) == ([], 20)


def test_who_takes_part_and_how_it_ended_are_asked_until_there_is_an_answer() -> None:
    made, _ = desk(collect=scripted(stream(AWAY), stream(pb.Reply(members=["ada", "bob"]))), conclude=scripted(AWAY, "over"))
    assert (made.members(), made.conclude("", [])) == (("ada", "bob"), "over")
