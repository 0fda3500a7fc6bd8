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
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc.aio
import numpy as np

import fedscale
from benchmarks import Figure, _raw
from fedscale.identity import Identity, Role, certificate_pem, key_pem, new_key, new_request
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, SCHEMA_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, sealed
from fedscale.wire.convert import assignment_from_proto, key_text
from fedscale.wire.limits import CHANNEL_OPTIONS, FRAME, HEARTBEAT_SECONDS
from fedscale_client.home import NodeHome
from fedscale_server.home import Home
from fedscale_server.store.store import Store
from tests.e2e.federation import PROJECT, Federation, until

INGEST_NODES, INGEST_SIZE, INGEST_ROUNDS = 2, 32 << 20, 3
PATIENCE = 600.0
IDLE = int(os.environ.get("FEDSCALE_BENCH_IDLE", "200"))
IDLE_KIB = 120.0
JOURNALED, RESTARTS = 1_000, 12
RESTART_P50, RESTART_P99 = 1.0, 3.0
SLOW, SLOW_RATE, SLOW_SIZE, SLOW_MORE = 20, 10_000, 1 << 20, 20.0
HEALTHY_SIZE, HEALTHY_ROUNDS, CRAWL_SECONDS = 4 << 20, 6, 3.0


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
    settings = federation.home / "server.toml"
    for durability, name in (("spool", "durable ingest"), ("resend", "ingest without the disk's promise")):
        ceiling = _ceiling(federation, homes)
        federation.server.stop()
        settings.write_text(re.sub('durability = "[a-z]+"', f'durability = "{durability}"', settings.read_text()))
        federation.start_server()
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


# -------------------------------------------------------------------------------------------------------------- nodes


@dataclass(frozen=True)
class Member:
    """A node that is known by its certificate alone and keeps no folder."""

    name: str
    key: bytes
    certificate: bytes
    authority: bytes

    def channel(self, federation: Federation) -> grpc.aio.Channel:
        """A connection of its own."""
        credentials = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        return grpc.aio.secure_channel(f"localhost:{federation.ports[0]}", credentials, options)


def enrolled(federation: Federation, prefix: str, count: int) -> list[Member]:
    """So many nodes, entered into the database while the coordinator is down, for tickets would take minutes."""
    federation.server.stop()
    home, store, now, made = Home.load(federation.home), Store.open(f"sqlite:///{federation.home / 'server.db'}"), datetime.now(UTC), []
    for number in range(count):
        name, key = f"{prefix}-{number:04}", new_key()
        certificate = home.authority.issue(new_request(key, name), Identity("trial", Role.NODE, name), now, 24)
        serial = f"{certificate.serial_number:x}"
        store.enrol(name, PROJECT, Role.NODE, serial, certificate.not_valid_after_utc, certificate.not_valid_before_utc)
        made.append(Member(name, key_pem(key), certificate_pem(certificate), certificate_pem(home.authority.certificate)))
    store.close()
    federation.start_server()
    return made


@asynccontextmanager
async def stream(federation: Federation, member: Member, dataset: str) -> AsyncIterator[Any]:
    """A control stream that was greeted, and its connection; heartbeats go on until it is left."""
    async with member.channel(federation) as channel:
        opened: Any = node_pb2_grpc.NodeStub(channel).Connect()
        await opened.write(node_pb2.NodeMessage(hello=node_pb2.Hello(version=fedscale.__version__, datasets=[dataset])))
        assert isinstance(await opened.read(), node_pb2.ServerMessage)
        beating = asyncio.create_task(_beat(opened))
        try:
            yield opened, channel
        finally:
            beating.cancel()
            opened.cancel()


async def _beat(opened: Any) -> None:
    while True:
        await opened.write(node_pb2.NodeMessage(heartbeat=node_pb2.Heartbeat()))
        await asyncio.sleep(HEARTBEAT_SECONDS)


def idle(federation: Federation) -> Iterator[Figure]:
    """Nodes that are connected and have nothing to do, each with a TLS session, a stream and heartbeats."""
    yield from asyncio.run(_idle(federation, enrolled(federation, "idle", IDLE)))


async def _idle(federation: Federation, members: list[Member]) -> list[Figure]:
    async with AsyncExitStack() as stack:
        for member in members[:10]:
            await stack.enter_async_context(stream(federation, member, "none"))
        before, began = memory(federation), time.monotonic()
        await asyncio.gather(*(stack.enter_async_context(stream(federation, member, "none")) for member in members[10:]))
        seconds, after = time.monotonic() - began, memory(federation)
    return [
        Figure(f"memory of an idle stream, {IDLE} of them", (after - before) / (IDLE - 10), "KiB", IDLE_KIB),
        Figure(f"{IDLE - 10} nodes connecting at once", seconds, "s"),
    ]


# ------------------------------------------------------------------------------------------------------- slow uploads


def loris(federation: Federation) -> Iterator[Figure]:
    """Rounds of two healthy nodes, without and with uploads of other nodes that crawl."""
    homes, members = _raw.join(federation, 2), enrolled(federation, "slow", SLOW)
    quick = sum(asyncio.run(_rounds(federation, homes, [])))
    before = memory(federation)
    slowed = asyncio.run(_rounds(federation, homes, members))
    yield Figure(f"a healthy round with {SLOW} uploads at 10 kB/s, more", 100 * (sum(slowed) / quick - 1), "%", SLOW_MORE)
    yield Figure(f"memory for {SLOW} uploads at 10 kB/s, more", (memory(federation) - before) / 1024, "MiB", 600.0)


async def _rounds(federation: Federation, homes: list[NodeHome], slow: list[Member]) -> list[float]:
    """Seconds of each healthy round while the slow ones crawl."""
    folder = federation.folder / ("jobs-slow" if slow else "jobs")
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        tasks = []
        if slow:
            job = _raw.write_job(folder / "slow", SLOW_SIZE, 1, len(slow))
            (job.parent / "job.toml").write_text(job.read_text().replace(f'data = "{_raw.DATASET}"', 'data = "slow"'))
            for member in slow:
                opened, channel = await stack.enter_async_context(stream(federation, member, "slow"))
                tasks.append(group.create_task(_crawl(member, opened, channel)))
            await asyncio.to_thread(federation.submit, job)
            await asyncio.sleep(CRAWL_SECONDS)
        tasks += [group.create_task(_raw._node(home, HEALTHY_SIZE)) for home in homes]  # noqa: SLF001 - a helper of these benchmarks
        run = await asyncio.to_thread(federation.submit, _raw.write_job(folder / "healthy", HEALTHY_SIZE, HEALTHY_ROUNDS, len(homes)))
        watching = federation.watch(run)
        await asyncio.to_thread(watching.wait)
        for task in tasks:
            task.cancel()
    times = [event["at"] for event in watching.events() if event["kind"] == "opened"]
    return [end - begin for begin, end in pairwise(times)]


async def _crawl(member: Member, opened: Any, channel: grpc.aio.Channel) -> None:
    """Make the first model at once, and hand in an answer at 10 kB/s."""
    while isinstance(message := await opened.read(), node_pb2.ServerMessage):
        if message.WhichOneof("message") == "assignment":
            run, _, task = assignment_from_proto(message.assignment, member.name)
            first = task.schema is None
            body = bytes(4 * SLOW_SIZE) if first else task.layout.encode(Update(np.zeros(SLOW_SIZE, np.float32), 1.0, {"loss": np.ones(1)})).tobytes()
            facts = [(TASK_KEY, key_text((run, task.phase, task.number))), (DIGEST_KEY, digest_of(body)), (SIZE_KEY, str(len(body)))]
            schema = [(SCHEMA_KEY, Schema.of({"w": np.zeros(SLOW_SIZE, np.float32)}).to_json().encode())] if first else []
            submit: Any = channel.stream_unary(SUBMIT, sealed, bulk_pb2.Receipt.FromString)
            with suppress(grpc.aio.AioRpcError):
                await submit(_frames(body, FRAME if first else SLOW_RATE // 10, 0.0 if first else 0.1), metadata=[*facts, *schema])


async def _frames(body: bytes, size: int, pause: float) -> AsyncIterator[bytes]:
    """So many bytes, then a pause, then more."""
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(pause)


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
