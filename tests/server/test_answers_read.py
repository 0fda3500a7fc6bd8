"""An answer is read while the run goes on: nobody waits for it, and what became of the run meanwhile decides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from fedscale.ring import Extremes, Pieces
from fedscale.update import Layout
from tests.server.running import Receipt, Running, until

LONG = 60.0


class Reader:
    """Says when the first answer is read, and holds it until ``go`` is set, when it has been read if ``through``."""

    def __init__(self) -> None:
        self.through = False
        self.reading, self.go = threading.Event(), threading.Event()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    held, whole = Reader(), Layout.check

    def check(layout: Layout, words: Pieces, seen: Extremes | None = None) -> None:
        first = not held.reading.is_set()
        if held.through:
            whole(layout, words, seen)
        held.reading.set()
        assert not first or held.go.wait(LONG)
        if not held.through:
            whole(layout, words, seen)

    monkeypatch.setattr(Layout, "check", check)
    yield held
    held.go.set()


async def test_an_answer_that_takes_long_to_read_holds_no_other_one_up(server: Running, reader: Reader) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben)
    slow = asyncio.create_task(ada.answer(of_ada, 2.0))
    await until(reader.reading.is_set)
    assert (await ben.answer(of_ben, 4.0)).verdict == Receipt.ACCEPTED
    assert not slow.done()
    reader.go.set()
    assert (await slow).verdict == Receipt.ACCEPTED
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "ben"]
    assert (await server.model(run)).tolist() == [3.0] * 4


@pytest.mark.parametrize("through", [False, True])
async def test_an_answer_whose_run_ends_while_it_is_read_is_too_late_and_leaves_nothing(server: Running, reader: Reader, *, through: bool) -> None:
    reader.through = through
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben)
    late = asyncio.create_task(ada.answer(of_ada, 2.0))
    await until(reader.reading.is_set)
    await server.engine.steer(run, "stop", "enough")
    reader.go.set()
    assert (await late).verdict == Receipt.CLOSED
    assert [path for name in ("answers", "uploads", "blobs/staging") for path in server.path.glob(f"runs/{run}/{name}/*")] == []
    _, record = await server.over(run)
    assert (record["status"], record["rounds"]) == ("stopped", [])


async def test_of_an_answer_that_is_sent_twice_while_it_is_read_one_counts(server: Running, reader: Reader) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben)
    twice = [asyncio.create_task(ada.answer(of_ada, 2.0))]
    await until(reader.reading.is_set)
    twice.append(asyncio.create_task(ada.answer(of_ada, 2.0)))
    reader.go.set()
    assert Receipt.ACCEPTED in {(await each).verdict for each in twice}
    assert (await ben.answer(of_ben, 4.0)).verdict == Receipt.ACCEPTED
    await server.over(run)
    assert (await server.model(run)).tolist() == [3.0] * 4
