"""``python -m benchmarks._tabs HOME RUN COUNT``: so many open pages of a run, in a process of their own, until they are ended.

A page is what a browser makes of it: the page, its curves, one stream of events, and after each event that is worth it the
page once more, as ``pages.js`` and ``run.js`` ask for them. All share one login. Says a line when all are open.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from fedscale.web.gate import PROOF
from fedscale.web.links import link

WORTH = frozenset({"opened", "closed", "failed", "lost", "returned", "finished", "pause", "resume", "initialized"})
REFRESH_SECONDS = 0.2


async def logged_in(home: Path) -> httpx.AsyncClient:
    """Somebody who has come in by a one-time link."""
    address, _, token = link(home, time.time()).partition("#")
    http = httpx.AsyncClient(base_url=address.removesuffix("/login"), timeout=None, trust_env=False, limits=httpx.Limits())  # noqa: S113
    proof = re.search(r'name="proof" content="(\w+)"', (await http.get("/login")).text)
    assert proof is not None
    answer = await http.post("/api/session/link", json={"token": token}, headers={PROOF: proof[1]})
    answer.raise_for_status()
    return http


async def events(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The kinds of events of a stream."""
    async for line in lines:
        if line.startswith("data: {") and '"kind"' in line:
            yield str(json.loads(line.removeprefix("data: "))["kind"])


async def page(http: httpx.AsyncClient, run: str, opened: asyncio.Event) -> None:
    """One page of a run until it is closed; ``opened`` is set once its events come."""
    address, due = f"/runs/{run}", asyncio.Event()
    shown = (await http.get(address)).text
    since = re.search(r'data-since="(\d+)"', shown)
    (await http.get(f"/api{address}/curves")).raise_for_status()
    async with asyncio.TaskGroup() as group, http.stream("GET", f"/api{address}/events?after={since[1] if since else 0}") as answer:
        group.create_task(_refresh(http, address, due))
        opened.set()
        async for kind in events(answer.aiter_lines()):
            if kind in WORTH:
                due.set()


async def _refresh(http: httpx.AsyncClient, address: str, due: asyncio.Event) -> None:
    """The page once more, once for all that comes within a moment."""
    while True:
        await due.wait()
        await asyncio.sleep(REFRESH_SECONDS)
        due.clear()
        (await http.get(address)).raise_for_status()


async def main(home: Path, run: str, count: int) -> None:
    """Open the pages, say so, and keep them open."""
    http, opened = await logged_in(home), [asyncio.Event() for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        for each in opened:
            group.create_task(page(http, run, each))
        for each in opened:
            await each.wait()
        print("open", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
