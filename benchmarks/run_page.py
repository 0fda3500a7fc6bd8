"""What the page of a run of 10,000 rounds and 50 sites costs in bytes and in the server's processor time: who comes first, next or looks back.

A browser is played by what it asks for: the page, its curves, its events to their end. Beside it what one would load who had
to draw all of it from the run's whole record, as the server keeps it.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

import httpx

from benchmarks import Figure, _tabs
from fedscale_server.store.store import Store
from tests.e2e.federation import PROJECT, Federation
from tests.fedscale.sample_run import large_run
from tests.web.long_run import keep

SITES, ROUNDS = 50, 10_000
LONG_AGO = ROUNDS - 500
TICKS = os.sysconf("SC_CLK_TCK")
Visit: TypeAlias = Callable[[httpx.AsyncClient, str], Awaitable[int]]


def measure() -> Iterator[Figure]:
    """Megabytes as they come over the line and seconds of the server's processor time, each visit after the other, from one run."""
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        run = _long_run(federation)
        visits: dict[str, Visit] = {"first visitor": _page, "next visitor": _page, "40 phases of long ago": _long_ago, "whole record": _record}
        for name, (size, taken) in asyncio.run(_visited(federation, run, visits)).items():
            yield Figure(f"{name}, loaded", size / 1e6, "MB")
            yield Figure(f"{name}, processor time of the server", taken, "s")


def _long_run(federation: Federation) -> str:
    """The coordinator of a run that is over, as if it had led it; the run's id."""
    federation.server.stop()
    store = Store.open(f"sqlite:///{federation.home / 'server.db'}")
    record = large_run(SITES, ROUNDS)
    keep(store, record, ("evaluate",), PROJECT)
    store.close()
    federation.start_server()
    return record.run


async def _visited(federation: Federation, run: str, visits: dict[str, Visit]) -> dict[str, tuple[int, float]]:
    """Bytes and seconds of each visit."""
    took = {}
    async with aclosing(await _tabs.logged_in(federation.home)) as http:
        for name, visit in visits.items():
            before = _busy(federation.server.pid)
            took[name] = await visit(http, run), _busy(federation.server.pid) - before
    return took


def _busy(pid: int) -> float:
    """Processor time of a process so far, in user mode and in the kernel (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def _page(http: httpx.AsyncClient, run: str) -> int:
    """The page of a run, as ``run.js`` loads it."""
    shown = await http.get(f"/runs/{run}")
    since = re.search(r'data-since="(\d+)"', shown.text)
    assert since is not None
    return len(shown.content) + await _bytes(http, f"/api/runs/{run}/curves") + await _bytes(http, f"/api/runs/{run}/events?after={since[1]}")


async def _long_ago(http: httpx.AsyncClient, run: str) -> int:
    """What ``rounds.js`` loads for whoever looks back."""
    return await _bytes(http, f"/api/runs/{run}/timeline?until={LONG_AGO}")


async def _record(http: httpx.AsyncClient, run: str) -> int:
    """All that there is."""
    return await _bytes(http, f"/api/runs/{run}/record")


async def _bytes(http: httpx.AsyncClient, path: str) -> int:
    """How long an answer is, before a browser unpacks it."""
    async with http.stream("GET", path) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_bytes():
            pass
        return answer.num_bytes_downloaded
