"""A power cut at every moment of a led run: leader, nodes and server begin again, and come to the end that they would have come to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import pytest

from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale_server import courier, engine
from fedscale_server.store import blobs
from tests.chaos.platter import SURE, Remains, refusing
from tests.chaos.test_power import ERRORS, platter_of
from tests.chaos.ward import NAMES, PATIENCE, ROUNDS, WHOLE, Ward
from tests.server.running import Node, Receipt, plan_text, until
from tests.server.test_courier import Leader, letter

FIRST = b"the first content"


def reply_of(name: str, content: bytes) -> bytes:
    """What a node says to a content, the same whenever it is asked."""
    return digest_of(name.encode() + content).encode()


def end() -> bytes:
    """The content of the letter that would come after the last round."""
    content = FIRST
    for _ in range(ROUNDS):
        content = b"".join(reply_of(name, content) for name in NAMES)
    return content


async def insisted(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call gives once the server can store what it asks for."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.01)


async def answer(ward: Ward, node: Node, run: str) -> None:
    """Reply to whatever a node is asked, until it is told that the run is over."""
    while True:
        over = await until(lambda: (run, "message", 0) in node.released or (len(node.asks) > node.taken and "asked"))
        if over != "asked":
            return
        ask = await node.ask()
        content = await node.fetch(ask.task.model)
        receipt = await insisted(partial(node.submit, ask.key, reply_of(node.name, content)))
        if receipt.verdict == Receipt.ACCEPTED:
            ward.accepted.append((run, ask.task.number, node.name))
            ward.told(ward.accepted[-1])


async def begun(ward: Ward, key: str) -> str:
    """A led run in which everybody takes part."""
    clients = {"min_per_round": len(NAMES), "rejoin": WHOLE, "deadline": WHOLE}
    plan = plan_text(strategy={"name": "led", "rounds": ROUNDS}, clients=clients)
    return str(await insisted(partial(ward.running.submit, plan, key=key)))


async def lead(ward: Ward, run: str) -> None:
    """Lead a run from its beginning, as a leader does that was started again: each round's content is made of the replies to the last one's."""
    leader, content = Leader(ward.running, run), FIRST
    await insisted(leader.collect)
    for number in range(1, ROUNDS + 1):
        letters = [letter(name, number, content=digest_of(content), size=len(content)) for name in NAMES]
        if await insisted(partial(leader.post, *letters)):
            await insisted(partial(leader.put, content))
            assert await insisted(partial(leader.post, *letters)) == []
        heard = {reply.node: reply.data for reply in [await leader.next() for _ in NAMES] if (reply.number, reply.cause) == (number, "")}
        content = b"".join(heard[name] for name in NAMES)
    await insisted(partial(leader.conclude, model=digest_of(content)))


async def led(ward: Ward, run: str) -> None:
    """Everybody does their part until the run is over."""
    await ward.connect()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(lead(ward, run), *(answer(ward, node, run) for node in ward.nodes))


async def faults_of(ward: Ward, run: str) -> list[str]:
    """What is wrong with a run that is over."""
    reply, record = await ward.running.over(run)
    left = [path for path in (ward.running.path / "runs" / run).rglob("*") if path.is_file()]
    checks = {
        f"it ended as {reply.info.status}: {reply.info.reason}": reply.info.status == "completed",
        f"it ended elsewhere: {record['extra']}": record["extra"].get("hashes") == {"model.safetensors": digest_of(end())},
        f"in it are {[row['answered'] for row in record['rounds']]}": [row["answered"] for row in record["rounds"]] == [sorted(NAMES)] * ROUNDS,
        f"left behind: {[path.name for path in left]}": not left,
    }
    return [fault for fault, right in checks.items() if not right]


async def faults_after(former: Ward, run: str, remains: Remains, folder: Path) -> list[str]:
    """What is wrong with a run that goes on after a power cut."""
    # What an earlier process has staged is told by its name.
    with patch.object(blobs, "PROCESS", folder.name):
        return await _faults_after(await Ward.reopen(folder, remains, former), run, remains)


async def _faults_after(ward: Ward, run: str, remains: Remains) -> list[str]:
    try:
        if not await ward.knows(run):
            return [f"{remains.told} were accepted and the run is gone"] if remains.told else []
        if not await ward.over(run):
            await led(ward, run)
        again = set(ward.accepted) & set(remains.told)
        return [*await faults_of(ward, run), *([f"asked again: {again}"] if again else [])]
    except (TimeoutError, grpc.aio.AioRpcError, KeyError) as error:
        return [f"it does not go on: {error!r}"]
    finally:
        await ward.close()


@pytest.mark.timeout(1800)
async def test_a_power_cut_at_any_moment_of_a_led_run_loses_and_doubles_nothing(tmp_path: Path, sqlite_at_head: Path) -> None:
    ward = await Ward.open(tmp_path / "home", sqlite_at_head)
    platter = platter_of(tmp_path)
    ward.told = platter.tell
    with platter.watched(*SURE):
        run = await begun(ward, "only")
        await led(ward, run)
        platter.cut("the end")
    try:
        found = list(platter.remains.values())
        faults = {at: await faults_after(ward, run, remains, tmp_path / f"cut-{at}") for at, remains in enumerate(found)}
        assert {len(remains.told) for remains in found} >= {0, ROUNDS * len(NAMES)}
        assert await faults_of(ward, run) == []
        assert [event.kind async for event in ward.running.admin.control.WatchRun(pb.WatchRunRequest(run=run), timeout=30)].count("answered") == 4
    finally:
        await ward.close()
    assert [(found[at].how, found[at].after, fault) for at, fault in faults.items() if fault] == []


@pytest.mark.timeout(1800)
async def test_whichever_call_the_disk_refuses_a_led_run_goes_on(tmp_path: Path, sqlite_at_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run meets one refusal, each at the call behind the last one's."""
    for module in (engine, courier):
        monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    ward = await Ward.open(tmp_path / "home", sqlite_at_head)
    platter, faults = platter_of(tmp_path), dict[str, list[str]]()
    try:
        with platter.watched(), refusing(platter):
            while not faults or platter.failed:
                platter.refuse(len(faults) + 1, ERRORS[len(faults) % 2])
                run = await begun(ward, f"key-{len(faults)}")
                await led(ward, run)
                faults[f"{len(faults)}: {platter.calls[min(len(faults), len(platter.calls) - 1)]}"] = await faults_of(ward, run)
    finally:
        await ward.close()
    assert len(faults) > 30
    assert {call: fault for call, fault in faults.items() if fault} == {}
