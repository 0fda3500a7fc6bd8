"""The coordinator alone: durable ingest, idle nodes, restart with a long journal, and what uploads that stand nearly still cost.

``python -m benchmarks server``; everything goes over mutual TLS to a real process, started through the command line.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc.aio

from benchmarks import Figure, _raw
from benchmarks._crowd import SLOW_SIZE, Light, Member, crawl, enrolled, stream
from fedscale.wire.limits import CHANNEL_OPTIONS, SILENCE_SECONDS
from fedscale_client.home import NodeHome
from tests.e2e.federation import Federation, until

INGEST_NODES, INGEST_SIZE, INGEST_ROUNDS = 2, 32 << 20, 3
PATIENCE = 600.0
IDLE = int(os.environ.get("FEDSCALE_BENCH_IDLE", "200"))
EARLY, IDLE_KIB, BACK_SECONDS = 10, 120.0, 60.0
JOURNALED, RESTARTS = 1_000, 12
RESTART_P50, RESTART_P99 = 1.0, 3.0
SLOW = int(os.environ.get("FEDSCALE_BENCH_SLOW", "50"))
SLOW_MORE, SLOW_MIB = 20.0, 600.0
HEALTHY_SIZE, HEALTHY_ROUNDS, CRAWL_SECONDS, TURNS = 4 << 20, 8, 5.0, 2


def measure() -> Iterator[Figure]:
    """Each on a coordinator of its own."""
    for part in (ingest, idle, restart, loris):
        with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
            yield from part(federation)


def memory(federation: Federation) -> float:
    """Resident memory of the coordinator now, in KiB."""
    return float(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc", str(federation.server.pid), "status").read_text())[0])


def ingest(federation: Federation) -> Iterator[Figure]:
    """Bytes of answers a second that are acknowledged, kept on disk and not, beside what gRPC alone takes in that minute on that machine."""
    homes = _raw.join(federation, INGEST_NODES)
    for durability, name in (("spool", "durable ingest"), ("resend", "ingest without the disk's promise")):
        ceiling = _ceiling(federation, homes)
        _raw.keep_answers(federation, durability)
        rate = _taken_in(federation, homes, durability)
        yield Figure(f"{name}, {INGEST_NODES} nodes, 128 MiB each", rate / 1e6, "MB/s")
        yield Figure("gRPC alone, the same bytes, a frame thrown away", ceiling / 1e6, "MB/s")
        yield Figure(f"{name}, of what gRPC alone takes", 100 * rate / ceiling, "%")


def _ceiling(federation: Federation, homes: list[NodeHome]) -> float:
    """Bytes a second that a server takes which does nothing with them."""
    with _process("sink", federation.home, INGEST_NODES) as sink:
        address = f"localhost:{_line(sink)}"
        with ExitStack() as stack:
            for home in homes:
                stack.enter_context(_process("pour", home.path, address, INGEST_SIZE))
            return float(_line(sink))


def _taken_in(federation: Federation, homes: list[NodeHome], name: str) -> float:
    """Bytes a second, of the median round from its opening to its last acknowledgement; in the first the answers are made."""
    with ExitStack() as stack:
        for home in homes:
            stack.enter_context(_process("node", home.path, INGEST_SIZE))
        watching = federation.watch(federation.submit(_raw.write_job(federation.folder / name, INGEST_SIZE, INGEST_ROUNDS + 1, len(homes))))
        assert watching.wait(PATIENCE).code == 0
    opened, answered = ({e["number"]: e["at"] for e in watching.events() if e["kind"] == kind} for kind in ("opened", "answered"))
    times: list[float] = [answered[number] - opened[number] for number in range(2, INGEST_ROUNDS + 2)]
    return len(homes) * 4 * INGEST_SIZE / median(times)


@contextmanager
def _process(role: str, home: Path, *rest: object) -> Iterator[subprocess.Popen[str]]:
    """A process of this benchmark, ended when it is not needed any more."""
    words = [sys.executable, "-m", "benchmarks._ingest", role, str(home), *map(str, rest)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def _line(process: subprocess.Popen[str]) -> str:
    """What it says next."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


# ---------------------------------------------------------------------------------------------------------- idle nodes


def idle(federation: Federation) -> Iterator[Figure]:
    """Nodes that are connected and have nothing to do, each with a TLS session, a stream and heartbeats, and all of them back after a restart."""
    yield from asyncio.run(_idle(federation, [Light(member) for member in enrolled(federation, "idle", IDLE)]))


async def _idle(federation: Federation, lights: list[Light]) -> list[Figure]:
    early, others = lights[:EARLY], lights[EARLY:]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(light.live(federation)) for light in early]
        await _greeted(early, 1)
        before, began = memory(federation), time.monotonic()
        tasks += [group.create_task(light.live(federation)) for light in others]
        await _greeted(others, 1)
        figures = [Figure(f"{len(others)} nodes connecting at once", time.monotonic() - began, "s")]
        figures.append(Figure(f"memory of an idle stream, {IDLE} of them", (memory(federation) - before) / len(others), "KiB", IDLE_KIB))
        silence = max(max(light.silence, time.monotonic() - light.heard) for light in early)
        figures.append(Figure("longest silence of the server meanwhile", silence, "s", SILENCE_SECONDS))
        federation.server.kill()
        await asyncio.to_thread(federation.start_server)
        began = time.monotonic()
        await _greeted(lights, 2)
        figures.append(Figure(f"{IDLE} nodes coming back at once after a restart", time.monotonic() - began, "s", BACK_SECONDS))
        for task in tasks:
            task.cancel()
    return figures


async def _greeted(lights: list[Light], times: int) -> None:
    """Wait until each was greeted so often."""
    await asyncio.to_thread(until, lambda: all(light.greeted >= times for light in lights), f"{len(lights)} nodes", PATIENCE)


# ------------------------------------------------------------------------------------------------------- slow uploads


def loris(federation: Federation) -> Iterator[Figure]:
    """Rounds of two healthy nodes beside others that have nothing to do, and beside the same while their uploads crawl; by turns."""
    homes, members = _raw.join(federation, 2), enrolled(federation, "slow", SLOW)
    yield from asyncio.run(_loris(federation, homes, members))


async def _loris(federation: Federation, homes: list[NodeHome], members: list[Member]) -> list[Figure]:
    times: dict[bool, list[float]] = {False: [], True: []}
    taken: dict[bool, list[float]] = {False: [], True: []}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        tasks = []
        for member in members:
            opened, channel = await stack.enter_async_context(stream(federation, member, "slow"))
            tasks.append(group.create_task(crawl(member, opened, channel)))
        for home in homes:
            stack.enter_context(_process("node", home.path, HEALTHY_SIZE))
        for turn in range(2 * TURNS):
            crawling = turn % 2 == 1
            slow = await _begin_to_crawl(federation, f"slow-{turn}") if crawling else ""
            times[crawling] += await _healthy(federation, f"healthy-{turn}")
            taken[crawling].append(memory(federation))
            if slow:
                await asyncio.to_thread(federation.manage, "run", "stop", slow)
        for task in tasks:
            task.cancel()
    more = 100 * (median(times[True]) / median(times[False]) - 1)
    return [
        Figure(f"a healthy round beside {SLOW} nodes that are idle", median(times[False]), "s"),
        Figure(f"a healthy round with {SLOW} uploads at 10 kB/s, more", more, "%", SLOW_MORE),
        Figure(f"memory for {SLOW} uploads at 10 kB/s, more", (max(taken[True]) - taken[False][0]) / 1024, "MiB", SLOW_MIB),
    ]


async def _begin_to_crawl(federation: Federation, name: str) -> str:
    """A run whose answers crawl, under way."""
    job = _raw.write_job(federation.folder / name, SLOW_SIZE, 1, SLOW)
    job.write_text(job.read_text().replace(f'data = "{_raw.DATASET}"', 'data = "slow"'))
    run = await asyncio.to_thread(federation.submit, job)
    await asyncio.sleep(CRAWL_SECONDS)
    return run


async def _healthy(federation: Federation, name: str) -> list[float]:
    """Seconds of each round of the healthy nodes but the first, in which they make their answers."""
    run = await asyncio.to_thread(federation.submit, _raw.write_job(federation.folder / name, HEALTHY_SIZE, HEALTHY_ROUNDS, 2))
    watching = federation.watch(run)
    await asyncio.to_thread(watching.wait, PATIENCE)
    times = [event["at"] for event in watching.events() if event["kind"] == "opened"]
    return [end - begin for begin, end in pairwise(times)][1:]


# ---------------------------------------------------------------------------------------------------------- restart


def restart(federation: Federation) -> Iterator[Figure]:
    """From exec to the first accepted call, with a run of a thousand closed rounds and a round that is open."""
    run = _long(federation)
    times = []
    for _ in range(RESTARTS):
        federation.server.kill()
        began = time.monotonic()
        federation.start_server()
        asyncio.run(_first_call(federation))
        times.append(time.monotonic() - began)
    assert federation.status(run) == "running"
    yield Figure(f"restart with {JOURNALED} journaled rounds, p50", median(times), "s", RESTART_P50)
    yield Figure(f"restart with {JOURNALED} journaled rounds, p99", quantiles(times, n=100, method="inclusive")[98], "s", RESTART_P99)


def _long(federation: Federation) -> str:
    """A run that has closed so many rounds and goes on."""
    homes = _raw.join(federation, 1)
    job = _raw.write_job(federation.folder / "job", 16, JOURNALED + 1_000, 1)
    run = federation.submit(job)
    watching = federation.watch(run)
    asyncio.run(_until_closed(homes, watching))
    watching.stop()
    return run


async def _until_closed(homes: list[NodeHome], watching: Any) -> None:
    """Be the node until enough rounds are closed."""
    node = asyncio.create_task(_raw._node(homes[0], 16))  # noqa: SLF001 - a helper of these benchmarks
    await asyncio.to_thread(until, lambda: watching.said().count('"closed"') >= JOURNALED, f"{JOURNALED} rounds", 600.0)
    node.cancel()
    with suppress(asyncio.CancelledError):
        await node


async def _first_call(federation: Federation) -> None:
    """The operator asks how it is, again and again until that is answered."""
    key, certificate, authority = ((federation.profile / f"{name}.pem").read_bytes() for name in ("key", "cert", "ca"))
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    async with grpc.aio.secure_channel(f"localhost:{federation.ports[0]}", credentials, CHANNEL_OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
