"""Replies of a led run that the coordinator's disk has lost: an error of their site where nothing rests on them, otherwise the end of the run."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedscale.errors import Cause
from fedscale_server import spool
from tests.server.running import Receipt, Running, none_left, refusal
from tests.server.test_courier import REPLY, Leader, _courier, asked, letter, replied

SPOILS = [
    (lambda path: path.write_bytes(b"spoilt.."), "damaged"),
    (lambda path: path.unlink(), "missing"),
    (lambda path: path.write_bytes(b""), "missing"),
]
spoilt = pytest.mark.parametrize(("spoil", "what"), SPOILS, ids=["damaged", "gone", "empty"])


async def _replied_to(server: Running, bodies: list[bytes]) -> tuple[Leader, Any]:
    """A leader that has heard each of a site's replies before it asked on."""
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    for number, body in enumerate(bodies, 1):
        await leader.ask("ada", number)
        while (ask := (await asked(ada))[0]).task.number != number:
            pass  # an earlier one, again
        assert (await ada.submit(ask.key, body)).verdict == Receipt.ACCEPTED
        assert (await leader.next()).data == body
    return leader, ada


def _file(server: Running, leader: Leader, number: int) -> Path:
    """Where a reply of ada's lies."""
    return next((server.path / "runs" / leader.run / "answers").glob(f"message-{number}-*"))


@spoilt
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_reply_that_later_messages_rest_on_ends_the_run_when_it_is_lost(
    server: Running, spoil: Callable[[Path], Any], what: str, *, restarted: bool
) -> None:
    """No leader could ask the same again, so the run would wait for ever for one that does."""
    leader, _ = await _replied_to(server, [b"first...", b"second.."])
    spoil(_file(server, leader, 1))
    if restarted:
        await server.restart()
    error = await refusal(Leader(server, leader.run).next())
    told = "the coordinator's disk has lost the reply of 'ada' to message 1, on which later messages rest"
    assert told in str(error.details())
    _, record = await server.over(leader.run)
    assert (record["status"], record["reason"]) == ("failed", f"{told}: no leader can go on, begin the run anew")
    failure = record["rounds"][0]["failures"]["ada"]
    assert (failure["cause"], what in failure["what"], failure["where"]) == ("lost", True, "the coordinator's disk")
    assert [path for path in (server.path / "runs" / leader.run).rglob("*") if path.is_file()] == []


@spoilt
async def test_a_reply_on_which_nothing_rests_is_a_failure_for_every_leader(server: Running, spoil: Callable[[Path], Any], what: str) -> None:
    """The newest one: whoever leads further is told the same, even where the file should come back."""
    leader, ada = await _replied_to(server, [b"first...", b"second.."])
    file = _file(server, leader, 2)
    before = file.read_bytes()
    spoil(file)
    told = []
    for _ in range(2):
        again = Leader(server, leader.run)
        assert (await again.next()).data == b"first..."
        lost = await again.next()
        assert what in lost.what
        told.append((lost.number, lost.data, lost.cause, lost.where))
        file.write_bytes(before)
        await server.restart()
    assert told == [(2, b"", "lost", "the coordinator's disk")] * 2
    # It goes on from there, and comes to its end.
    ada.channel = ada.credentials.channel(server.ready.address)
    await ada.connect()
    assert await Leader(server, leader.run).post(letter("ada", 3)) == [letter("ada").content]
    again = Leader(server, leader.run)
    await again.ask("ada", 3)
    await replied(ada, b"third...")
    assert [(await again.next()).data for _ in range(3)] == [b"first...", b"", b"third..."]
    assert (await again.conclude()).status == "completed"


async def test_a_reply_that_cannot_be_opened_for_a_moment_is_not_lost(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptors left: the leader comes again, and hears it."""
    leader, _ = await _replied_to(server, [REPLY, b"second.."])
    courier = _courier(server, leader)
    with monkeypatch.context() as patched:
        patched.setattr(spool, "Sealed", none_left)
        assert (await refusal(Leader(server, leader.run).next())).code() is grpc.StatusCode.UNAVAILABLE
    assert courier.book.run.status == "running"
    again = Leader(server, leader.run)
    assert [(await again.next()).data for _ in range(2)] == [REPLY, b"second.."]


async def test_a_loss_that_cannot_be_written_down_is_told_to_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only one leader had heard of, the next would not believe."""
    leader, _ = await _replied_to(server, [b"first..."])
    _file(server, leader, 1).unlink()
    courier = _courier(server, leader)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(courier.book, "append", full)
        assert (await refusal(Leader(server, leader.run).next())).code() is grpc.StatusCode.UNAVAILABLE
    assert (await Leader(server, leader.run).next()).cause == Cause.LOST


async def test_a_run_that_was_stopped_meanwhile_ends_its_leader_and_loses_nothing(server: Running) -> None:
    """Its files are gone because it is over."""
    leader, _ = await _replied_to(server, [b"first..."])
    courier = _courier(server, leader)
    (reply,) = courier.book.run.after(0)
    await courier._finish("stopped", "enough")
    await courier.lose(reply, "missing")
    assert (courier.book.run.after(0), server.engine.store.journal(leader.run)[-1].kind) == ([reply], "note.finished"), "nothing comes behind the end"
    _, record = await server.over(leader.run)
    assert (record["status"], record["reason"], record["rounds"][0]["failures"]) == ("stopped", "enough", {})
