"""Server-sent events: what happens to a run, and that something has changed at all (WHATWG HTML, section 9.2).

The number of a journal line is the event's id, so a browser that comes back after a restart says by ``Last-Event-ID`` what
it has seen last and misses nothing. Passing signs of progress have no id.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedscale.errors import Unreachable

if TYPE_CHECKING:
    from fedscale.proto.v1 import control_pb2 as pb
    from fedscale_server.coordinator import Coordinator

RETRY = b"retry: 1000\n\n"
OVER = b"event: over\ndata: {}\n\n"
PING = b": still here\n\n"
PING_SECONDS, LOOK_SECONDS = 5.0, 1.0


async def run_events(coordinator: Coordinator, run: str, after: int, still: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """What happens to a run behind line ``after``, to its end.

    Args:
        coordinator: whom to ask.
        run: its id.
        after: number of the last line already seen.
        still: whether whoever reads may still do so; asked every few seconds.
    """
    yield RETRY
    try:
        async with aclosing(coordinator.watch(run, after)) as events, aclosing(_patiently(events, still)) as told:
            async for event in told:
                yield event
        yield OVER
    except (Unreachable, PermissionError):
        return


async def _patiently(events: AsyncGenerator[pb.RunEvent, None], still: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """Events as they are sent; where there is none for a while, a comment that shows a broken connection.

    Raises:
        PermissionError: whoever reads may not any more.
    """
    turn: asyncio.Future[pb.RunEvent | None] | None = None
    asked = time.monotonic()
    try:
        while True:
            turn = asyncio.ensure_future(anext(events, None))
            while not (there := (await asyncio.wait({turn}, timeout=PING_SECONDS))[0]) or time.monotonic() >= asked + PING_SECONDS:
                if not await still():
                    raise PermissionError
                asked = time.monotonic()
                if not there:
                    yield PING
            event = turn.result()
            if event is None:
                return
            yield encoded(event)
    finally:
        if turn is not None and not turn.done():
            turn.cancel()
            await asyncio.wait({turn})


def encoded(event: pb.RunEvent) -> bytes:
    """One event of a run; its detail is JSON on one line already."""
    facts = {"sequence": event.sequence, "at": event.at, "kind": event.kind, "node": event.node, "phase": event.phase, "number": event.number}
    head = json.dumps(facts, separators=(",", ":"))
    number = f"id: {event.sequence}\n" if event.sequence else ""
    return f'{number}data: {head[:-1]},"detail":{event.detail or "{}"}}}\n\n'.encode()


async def changes(coordinator: Coordinator, still: Callable[[], Awaitable[bool]], gone: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The state of sites and runs whenever it is another than before, until the server goes down.

    Args:
        coordinator: whom to ask.
        still: whether whoever reads may still do so; asked at every look.
        gone: set when the server goes down.
    """
    yield RETRY
    before, quiet = b"", 0.0
    while not gone.is_set() and await still():
        state = json.dumps(asdict(await coordinator.status()), separators=(",", ":")).encode()
        quiet = 0.0 if state != before or quiet >= PING_SECONDS else quiet + LOOK_SECONDS
        if state != before:
            yield b"data: " + state + b"\n\n"
        elif not quiet:
            yield PING
        before = state
        try:
            await asyncio.wait_for(gone.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue
