"""Nodes that arrive together: written down together, in turn with those that come meanwhile, and nobody pays for another."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from fedscale.errors import FedscaleError, NotFound
from fedscale.identity import Role
from fedscale_server.arrivals import Arrivals
from fedscale_server.store.admission import Arrival
from fedscale_server.store.tables import Member

LONG = 60.0
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Book:
    """A registry that knows everybody but ``stranger``, and takes its time.

    Args:
        fault: what the database refuses with.
    """

    def __init__(self, fault: Exception | None = None) -> None:
        self.batches: list[list[str]] = []
        self.writing, self.go = threading.Event(), threading.Event()
        self.fault = fault

    def seen(self, arrivals: list[Arrival]) -> list[Member | FedscaleError]:
        self.batches.append([each.name for each in arrivals])
        self.writing.set()
        assert self.go.wait(LONG)
        if self.fault:
            raise self.fault
        return [NotFound("nobody") if each.name == "stranger" else member(each.name) for each in arrivals]


def member(name: str) -> Member:
    return Member(name=name, project="ward", role=Role.NODE, serial="5e", expires_at=NOW, joined_at=NOW)


async def come(arrivals: Arrivals, *names: str) -> list[asyncio.Task[Member]]:
    """Nodes that have said who they are."""
    tasks = [asyncio.create_task(arrivals.take(Arrival(name, (), ""))) for name in names]
    await asyncio.sleep(0)
    return tasks


def taking(book: Book) -> Arrivals:
    registry: Any = book
    return Arrivals(registry)


async def test_all_that_come_while_one_is_written_down_share_the_next_turn() -> None:
    book = Book()
    arrivals = taking(book)
    first = await come(arrivals, "ada")
    assert await asyncio.to_thread(book.writing.wait, LONG)
    others = await come(arrivals, *(f"node-{number}" for number in range(50)))
    book.go.set()
    names = [(await asyncio.wait_for(each, LONG)).name for each in first + others]
    assert [len(batch) for batch in book.batches] == [1, 50]
    assert names == [name for batch in book.batches for name in batch]
    (last,) = await come(arrivals, "eve")
    assert (await asyncio.wait_for(last, LONG)).name == "eve"


async def test_who_is_not_let_in_keeps_nobody_out_and_who_goes_away_neither() -> None:
    book = Book()
    arrivals = taking(book)
    stranger, ada, gone = await come(arrivals, "stranger", "ada", "gone")
    assert await asyncio.to_thread(book.writing.wait, LONG)
    gone.cancel()
    book.go.set()
    with pytest.raises(NotFound, match="nobody"):
        await asyncio.wait_for(stranger, LONG)
    assert (await asyncio.wait_for(ada, LONG)).name == "ada"


async def test_a_database_that_refuses_is_heard_by_all_of_that_turn_and_by_no_other() -> None:
    book = Book(PermissionError("another server leads"))
    arrivals = taking(book)
    book.go.set()
    for each in await come(arrivals, "ada", "ben"):
        with pytest.raises(PermissionError, match="another server leads"):
            await asyncio.wait_for(each, LONG)
    book.fault = None
    (again,) = await come(arrivals, "ada")
    assert (await asyncio.wait_for(again, LONG)).name == "ada"
