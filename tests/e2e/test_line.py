"""A bad line between a real node's transfers and a real server: cut anywhere, closed for a while, slow; little is sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_client import transfer
from fedscale_client.answers import Answer
from fedscale_client.cache import Cache
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeSettings
from fedscale_client.throttle import Throttle
from fedscale_client.transfer import Transfer
from fedscale_server.services import bulk
from tests.server.running import Ask, Node, Receipt, Running, plan_text, soon, until

PIECE = 64 << 10
SECONDS = 120.0


class Line:
    """A proxy between node and server that counts what the node sends and breaks when it is told to."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.up = self.down = 0
        self.cuts: list[int] = []
        self.open = True

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pipe(reader, far_writer, up=True), self._pipe(far_reader, writer, up=False))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(PIECE):
                self.up, self.down = self.up + len(data) * up, self.down + len(data) * (not up)
                if self.cuts and max(self.up, self.down) >= self.cuts[0]:
                    del self.cuts[0]
                    self.cut()
                    return
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    running = await Running.start(tmp_path / "server")
    yield running
    await running.close()


@pytest.fixture
async def line(server: Running) -> AsyncIterator[Line]:
    made = Line(server.ready.address)
    yield made
    await made.stop()


async def transfers(server: Running, node: Node, line: Line, tmp_path: Path, rate: int = 0) -> Transfer:
    """The transfers of a node that reaches its server by that line."""
    address = await line.start()
    settings = NodeSettings(name=node.name, federation="fedscale", project="ward", address=address, server_name="localhost")
    made = Transfer(settings, Cache(tmp_path / "cache", 1 << 30), Throttle(rate, "", server.engine.now))
    given = node.credentials
    await made.use(Credentials(given.key, given.certificate, given.authority))
    return made


async def asked(server: Running, node: Node, size: int) -> tuple[str, Ask, bytes]:
    """A run whose first round asks the node for an answer of so many coordinates; the model's bytes."""
    run = await server.submit(plan_text(clients={"min_per_round": 1, "rejoin": 600.0, "deadline": 600.0}))
    first = await node.ask("init")
    model = np.random.default_rng(1).normal(size=size).astype(np.float32)
    receipt = await soon(node.initialize(first, model, Schema.of({"w": np.zeros(size, np.float32)})), SECONDS)
    assert receipt.verdict == Receipt.ACCEPTED
    return run, await node.ask("train"), model.tobytes()


def answer_of(ask: Ask, folder: Path) -> Answer:
    body = ask.words(0.5).tobytes()
    path = folder / "answer"
    path.write_bytes(body)
    return Answer(path, digest_of(body), len(body))


async def test_a_cut_in_the_middle_of_100_megabytes_costs_less_than_5_percent(server: Running, line: Line, tmp_path: Path) -> None:
    ada = await server.node("ada")
    run, ask, model = await asked(server, ada, 25_000_000)
    over = await transfers(server, ada, line, tmp_path)
    line.cuts = [len(model) // 2]
    path = await soon(over.model(ask.task.model, len(model)), SECONDS)
    assert digest_of(path.read_bytes()) == ask.task.model
    assert line.cuts == []
    assert line.down < 1.05 * len(model)

    answer = answer_of(ask, tmp_path)
    line.up = line.down = 0
    line.cuts = [answer.size // 2]
    assert (await soon(over.submit(ask.key, answer), SECONDS)).word == "accepted"
    assert line.cuts == []
    assert answer.size < line.up < 1.05 * answer.size
    assert (await server.over(run))[0].info.status == "completed"
    await over.close()


async def test_many_cuts_and_a_restart_in_between(server: Running, line: Line, tmp_path: Path) -> None:
    ada = await server.node("ada")
    run, ask, model = await asked(server, ada, 1_500_000)
    over = await transfers(server, ada, line, tmp_path)
    answer = answer_of(ask, tmp_path)
    line.cuts = np.random.default_rng(5).integers(20_000, 2 * answer.size, 12).tolist()
    line.cuts.sort()
    sending = asyncio.create_task(over.submit(ask.key, answer))
    await until(lambda: len(line.cuts) <= 8 or sending.done(), SECONDS)
    await server.restart()
    await ada.leave()
    await ada.connect()
    assert (await soon(sending, SECONDS)).word in ("accepted", "duplicate")
    assert (await server.over(run))[1]["rounds"][0]["weight"] == 10.0
    fetched = np.frombuffer(model, np.float32) + np.float32(0.5)
    np.testing.assert_allclose(await server.model(run), fetched, atol=1e-4)
    await over.close()


async def test_a_line_that_is_away_far_longer_than_any_window_costs_nothing_but_time(
    server: Running, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows are scaled down: the transfer takes many of them, and the line is away for several."""
    monkeypatch.setattr(bulk, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(transfer, "STALL_SECONDS", 5.0)
    ada = await server.node("ada")
    run, ask, _ = await asked(server, ada, 1_000_000)
    over = await transfers(server, ada, line, tmp_path, rate=4_000_000)
    answer = answer_of(ask, tmp_path)
    sending = asyncio.create_task(over.submit(ask.key, answer))
    await until(lambda: line.up > answer.size // 3, SECONDS)
    line.open = False
    line.cut()
    await asyncio.sleep(2.0)
    assert not sending.done()
    before, line.open = line.up, True
    assert (await soon(sending, SECONDS)).word == "accepted"
    assert line.up - before < answer.size
    assert (await server.over(run))[0].info.status == "completed"
    await over.close()
