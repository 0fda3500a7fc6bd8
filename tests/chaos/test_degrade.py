"""Nodes that come and go, and bytes that change on the way: the round goes on without them and says so."""

from __future__ import annotations

import asyncio

from fedscale.wire.codec import digest_of
from tests.server.running import Node, Receipt, Running, plan_text, refusal

ROUNDS, FLAPPING = 20, "node-7"
NAMES = [f"node-{number}" for number in range(8)]


async def come_and_go(node: Node) -> None:
    """Break the stream whenever a task comes, and be there again a little later."""
    while True:
        ask = await node.ask()
        if ask.task.phase == "init":
            await node.initialize(ask)
            continue
        await node.leave()
        await asyncio.sleep(0.4)  # well beyond clients.rejoin, also where the server notices late
        await node.connect()


async def test_one_flapping_node_of_eight_holds_up_no_round(server: Running) -> None:
    nodes = await server.nodes(*NAMES)
    for node in nodes[:-1]:
        node.work()
    loose = asyncio.create_task(come_and_go(nodes[-1]))
    clients = {"min_per_round": 7, "wait_for": 8, "rejoin": 0.05, "deadline": 60.0}
    run = await server.submit(plan_text(rounds=ROUNDS, clients=clients))
    detail, record = await server.over(run)
    loose.cancel()
    assert detail.info.status == "completed"
    assert [row["number"] for row in record["rounds"]] == list(range(1, ROUNDS + 1))
    absent = 0
    for row in record["rounds"]:
        assert set(NAMES[:-1]) <= set(row["answered"])
        # Who was asked and is not in the sum is named with the reason.
        assert set(row["answered"]).isdisjoint(row["failures"])
        assert {failure["cause"] for failure in row["failures"].values()} <= {"lost"}
        absent += FLAPPING in row["failures"]
    assert absent > 0


async def test_an_answer_in_which_any_bit_was_flipped_on_the_way_is_never_counted(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (ask, other) = await server.begun(ada, ben, clients={"min_per_round": 2})
    body = ask.words(1.0, 10.0).tobytes()
    digest = digest_of(body)
    for position in range(8 * len(body)):
        spoiled = bytearray(body)
        spoiled[position // 8] ^= 1 << position % 8
        refused = await refusal(ada.submit(ask.key, bytes(spoiled), digest=digest))
        assert "content" in str(refused.details())
    assert (await ada.submit(ask.key, body)).verdict == Receipt.ACCEPTED
    assert (await ben.answer(other, 1.0)).verdict == Receipt.ACCEPTED
    await server.over(run)
    assert (await server.model(run)).tolist() == [1.0] * 4
