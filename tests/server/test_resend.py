"""``durability = "resend"``: no answer stays on disk; after a crash nodes are asked again, and each still counts once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import PlanError
from tests.server.running import Ask, Node, Receipt, Running, plan_text

ONE_HOT = [np.eye(4, dtype=np.float32)[n] * 3 for n in range(3)]
KEPT = {"min_per_round": 3, "rejoin": 60.0, "deadline": 120.0}


@pytest.fixture
async def server(tmp_path: Path, sqlite_at_head: Path) -> AsyncIterator[Running]:
    running = await Running.start(tmp_path / "server", sqlite_at_head, durability="resend")
    yield running
    await running.close()


async def back(server: Running, nodes: list[Node]) -> list[Ask]:
    """The server ends and comes back; who owes an answer is asked."""
    await server.restart()
    for node in nodes:
        await node.leave()
        node.asks.clear()
        node.taken = 0
        await node.connect()
    return [await node.ask("train") for node in nodes]


def lying(server: Running) -> int:
    """Bytes of answers on disk, in whatever form."""
    return sum(path.stat().st_size for name in ("answers", "uploads", "blobs/staging") for path in server.path.glob(f"runs/*/{name}/*"))


async def test_no_answer_and_no_key_stays_on_disk_and_the_node_is_told_to_keep_its_own(server: Running) -> None:
    nodes = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(*nodes, clients=KEPT)
    receipt = await nodes[0].answer(asks[0], ONE_HOT[0])
    assert (receipt.verdict, receipt.keep) == (Receipt.ACCEPTED, True)
    assert lying(server) == 0
    assert not list(server.path.glob("runs/*/round.key"))
    assert (await nodes[0].answer(asks[0], ONE_HOT[0])).verdict == Receipt.DUPLICATE
    assert (await nodes[0].answer(asks[0], ONE_HOT[1])).verdict == Receipt.REJECTED
    for node, ask, delta in zip(nodes[1:], asks[1:], ONE_HOT[1:], strict=True):
        await node.answer(ask, delta)
    await server.over(run)
    assert (await server.model(run)).tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("answered", [1, 2])
async def test_after_a_crash_everybody_is_asked_again_and_counts_once(server: Running, answered: int) -> None:
    nodes = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(*nodes, clients=KEPT)
    for life in range(3):
        for node, ask, delta in list(zip(nodes, asks, ONE_HOT, strict=True))[:answered]:
            assert (await node.answer(ask, delta)).verdict == Receipt.ACCEPTED, life
        asks = await back(server, nodes)
    for node, ask, delta in zip(nodes, asks, ONE_HOT, strict=True):
        assert (await node.answer(ask, delta)).verdict == Receipt.ACCEPTED
    record = (await server.over(run))[1]
    assert record["rounds"][0]["answered"] == ["ada", "ben", "cyd"]
    assert record["rounds"][0]["weight"] == 30.0
    assert (await server.model(run)).tolist() == [1.0, 1.0, 1.0, 0.0]


async def test_an_answer_that_differs_the_second_time_counts_as_it_is_then(server: Running) -> None:
    """Training again need not give the same bits; the lost answer has left no trace in the sum."""
    nodes = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(*nodes, clients=KEPT)
    await nodes[0].answer(asks[0], ONE_HOT[0] * 2)
    asks = await back(server, nodes)
    for node, ask, delta in zip(nodes, asks, ONE_HOT, strict=True):
        assert (await node.answer(ask, delta)).verdict == Receipt.ACCEPTED
    await server.over(run)
    assert (await server.model(run)).tolist() == [1.0, 1.0, 1.0, 0.0]


async def test_a_closed_round_needs_nobody_again(server: Running) -> None:
    nodes = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(*nodes, rounds=2, clients=KEPT)
    for node, ask, delta in zip(nodes, asks, ONE_HOT, strict=True):
        await node.answer(ask, delta)
    second = [await node.ask("train") for node in nodes]
    asks = await back(server, nodes)
    assert [ask.key for ask in asks] == [ask.key for ask in second] == [(run, "train", 2)] * 3
    for node, ask, delta in zip(nodes, asks, ONE_HOT, strict=True):
        await node.answer(ask, delta)
    await server.over(run)
    assert (await server.model(run)).tolist() == [2.0, 2.0, 2.0, 0.0]


async def test_a_plan_with_secure_aggregation_is_refused(server: Running) -> None:
    """A node gives its masked vector once: after a crash nobody could send it again."""
    with pytest.raises(PlanError, match='no secure aggregation under durability "resend"'):
        await server.engine.submit("ward", plan_text(clients=KEPT, secagg={}), "0" * 64, "")
