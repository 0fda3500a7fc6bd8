"""Bulk data: resumed where it broke, believed only if its content is right, delivered until the server has spoken."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from fedscale.errors import AccessDenied, BundleError, NotFound, ProtocolError
from fedscale.learner import Phase
from fedscale.proto.v1 import bulk_pb2
from fedscale.wire import codec
from fedscale.wire.codec import FETCH
from fedscale.wire.limits import FRAME, SHORT
from fedscale_client import transfer
from fedscale_client.answers import Answer
from fedscale_client.cache import Cache, Part
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome
from fedscale_client.transfer import FIRST_FRAME, Transfer
from tests.client.conftest import LEARNER, full_disk
from tests.client.coordinator import PATIENCE, Coordinator, digest, until

KEY = ("run-1", Phase.TRAIN, 3)
Receipt: TypeAlias = bulk_pb2.Receipt
BIG = os.urandom(5 * FRAME + 17)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 30)


@pytest.fixture
async def line(coordinator: Coordinator, home: NodeHome, cache: Cache) -> AsyncIterator[Transfer]:
    made = Transfer(home.settings(), cache)
    await made.use(Credentials.of(home))
    yield made
    await made.close()


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    path = tmp_path / "answer"
    path.write_bytes(BIG)
    return Answer(path, digest(BIG), len(BIG))


# --------------------------------------------------------------------------------------------------------------- fetch


async def test_who_gives_up_while_a_file_opens_leaves_it_closed(
    line: Transfer, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, parts = threading.Event(), threading.Event(), list[Part]()

    def slow(name: str, most: int) -> Part:
        begun.set()
        assert go.wait(30)
        parts.append(Part(tmp_path / name, name, most))
        return parts[0]

    monkeypatch.setattr(cache, "part", slow)
    fetching = asyncio.create_task(line.model(digest(BIG), len(BIG)))
    assert await asyncio.to_thread(begun.wait, 30)
    fetching.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    with pytest.raises(ValueError, match="closed file"):
        parts[0].take(b"more")


async def test_a_model_is_fetched_once(coordinator: Coordinator, line: Transfer) -> None:
    name = coordinator.put(BIG)
    paths = await asyncio.gather(*(line.model(name, len(BIG)) for _ in range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == BIG
    assert coordinator.fetches == [(name, 0)]


async def test_a_break_costs_what_was_on_its_way(coordinator: Coordinator, line: Transfer) -> None:
    name = coordinator.put(BIG)
    coordinator.break_fetch_after.extend([2 * FRAME, 1000, 0])
    assert (await line.model(name, len(BIG))).read_bytes() == BIG
    assert [offset for _, offset in coordinator.fetches] == [0, 2 * FRAME, 2 * FRAME + 1000, 2 * FRAME + 1000]


async def test_a_restarted_node_goes_on_where_it_was(coordinator: Coordinator, home: NodeHome, line: Transfer, cache: Cache) -> None:
    name = coordinator.put(BIG)
    coordinator.break_fetch_after.extend([3 * FRAME] + [0] * 20)
    fetching = asyncio.create_task(line.model(name, len(BIG)))
    await until(lambda: (name, 3 * FRAME) in coordinator.fetches)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    coordinator.break_fetch_after.clear()
    second = Transfer(home.settings(), cache)
    await second.use(Credentials.of(home))
    assert (await second.model(name, len(BIG))).read_bytes() == BIG
    assert coordinator.fetches[-1] == (name, 3 * FRAME)
    await second.close()


async def test_a_server_that_is_away_is_waited_for(coordinator: Coordinator, home: NodeHome, line: Transfer) -> None:
    name = coordinator.put(BIG)
    await coordinator.stop()
    fetching = asyncio.create_task(line.model(name, len(BIG)))
    await asyncio.sleep(0)
    await coordinator.start()
    await line.use(Credentials.of(home))
    assert (await fetching).read_bytes() == BIG


async def test_a_corrupt_blob_is_asked_for_again_then_refused(coordinator: Coordinator, line: Transfer) -> None:
    name = digest(b"right")
    coordinator.blobs[name] = b"wrong"
    with pytest.raises(ProtocolError, match="SHA-256 differs"):
        await line.model(name, 5)
    assert coordinator.fetches == [(name, 0)] * transfer.CORRUPT_ATTEMPTS
    coordinator.blobs[name] = b"right"
    assert (await line.model(name, 5)).read_bytes() == b"right"


async def test_a_part_that_was_spoilt_on_disk_is_fetched_anew(coordinator: Coordinator, line: Transfer, cache: Cache) -> None:
    name = coordinator.put(BIG)
    (cache._blobs / f"{name}.part").write_bytes(b"rot" * 1000)
    assert (await line.model(name, len(BIG))).read_bytes() == BIG
    assert [offset for _, offset in coordinator.fetches] == [3000, 0]


async def test_a_stream_without_end_is_cut(coordinator: Coordinator, line: Transfer) -> None:
    with pytest.raises(ProtocolError, match="longer than it may be"):
        await line.model(coordinator.put(BIG), FRAME)


async def test_a_blob_nobody_has(coordinator: Coordinator, line: Transfer) -> None:
    with pytest.raises(NotFound, match="no such blob"):
        await line.model(digest(b"?"), 1)
    assert len(coordinator.fetches) == 1


async def test_a_node_that_may_not(coordinator: Coordinator, line: Transfer) -> None:
    coordinator.refuse_bulk = AccessDenied("not yours")
    with pytest.raises(AccessDenied, match="not yours"):
        await line.model(coordinator.put(BIG), len(BIG))


async def test_a_full_disk(coordinator: Coordinator, line: Transfer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    name = coordinator.put(BIG)
    with full_disk(cache.part(name, len(BIG))) as part:
        monkeypatch.setattr(cache, "part", lambda *_: part)
        with pytest.raises(OSError, match="No space left"):
            await line.model(name, len(BIG))
    assert list(cache._blobs.iterdir()) == []


async def test_a_damaged_frame_is_fetched_again_and_nothing_else(coordinator: Coordinator, line: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    name, whole, frames = coordinator.put(BIG), codec.opened, 0

    def damaged(sent: bytes) -> memoryview:
        nonlocal frames
        frames += 1
        return whole(sent if frames != 3 else sent[:-1] + bytes([sent[-1] ^ 1]))

    monkeypatch.setattr(transfer, "opened", damaged)
    assert (await line.model(name, len(BIG))).read_bytes() == BIG
    assert coordinator.fetches == [(name, 0), (name, 2 * FRAME)]


async def test_bundles_are_unpacked_and_kept(coordinator: Coordinator, line: Transfer, tmp_path: Path) -> None:
    name = coordinator.put_app(tmp_path / "app", app=LEARNER)
    folders = await asyncio.gather(line.bundle(name), line.bundle(name))
    assert folders[0] == folders[1]
    assert (folders[0] / "app.py").read_text() == LEARNER
    assert coordinator.fetches == [(name, 0)]


async def test_a_bundle_that_is_none(coordinator: Coordinator, line: Transfer) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        await line.bundle(coordinator.put(b"PK or so"))


async def test_no_progress_ends_an_attempt(coordinator: Coordinator, line: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 2.0)
    stalled, name = asyncio.Event(), coordinator.put(BIG)
    whole = coordinator.fetch

    async def stall_once(request: bulk_pb2.FetchRequest, context: object) -> AsyncIterator[bytes]:
        if not stalled.is_set():
            stalled.set()
            yield BIG[:FRAME]
            await asyncio.Event().wait()
        monkeypatch.setattr(transfer, "STALL_SECONDS", 600.0)  # the second attempt may take its time
        async for frame in whole(request, context):
            yield frame

    monkeypatch.setattr(coordinator, "fetch", stall_once)
    await coordinator.stop()
    await coordinator.start()
    assert (await line.model(name, len(BIG))).read_bytes() == BIG
    assert coordinator.fetches == [(name, FRAME)]


# -------------------------------------------------------------------------------------------------------------- submit


async def test_an_answer_arrives_whole(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    assert await line.submit(KEY, answer) == ("accepted", "", False)
    assert coordinator.answers == [(KEY, BIG, "")]
    answer.forget()
    assert not answer.path.exists()


async def test_a_first_model_brings_its_schema(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    first = Answer(answer.path, answer.digest, answer.size, '[["w",[3],"float32"]]')
    await line.submit(KEY, first)
    assert coordinator.answers[0][2] == first.schema


async def test_an_upload_goes_on_where_it_broke(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    coordinator.break_submit_after.extend([FRAME, 3 * FRAME // 2, FRAME])
    assert (await line.submit(KEY, answer)).word == "accepted"
    assert coordinator.answers == [(KEY, BIG, "")]
    assert coordinator.offsets[0] == 0
    assert coordinator.offsets == sorted(set(coordinator.offsets))
    assert len(coordinator.offsets) == 4


async def test_a_node_that_comes_back_goes_on_where_it_was(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    coordinator.arrived[answer.digest] = BIG[: 2 * FRAME]
    assert (await line.submit(KEY, answer)).word == "accepted"
    assert coordinator.offsets == [2 * FRAME]
    assert coordinator.answers == [(KEY, BIG, "")]


@pytest.mark.parametrize(("size", "offset"), [(SHORT, 0), (SHORT + 1, 7)])
async def test_what_fits_into_a_short_frame_is_sent_without_asking(
    coordinator: Coordinator, line: Transfer, tmp_path: Path, size: int, offset: int
) -> None:
    path = tmp_path / "short"
    path.write_bytes(body := BIG[:size])
    coordinator.arrived[digest(body)] = body[:7]
    assert (await line.submit(KEY, Answer(path, digest(body), size))).word == "accepted"
    assert coordinator.offsets == [offset]


async def test_a_server_that_has_everything_is_sent_nothing(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    coordinator.arrived[answer.digest] = BIG
    assert (await line.submit(KEY, answer)).word == "accepted"
    assert coordinator.offsets == [len(BIG)]


async def test_frames_grow_on_a_quick_line_and_shrink_on_a_slow_one(
    coordinator: Coordinator, line: Transfer, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    take = line._throttle.take

    async def noted(count: int) -> None:
        sizes.append(count)
        await take(count)

    monkeypatch.setattr(line._throttle, "take", noted)
    monkeypatch.setattr(transfer, "QUICK_SECONDS", 3600.0)
    await line.submit(KEY, answer)
    assert (sizes[:3], max(sizes), sum(sizes)) == ([FIRST_FRAME, 2 * FIRST_FRAME, 4 * FIRST_FRAME], FRAME, len(BIG))
    sizes.clear()
    monkeypatch.setattr(transfer, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(transfer, "SLOW_SECONDS", 0.0)
    await line.submit(KEY, answer)
    assert sizes[:3] == [FIRST_FRAME, FIRST_FRAME >> 1, FIRST_FRAME >> 2]
    assert set(sizes[2:-1]) == {transfer.LEAST_FRAME}


async def test_frames_stay_small_where_the_site_gives_little_of_its_line(
    coordinator: Coordinator, line: Transfer, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes a stream for dead in which nothing comes for long; at a low rate a large frame would take that long."""
    sizes: list[int] = []

    async def waited(count: int) -> None:
        sizes.append(count)
        await asyncio.sleep(0.02)

    monkeypatch.setattr(line._throttle, "take", waited)
    monkeypatch.setattr(transfer, "QUICK_SECONDS", 0.015)
    monkeypatch.setattr(transfer, "SLOW_SECONDS", 3600.0)
    await line.submit(KEY, answer)
    assert set(sizes[:-1]) == {FIRST_FRAME}


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_busy_server_is_asked_again(coordinator: Coordinator, line: Transfer, answer: Answer, code: grpc.StatusCode) -> None:
    coordinator.verdicts.extend([code] * 3)
    assert (await line.submit(KEY, answer))[0] == "accepted"
    assert coordinator.attempts == 4
    assert len(coordinator.answers) == 1


@pytest.mark.parametrize("verdict", ["DUPLICATE", "CLOSED", "REJECTED"])
async def test_the_server_decides(coordinator: Coordinator, line: Transfer, answer: Answer, verdict: str) -> None:
    """CLOSED comes before the server has read a byte of an answer that is larger than any window."""
    coordinator.verdicts.append(Receipt(verdict=Receipt.Verdict.Value(verdict), reason="because"))
    assert await line.submit(KEY, answer) == (verdict.lower(), "because", False)


async def test_a_receipt_that_says_nothing(coordinator: Coordinator, line: Transfer, answer: Answer) -> None:
    coordinator.verdicts.append(Receipt())
    with pytest.raises(ProtocolError, match="did not say what became"):
        await line.submit(KEY, answer)


@pytest.mark.parametrize(("code", "what"), [(grpc.StatusCode.INVALID_ARGUMENT, "scripted"), (grpc.StatusCode.UNIMPLEMENTED, "another release")])
async def test_an_answer_the_server_will_not_hear(coordinator: Coordinator, line: Transfer, answer: Answer, code: grpc.StatusCode, what: str) -> None:
    """An early refusal may be lost under the bytes still on their way; it comes again at the next attempt."""
    coordinator.verdicts.extend([code] * 30)
    with pytest.raises(ProtocolError, match=what):
        await line.submit(KEY, answer)
    assert coordinator.answers == []


async def test_an_answer_waits_for_the_server_to_come_back(coordinator: Coordinator, home: NodeHome, line: Transfer, answer: Answer) -> None:
    await coordinator.stop()
    sending = asyncio.create_task(line.submit(KEY, answer))
    await asyncio.wait({sending}, timeout=0.3)
    assert not sending.done()
    await coordinator.start()
    await line.use(Credentials.of(home))
    assert (await sending)[0] == "accepted"


async def test_a_fresh_connection_ends_a_long_pause(coordinator: Coordinator, home: NodeHome, line: Transfer, answer: Answer) -> None:
    pauses: list[float] = []

    def for_ever(attempt: int, error: object = None) -> float:
        pauses.append(3600.0)
        return pauses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "pause", for_ever)
        coordinator.verdicts.append(grpc.StatusCode.UNAVAILABLE)
        sending = asyncio.create_task(line.submit(KEY, answer))
        await until(lambda: pauses)
        await line.use(Credentials.of(home))
        assert (await asyncio.wait_for(sending, PATIENCE))[0] == "accepted"


async def test_nothing_is_sent_before_there_is_a_server(coordinator: Coordinator, home: NodeHome, cache: Cache, answer: Answer) -> None:
    fresh = Transfer(home.settings(), cache)
    sending = asyncio.create_task(fresh.submit(KEY, answer))
    await asyncio.wait({sending}, timeout=0.05)
    assert coordinator.attempts == 0
    await fresh.use(Credentials.of(home))
    assert (await sending)[0] == "accepted"
    await fresh.close()


async def test_a_channel_in_use_is_closed_by_its_last_user(coordinator: Coordinator, home: NodeHome, line: Transfer, cache: Cache) -> None:
    name = coordinator.put(BIG)
    async with line._channel() as former:
        await line.use(Credentials.of(home))
        async with line._channel() as current:
            assert current is not former
        fetch: grpc.aio.UnaryStreamMultiCallable[bulk_pb2.FetchRequest, bytes] = former.unary_stream(
            FETCH, bulk_pb2.FetchRequest.SerializeToString, codec.unsealed
        )
        assert isinstance(await fetch(bulk_pb2.FetchRequest(digest=name)).read(), bytes)
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        fetch(bulk_pb2.FetchRequest(digest=name))
