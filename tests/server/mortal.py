"""Server processes that die when they are told to.

Run as a program, this file forks one server after the other from a process that has everything imported already, so that a
restart takes a tenth of a second. An order says where the server lives and, perhaps, at which call of which function it
dies, before or after the call.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedscale.cli.logs import configure
from fedscale_server.app import Ready, serve
from fedscale_server.settings import Settings
from fedscale_server.spool import Spool
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.store import Store

CRASHED = 42
POINTS: dict[str, tuple[type[Any], str]] = {
    "append": (Store, "append_all"),
    "checkpoint": (Store, "checkpoint"),
    "finish": (Store, "finish"),
    "create": (Store, "create_run"),
    "keep": (Spool, "keep"),
    "clear": (Spool, "clear"),
    "retire": (Spool, "retire"),
    "adopt": (Blobs, "adopt"),
    "store": (Spool, "store"),
}


def plant(point: str, when: str, count: int) -> None:
    """Let the process die at the ``count``-th call."""
    owner, name = POINTS[point]
    whole: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def mortal(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os._exit(CRASHED)
        result = whole(*given, **named)
        if calls == count:
            os._exit(CRASHED)
        return result

    setattr(owner, name, mortal)


def tell(**facts: Any) -> None:
    os.write(1, f"{json.dumps(facts)}\n".encode())


def live(order: dict[str, Any]) -> None:
    """One server, from its start to its end."""
    if order.get("crash"):
        plant(*order["crash"])

    def ready(where: Ready) -> None:
        tell(ready=where.address, enrolment=where.enrolment)

    settings = Settings(port=order["port"], enrolment_port=order["enrolment_port"], database=order.get("database", ""))
    asyncio.run(serve(Path(order["home"]), settings, ready))
    tell(modules=sorted(sys.modules))


def main() -> None:
    configure("json")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(json.loads(line))
            os._exit(0)
        tell(pid=child)
        tell(ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
