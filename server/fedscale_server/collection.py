"""What the leader of a led run is told: who takes part, and every reply as it comes, for as long as it listens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import TYPE_CHECKING

import structlog

from fedscale.errors import Conflict, NotFound, ProtocolError, RunFailed, Unreachable
from fedscale.letters import RUNNING, Reply
from fedscale_server.feed import End, Watcher

if TYPE_CHECKING:
    from fedscale_server.courier import Courier

log = structlog.get_logger()


async def members(courier: Courier) -> tuple[str, ...]:
    """Who takes part, as soon as that is settled.

    Raises:
        Unreachable: the server goes down.
        Conflict: the run is over before that.
    """
    live = courier.feed.watch()
    try:
        while not courier.book.run.members:
            if not await _goes_on(courier, live):
                raise Conflict(f"run {courier.id} is {courier.book.run.status}", why=courier.book.run.reason)
    finally:
        courier.feed.leave(live)
    return courier.book.run.members


async def replies(courier: Courier, after: int) -> AsyncGenerator[Reply, None]:
    """What becomes of the letters, in the order of the journal, from behind a line on until the run is over.

    Raises:
        Unreachable: the server goes down, or the leader does not keep up; it may come back with the last line it saw.
    """
    live = courier.feed.watch()
    try:
        while True:
            for reply in courier.book.run.after(after):
                after = reply.sequence
                yield reply
            if not await _goes_on(courier, live):
                return
    finally:
        courier.feed.leave(live)


async def content(courier: Courier, reply: Reply) -> tuple[Reply, Iterator[bytes]]:
    """A reply as it stands now, and what it holds, in pieces; nothing where it is a failure, or has become one.

    Raises:
        RunFailed: the disk has lost it, and that was the end of the run.
        Unreachable: the disk or the database refuses at the moment.
    """
    courier.book.told = max(courier.book.told, reply.sequence)
    if reply.failure is None:
        try:
            return reply, await courier.stored(partial(courier.book.content, reply))
        except (NotFound, ProtocolError) as error:
            log.exception("a reply of a led run is lost", run=courier.id, file=error.where)
            await courier.errands.begin(courier.lose(reply, error.what))
    if courier.book.run.status != RUNNING:
        raise RunFailed(courier.book.run.reason or f"the run is {courier.book.run.status}", where=f"run {courier.id}")
    return courier.book.run.replies[reply.place], iter([b""])


async def _goes_on(courier: Courier, live: Watcher) -> bool:
    """Wait until something happens; ``False`` when the run is over."""
    event = await live.get()
    if isinstance(event, End) and event is not End.OVER:
        raise Unreachable(event.value, where=f"run {courier.id}", hint="collect again from the last reply on")
    return event is not End.OVER
