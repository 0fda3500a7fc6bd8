"""Uploads that break: on the way, at the server, at the node. What has arrived is not sent again, and nothing counts twice."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fedscale.proto.v1 import bulk_pb2
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, OFFSET, OFFSET_KEY, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, frames, sealed
from fedscale.wire.convert import key_text
from fedscale_server import admission, doorway
from fedscale_server.admission import Admission, Pass
from fedscale_server.services import bulk
from tests.server.running import Ask, Node, Receipt, Running, plan_text, refusal, soon, until

LENGTH = 300_000
LARGE = Schema.of({"w": np.zeros(LENGTH, np.float32)})
DELTA = np.random.default_rng(7).normal(0, 1, LENGTH).astype(np.float32)


async def begun(server: Running, *nodes: Node, **plan: Any) -> tuple[str, list[Ask]]:
    """A run with a model of more than a megabyte, whose first round asks these nodes."""
    run = await server.submit(plan_text(**{"clients": {"min_per_round": len(nodes)}, **plan}))
    first = await until(lambda: next((n for n in nodes if n.asks and n.asks[-1].run == run), None))
    assert (await first.initialize(await first.ask("init"), schema=LARGE)).verdict == Receipt.ACCEPTED
    return run, [await node.ask("train") for node in nodes]


async def offset(node: Node, ask: Ask, body: bytes) -> int:
    """How much the server says it has."""
    call: Any = node.channel.unary_unary(OFFSET, bulk_pb2.OffsetRequest.SerializeToString, bulk_pb2.OffsetReply.FromString)
    return int((await soon(call(bulk_pb2.OffsetRequest(task=key_text(ask.key), digest=digest_of(body))))).offset)


async def send(node: Node, ask: Ask, body: bytes, start: int, parts: Any = None, **facts: str) -> Any:
    """One attempt from an offset on."""
    given = {"digest": digest_of(body), "size": str(len(body)), **facts}
    metadata: list[tuple[str, str | bytes]] = [(TASK_KEY, key_text(ask.key)), (DIGEST_KEY, given["digest"]), (SIZE_KEY, given["size"])]
    return await soon(node.send(SUBMIT, frames(body, start) if parts is None else parts, [*metadata, (OFFSET_KEY, str(start))]))


async def broken(server: Running, node: Node, ask: Ask, body: bytes, start: int, end: int) -> None:
    """An attempt whose connection breaks once the server has everything up to ``end``."""

    async def parts() -> AsyncIterator[bytes]:
        for at in range(start, end, 50_000):
            yield body[at : min(at + 50_000, end)]
        await asyncio.Event().wait()

    sending = asyncio.create_task(send(node, ask, body, start, parts()))
    (path,) = await until(lambda: list(server.path.glob(f"runs/*/uploads/*-{node.name}-*")))
    await until(lambda: path.stat().st_size >= end)
    sending.cancel()


async def test_an_upload_goes_on_where_it_broke_at_any_offset(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await begun(server, ada, ben)
    body = of_ada.words(DELTA).tobytes()
    cuts = sorted({1, 15, 17, 4096, 65_537, *np.random.default_rng(3).integers(1, len(body), 6).tolist(), len(body) - 1})
    for start, end in zip([0, *cuts], cuts, strict=False):
        await broken(server, ada, of_ada, body, start, end)
        assert await offset(ada, of_ada, body) == end
    assert (await send(ada, of_ada, body, cuts[-1])).verdict == Receipt.ACCEPTED
    assert (await ben.submit(of_ben.key, of_ben.words(DELTA).tobytes())).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[1]["rounds"][0]["answered"] == ["ada", "ben"]
    whole = await server.model(run)
    np.testing.assert_allclose(whole, DELTA, atol=1e-4)


async def test_an_upload_outlives_the_server(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await begun(server, ada, ben, clients={"min_per_round": 2, "rejoin": 60.0, "deadline": 120.0})
    body = of_ada.words(DELTA).tobytes()
    assert (await ben.submit(of_ben.key, of_ben.words(-DELTA).tobytes())).verdict == Receipt.ACCEPTED
    await broken(server, ada, of_ada, body, 0, 700_000)
    await server.restart()
    for node in (ada, ben):
        await node.leave()
        await node.connect()
    again = await ada.ask("train")
    assert again.key == of_ada.key
    assert await offset(ada, again, body) == 700_000
    assert (await send(ada, again, body, 700_000)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[1]["rounds"][0]["answered"] == ["ada", "ben"]
    assert np.abs(await server.model(run)).max() == 0.0


async def test_a_damaged_frame_costs_itself(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await begun(server, ada)
    body = ask.words(DELTA).tobytes()

    async def damaged() -> AsyncIterator[bytes]:
        yield sealed(body[:500_000])
        whole = bytearray(sealed(body[500_000:900_000]))
        whole[1234] ^= 0x40
        yield bytes(whole)
        yield sealed(body[900_000:])

    metadata = ((TASK_KEY, key_text(ask.key)), (DIGEST_KEY, digest_of(body)), (SIZE_KEY, str(len(body))))
    raw: Any = ada.channel.stream_unary(SUBMIT, None, Receipt.FromString)
    error = await refusal(raw(damaged(), metadata=metadata))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "a frame was damaged on its way (its seal differs); send it again"
    assert await offset(ada, ask, body) == 500_000
    assert (await send(ada, ask, body, 500_000)).verdict == Receipt.ACCEPTED
    await server.over(run)
    np.testing.assert_allclose(await server.model(run), DELTA, atol=1e-4)


@pytest.mark.parametrize("start", [1, 999_999])
async def test_an_offset_beyond_what_is_there_is_refused_for_now(server: Running, start: int) -> None:
    ada = await server.node("ada")
    _, (ask,) = await begun(server, ada)
    body = ask.words(DELTA).tobytes()
    # Early refusals get lost under frames that are on their way; so there are none.
    error = await refusal(send(ada, ask, body, start, []))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "does not begin where the last one ended; ask for the offset again" in (error.details() or "")
    assert (await send(ada, ask, body, 0)).verdict == Receipt.ACCEPTED


async def test_a_beginning_of_another_answer_is_not_mixed_with_this_one(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await begun(server, ada)
    former, body = ask.words(-DELTA).tobytes(), ask.words(DELTA).tobytes()
    await broken(server, ada, ask, former, 0, 400_000)
    assert await offset(ada, ask, body) == 0
    # Asking has given the other one up: a node has one answer to a task.
    assert await offset(ada, ask, former) == 0
    assert (await send(ada, ask, body, 0)).verdict == Receipt.ACCEPTED
    await server.over(run)
    np.testing.assert_allclose(await server.model(run), DELTA, atol=1e-4)


async def test_a_beginning_under_a_false_name_is_given_up(server: Running) -> None:
    ada = await server.node("ada")
    _, (ask,) = await begun(server, ada)
    body = ask.words(DELTA).tobytes()

    async def other() -> AsyncIterator[bytes]:
        yield b"x" * 400_000
        await asyncio.Event().wait()

    sending = asyncio.create_task(send(ada, ask, body, 0, other()))
    await until(lambda: [path for path in server.path.glob("runs/*/uploads/*") if path.stat().st_size == 400_000])
    sending.cancel()
    assert await offset(ada, ask, body) == 400_000
    error = await refusal(send(ada, ask, body, 400_000))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "an answer does not fit its beginning" in (error.details() or "")
    assert await offset(ada, ask, body) == 0
    assert (await send(ada, ask, body, 0)).verdict == Receipt.ACCEPTED


async def test_a_newer_upload_of_a_node_takes_the_place_of_a_dead_one(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await begun(server, ada, ben)
    body = of_ada.words(DELTA).tobytes()

    async def dead() -> AsyncIterator[bytes]:
        yield body[:300_000]
        await asyncio.Event().wait()

    former = asyncio.create_task(refusal(send(ada, of_ada, body, 0, dead())))
    await until(lambda: [path for path in server.path.glob("runs/*/uploads/*") if path.stat().st_size == 300_000])
    assert (await send(ada, of_ada, body, await offset(ada, of_ada, body))).verdict == Receipt.ACCEPTED
    assert (await former).details() == "a newer upload of the same node has begun"
    await ben.submit(of_ben.key, of_ben.words(DELTA).tobytes())
    assert (await server.over(run))[1]["rounds"][0]["weight"] == 20.0


async def test_an_answer_that_is_being_taken_is_not_sent_again(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line breaks between the last frame and the receipt."""
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await begun(server, ada, ben)
    driver = server.engine.driver(run)
    assert driver is not None
    reached, release, whole, enter, entered = asyncio.Event(), asyncio.Event(), driver.answered, Admission.enter, list[int]()

    async def held(*given: Any) -> Any:
        reached.set()
        await release.wait()
        return await whole(*given)

    def noted(admission: Admission, size: int) -> Pass:
        entered.append(size)
        return enter(admission, size)

    monkeypatch.setattr(driver, "answered", held)
    monkeypatch.setattr(Admission, "enter", noted)
    body = of_ada.words(DELTA).tobytes()
    sending = asyncio.create_task(send(ada, of_ada, body, 0))
    await soon(reached.wait())
    sending.cancel()
    assert await offset(ada, of_ada, body) == len(body)
    again = asyncio.create_task(send(ada, of_ada, body, len(body)))
    await until(lambda: len(entered) == 2)
    release.set()
    assert (await again).verdict == Receipt.DUPLICATE
    assert await offset(ada, of_ada, body) == 0
    await ben.submit(of_ben.key, of_ben.words(DELTA).tobytes())
    assert (await server.over(run))[1]["rounds"][0]["weight"] == 20.0


async def test_only_who_owes_an_answer_hears_or_leaves_anything(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await begun(server, ada)
    eve = await server.node("eve")
    body = ask.words(DELTA).tobytes()
    await broken(server, ada, ask, body, 0, 100_000)
    assert await offset(eve, ask, body) == 0
    assert (await send(eve, ask, body, 100_000, [])).verdict == Receipt.CLOSED
    for text, name in ((f"{run}/train/1", "../x"), ("nonsense", digest_of(body))):
        call: Any = ada.channel.unary_unary(OFFSET, bulk_pb2.OffsetRequest.SerializeToString, bulk_pb2.OffsetReply.FromString)
        assert (await refusal(call(bulk_pb2.OffsetRequest(task=text, digest=name)))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [path.name.rpartition("-")[0] for path in server.path.glob("runs/*/uploads/*")] == ["train-1-ada"]
    assert (await send(ada, ask, body, 100_000)).verdict == Receipt.ACCEPTED


async def test_slow_uploads_hold_no_healthy_one_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are turns, each with a frame that never ends; none of them flows, so none is waited for."""
    monkeypatch.setattr(bulk, "FLOW_SECONDS", 3600.0)
    slow = await server.nodes(*(f"s{i}" for i in range(3 * server.settings.uploads_at_once)))
    fit = await server.node("fit")
    names = len(slow) + 1
    _, asks = await begun(server, *slow, fit, clients={"min_per_round": names})
    hold = asyncio.Event()

    async def trickle(body: bytes) -> AsyncIterator[bytes]:
        yield body[:1]
        await hold.wait()
        yield body[1:]

    bodies = [ask.words(DELTA).tobytes() for ask in asks]
    sending = [asyncio.create_task(send(n, a, b, 0, trickle(b))) for n, a, b in zip(slow, asks, bodies, strict=False)]
    await until(lambda: len([p for p in server.path.glob("runs/*/uploads/*") if p.stat().st_size == 1]) == len(slow))
    assert (await send(fit, asks[-1], bodies[-1], 0)).verdict == Receipt.ACCEPTED
    assert not any(task.done() for task in sending)
    hold.set()
    assert {receipt.verdict for receipt in await soon(asyncio.gather(*sending))} == {Receipt.ACCEPTED}


async def test_nodes_are_told_to_send_while_there_is_room(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to wait has sent nothing yet; whoever owes nothing waits for nobody."""
    monkeypatch.setattr(doorway, "PATIENCE_SECONDS", 3600.0)
    nodes = await server.nodes(*(f"n{i}" for i in range(server.settings.uploads_at_once // 2 + 2)))
    _, asks = await begun(server, *nodes)
    bodies = [ask.words(DELTA).tobytes() for ask in asks]
    for node, ask, body in zip(nodes[:-1], asks, bodies, strict=False):
        assert await offset(node, ask, body) == 0
    waiting = asyncio.create_task(offset(nodes[-1], asks[-1], bodies[-1]))
    later = replace(asks[-1], task=replace(asks[-1].task, number=2))
    for _ in range(3):
        assert await offset(nodes[-1], later, bodies[-1]) == await offset(nodes[0], asks[0], bodies[0]) == 0
    assert not waiting.done()
    assert (await send(nodes[0], asks[0], bodies[0], 0)).verdict == Receipt.ACCEPTED
    assert await soon(waiting) == 0
    assert await offset(nodes[0], asks[0], bodies[0]) == 0
    for node, ask, body in list(zip(nodes, asks, bodies, strict=True))[1:]:
        assert (await send(node, ask, body, 0)).verdict == Receipt.ACCEPTED


async def test_a_spent_budget_sends_away_with_a_time_to_come_back(tmp_path: Path, sqlite_at_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_COST", 3 << 20)
    server = await Running.start(tmp_path / "small", sqlite_at_head, upload_bytes=16 << 20)
    try:
        nodes = await server.nodes(*(f"n{i:02}" for i in range(16)))
        _, asks = await begun(server, *nodes)
        hold = asyncio.Event()

        async def held(body: bytes) -> AsyncIterator[bytes]:
            await hold.wait()
            yield body

        bodies = [ask.words(DELTA).tobytes() for ask in asks]
        sending = [asyncio.create_task(send(n, a, b, 0, held(b))) for n, a, b in zip(nodes, asks, bodies, strict=True)]
        await until(lambda: any(task.done() for task in sending))
        refused = [task.exception() for task in sending if task.done()]
        for error in refused:
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert 0 < int(dict(error.trailing_metadata() or ())["retry-after-ms"]) <= 45_000
        hold.set()
        outcomes = await soon(asyncio.gather(*sending, return_exceptions=True))
        later = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
        for n in later:
            assert (await send(nodes[n], asks[n], bodies[n], 0)).verdict == Receipt.ACCEPTED
        assert len(later) == 16 - 16 * (1 << 20) // len(bodies[0])
    finally:
        await server.close()


async def test_an_upload_that_stands_still_ends_and_goes_on_later(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    _, (ask,) = await begun(server, ada)
    body, more = ask.words(DELTA).tobytes(), asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield body[:100_000]
        await more.wait()
        yield body[100_000:123_456]
        await asyncio.Event().wait()

    sending = asyncio.create_task(refusal(send(ada, ask, body, 0, stuck())))
    await until(lambda: [path for path in server.path.glob("runs/*/uploads/*") if path.stat().st_size == 100_000])
    with monkeypatch.context() as short:  # while nothing flows
        short.setattr(bulk, "STALL_SECONDS", 0.2)
        more.set()
        error = await sending
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "a transfer stands still (nothing came for 0.2 s); send it again")
    assert await offset(ada, ask, body) == 123_456
    assert (await send(ada, ask, body, 123_456)).verdict == Receipt.ACCEPTED


async def test_what_a_dead_server_left_behind_a_run_is_gone_after_the_next_start(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await begun(server, ada)
    await send(ada, ask, ask.words(DELTA).tobytes(), 0)
    await server.over(run)
    folder = server.path / "runs" / run
    for name in ("answers/train-1-ada-0", "uploads/train-1-ada-0", "blobs/staging/0000-1", "round.key"):
        (folder / name).write_bytes(os.urandom(40))
    await server.restart()
    assert not list(folder.glob("answers/*")) + list(folder.glob("uploads/*")) + list(folder.glob("blobs/staging/*"))
    assert not (folder / "round.key").exists()
    assert len(await server.model(run)) == LENGTH


async def test_answers_lie_on_disk_hidden_and_unreadable_once_the_round_is_closed(server: Running) -> None:
    """A planted pattern is looked for in every file of the server, while the round is open and after it."""
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await begun(server, ada, ben)
    body = of_ada.words(DELTA).tobytes()
    marks = [body[at : at + 24] for at in range(0, 1_000_000, 99_991)]
    assert (await send(ada, of_ada, body, 0)).verdict == Receipt.ACCEPTED

    def seen() -> list[str]:
        found = [path for path in server.path.rglob("*") if path.is_file()]
        return [path.name for path in found if any(mark in path.read_bytes() for mark in marks)]

    (kept,) = server.path.glob("runs/*/answers/*")
    (key,) = server.path.glob("runs/*/round.key")
    assert kept.stat().st_size == len(body)
    assert seen() == []
    copy, secret = kept.read_bytes(), key.read_bytes()
    await ben.submit(of_ben.key, of_ben.words(DELTA).tobytes())
    await server.over(run)
    assert seen() == []
    everything = b"".join(path.read_bytes() for path in server.path.rglob("*") if path.is_file())
    assert secret not in everything
    assert copy[:64] not in everything
    assert zlib.crc32(copy) != zlib.crc32(body)
