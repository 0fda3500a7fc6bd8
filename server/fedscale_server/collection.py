"""What the leader of a led run is told: who takes part, and every reply as it comes, for as long as it listens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from fedscale.errors import Conflict, Unreachable
from fedscale.letters import Reply
from fedscale_server.feed import End, Watcher

if TYPE_CHECKING:
    from fedscale_server.courier import Courier


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


async def _goes_on(courier: Courier, live: Watcher) -> bool:
    """Wait until something happens; ``False`` when the run is over."""
    event = await live.get()
    if isinstance(event, End) and event is not End.OVER:
        raise Unreachable(event.value, where=f"run {courier.id}", hint="collect again from the last reply on")
    return event is not End.OVER
