"""Bulk transfer on the wire: every malformed, foreign, late or poisoned message, and what it leaves behind, which is nothing."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fedscale.identity import Role
from fedscale.proto.v1 import bulk_pb2
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.ring import LIMBS, WORD
from fedscale.vector import Schema
from fedscale.wire.codec import DIGEST_KEY, FETCH, SIZE_KEY, SUBMIT, TASK_KEY, digest_of, opened, sealed
from fedscale.wire.convert import key_text
from fedscale.wire.limits import FRAME, METADATA
from fedscale_server import outflow
from fedscale_server.driver import Driver
from fedscale_server.home import Home
from fedscale_server.inflow import AHEAD
from fedscale_server.outflow import LEAST_FRAME, LEAST_SHARE
from fedscale_server.registry import Registry
from fedscale_server.services import bulk
from fedscale_server.services.bulk import BulkService
from fedscale_server.trail import Trail
from fedscale_server.uploads import Upload
from tests.server.running import BUNDLE, PATIENCE, SCHEMA, Ask, Node, Receipt, Running, plan_text, refusal, soon, until

BAD = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
GOOD = "0" * 64


def left(server: Running) -> list[str]:
    """Files of answers and uploads that lie about."""
    runs = server.path / "runs"
    folders = [*runs.glob("*/answers"), *runs.glob("*/uploads"), *runs.glob("*/blobs/staging"), server.path / "bundles" / "staging"]
    return [str(path.relative_to(server.path)) for folder in folders for path in folder.iterdir()]


async def sent(node: Node, ask: Ask, **facts: Any) -> grpc.aio.AioRpcError:
    """The refusal of a sound answer with some facts changed."""
    body = ask.words(1.0).tobytes()
    given = {"key": key_text(ask.key), "body": body, **facts}
    return await refusal(node.submit(given.pop("key"), given.pop("body"), **given))


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"key": ""}, "a task key is malformed"),
    "task of two parts": ({"key": "run/train"}, "a task key is malformed"),
    "task of four parts": ({"key": "run/train/1/2"}, "a task key is malformed"),
    "unknown phase": ({"key": "run/attack/1"}, "a task key is malformed"),
    "negative round": ({"key": "run/train/-1"}, "a task key is malformed"),
    "round that is no number": ({"key": "run/train/one"}, "a task key is malformed"),
    "round beyond all bounds": ({"key": f"run/train/{'9' * 5000}"}, "a task key is malformed"),
    "digest too short": ({"digest": "abc"}, "a transfer does not announce its digest and size"),
    "digest in capitals": ({"digest": "A" * 64}, "a transfer does not announce its digest and size"),
    "digest that is a path": ({"digest": f"../../../{'a' * 55}"}, "a transfer does not announce its digest and size"),
    "size that is no number": ({"size": "many"}, "a transfer does not announce its digest and size"),
    "negative size": ({"size": "-1"}, "a transfer does not announce its digest and size"),
    "size beyond all bounds": ({"size": "9" * 5000}, "a transfer does not announce its digest and size"),
    "size too small": ({"size": "4"}, "an answer of 4 bytes (the round asks for 56)"),
    "size too large": ({"size": "999999"}, "an answer of 999999 bytes (the round asks for 56)"),
    "no bytes at all": ({"body": b"", "size": "0"}, "an answer of 0 bytes (the round asks for 56)"),
    "stream longer than announced": ({"parts": [b"x" * 56, b"x"]}, "a stream is longer than it announced"),
    "one endless frame": ({"parts": [b"x" * (1 << 20)]}, "a stream is longer than it announced"),
    "another content": ({"parts": [b"x" * 56]}, "a stream does not have the content it announced (its SHA-256 differs)"),
    "wrong hash": ({"digest": GOOD}, "a stream does not have the content it announced (its SHA-256 differs)"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_answer_is_refused_and_the_sound_one_still_counts(server: Running, case: str) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    facts, told = MALFORMED[case]
    facts = {**facts, "key": facts["key"].replace("run/", f"{run}/")} if "key" in facts else facts
    error = await sent(ada, ask, **facts)
    assert (error.code(), error.details()) == (BAD, told)
    assert left(server) == []
    assert (await ada.answer(ask, 2.0)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[1]["rounds"][0]["answered"] == ["ada"]
    assert (await server.model(run)).tolist() == [2.0] * 4


async def test_a_stream_that_ends_too_early_is_refused_and_its_beginning_is_gone_with_its_round(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    error = await sent(ada, ask, parts=[b"x" * 40])
    assert (error.code(), error.details()) == (BAD, "a stream ended 16 bytes too early")
    assert len(left(server)) == 1
    assert (await ada.answer(ask, 2.0)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[1]["rounds"][0]["answered"] == ["ada"]
    assert left(server) == []


async def test_metadata_is_bounded(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    error = await refusal(ada.send(SUBMIT, [], [(TASK_KEY, "x" * (METADATA + (1 << 20))), (DIGEST_KEY, GOOD), (SIZE_KEY, "1")]))
    assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    assert (await ada.answer(ask, 2.0)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[0].info.status == "completed"


UNWANTED: dict[str, tuple[Callable[[str], str], str]] = {
    "a run that never was": (lambda _: "no-such-run/train/1", "the run is over"),
    "a round to come": (lambda run: f"{run}/train/2", "the round is over or does not ask this node"),
    "another phase": (lambda run: f"{run}/evaluate/1", "the round is over or does not ask this node"),
    "the first model again": (lambda run: f"{run}/init/0", "the round is over or does not ask this node"),
}


@pytest.mark.parametrize("case", UNWANTED)
async def test_an_answer_that_nobody_asked_for_is_let_go(server: Running, case: str) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    key, reason = UNWANTED[case]
    receipt = await ada.submit(key(run), ask.words(1.0).tobytes(), schema=SCHEMA.to_json())
    assert (receipt.verdict, receipt.reason) == (Receipt.CLOSED, reason)
    assert left(server) == []


async def test_nobody_answers_for_another_node(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    eve = await server.node("eve")
    receipt = await eve.submit(ask.key, ask.words(1.0).tobytes())
    assert (receipt.verdict, receipt.reason) == (Receipt.CLOSED, "the round is over or does not ask this node")
    await ada.answer(ask, 2.0)
    assert (await server.over(run))[1]["rounds"][0]["answered"] == ["ada"]


async def test_an_answer_counts_once(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben)
    assert (await ada.answer(of_ada, 2.0)).verdict == Receipt.ACCEPTED
    assert (await ada.answer(of_ada, 2.0)).verdict == Receipt.DUPLICATE
    other = await ada.answer(of_ada, 3.0)
    assert (other.verdict, other.reason) == (Receipt.REJECTED, "another answer of this node was accepted for this round")
    await ben.answer(of_ben, 4.0)
    _, record = await server.over(run)
    assert (await server.model(run)).tolist() == [3.0] * 4
    assert record["rounds"][0]["weight"] == 20.0
    late = await ada.answer(of_ada, 2.0)
    assert (late.verdict, late.reason) == (Receipt.CLOSED, "the run is over")


async def test_the_same_answer_twice_at_once_counts_once(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben)
    heard = await asyncio.gather(*(ada.answer(of_ada, 2.0) for _ in range(3)), return_exceptions=True)
    given_way = [error.details() for error in heard if isinstance(error, grpc.aio.AioRpcError)]
    verdicts = [answer.verdict for answer in heard if not isinstance(answer, BaseException)]
    assert set(given_way) <= {"a newer upload of the same node has begun"}
    assert sorted(verdicts) == [Receipt.ACCEPTED, *[Receipt.DUPLICATE] * (2 - len(given_way))]
    await ben.answer(of_ben, 4.0)
    await server.over(run)
    assert (await server.model(run)).tolist() == [3.0] * 4
    assert left(server) == []


def weightless(words: Any, ask: Ask) -> None:
    words[ask.task.layout.size : ask.task.layout.size + LIMBS] = 0


def overweight(words: Any, ask: Ask) -> None:
    layout = ask.task.layout
    words[layout.size : layout.size + LIMBS] = ask.words(0.0, layout.weight_cap)[layout.size : layout.size + LIMBS] * 2


def beyond(words: Any, ask: Ask) -> None:
    words[0] = 1 << 30


def far(words: Any, ask: Ask) -> None:
    # Within the range of one term, but not of an answer that weighs so little.
    words[: ask.task.layout.size] = ask.words(8.0, ask.task.layout.weight_cap)[: ask.task.layout.size]


def limbs(words: Any, ask: Ask) -> None:
    words[ask.task.layout.size] |= 1 << 12


POISON: dict[Callable[[Any, Ask], None], str] = {
    weightless: "rejected: the weight of an answer is not within its bounds",
    overweight: "rejected: the weight of an answer is not within its bounds",
    beyond: "rejected: coordinate 0: a value is beyond the agreed range",
    far: "rejected: coordinate 0: a value is beyond the agreed range",
    limbs: "rejected: the weight or a metric of an answer is malformed",
}


@pytest.mark.parametrize("poison", POISON)
async def test_poison_is_rejected_shown_and_without_effect(server: Running, poison: Callable[[Any, Ask], None]) -> None:
    ada, eve = await server.nodes("ada", "eve")
    run, (of_ada, of_eve) = await server.begun(ada, eve, clients={"min_per_round": 1, "wait_for": 2})
    words = of_eve.words(1.0).copy()
    poison(words, of_eve)
    receipt = await eve.submit(of_eve.key, words.astype(WORD).tobytes())
    assert receipt.verdict == Receipt.REJECTED
    assert receipt.reason.startswith(POISON[poison])
    await ada.answer(of_ada, 2.0)
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada"]
    failure = record["rounds"][0]["failures"]["eve"]
    assert (failure["cause"], failure["what"]) == ("rejected", POISON[poison].rpartition(": ")[2])
    assert (await server.model(run)).tolist() == [2.0] * 4
    assert [e.node for e in await server.events(run) if e.kind == "failed"] == ["eve"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_first_model_that_is_not_finite_is_rejected_and_another_node_is_asked(server: Running, value: float) -> None:
    nodes = await server.nodes("ada", "ben")
    run = await server.submit(plan_text(clients={"min_per_round": 2}))
    eve = await until(lambda: next((n for n in nodes if n.asks), None))
    receipt = await eve.initialize(await eve.ask("init"), np.array([0, value, 0, 0], np.float32))
    assert (receipt.verdict, receipt.reason) == (Receipt.REJECTED, "rejected: the first model has values that are not finite")
    other = next(n for n in nodes if n is not eve)
    assert (await other.initialize(await other.ask("init"))).verdict == Receipt.ACCEPTED
    driver = server.engine.driver(run)
    assert isinstance(driver, Driver)
    assert driver.book.run.unable[eve.name].cause == "rejected"


SCHEMAS = {
    "none": ("", "a model schema is malformed (JSONDecodeError)"),
    "junk": ("\ufffd{", "a model schema is malformed (JSONDecodeError)"),
    "no tensors": ("[]", "a first model without a single coordinate"),
    "negative": ('[["w",[-4],"float32"]]', None),
    "integers": ('[["w",[4],"int64"]]', None),
    "gigantic": ('[["w",[1099511627776,2],"float32"]]', f"a model schema asks for {2 << 40} coordinates (the limit is {1 << 40})"),
    "another size": ('[["w",[5],"float32"]]', "an answer of 16 bytes (the round asks for 20)"),
    "deep": ("[" * 50_000, None),
}


@pytest.mark.parametrize("case", SCHEMAS)
async def test_a_first_model_with_a_bad_schema_is_refused(server: Running, case: str) -> None:
    ada = await server.node("ada")
    await server.submit(plan_text())
    ask = await ada.ask("init")
    schema, told = SCHEMAS[case]
    error = await refusal(ada.submit(ask.key, SCHEMA.zeros().tobytes(), schema=schema))
    assert error.code() is BAD
    assert error.details() == told or (told is None and (error.details() or "").startswith("a model schema is malformed"))
    assert (await ada.initialize(ask)).verdict == Receipt.ACCEPTED


async def test_a_model_of_thousands_of_tensors_can_be_sent(server: Running) -> None:
    ada = await server.node("ada")
    run = await server.submit(plan_text())
    schema = Schema.of({f"encoder.layers.{n}.self_attention.output.dense.weight": np.zeros(1, np.float32) for n in range(3000)})
    assert (await ada.initialize(await ada.ask("init"), schema=schema)).verdict == Receipt.ACCEPTED
    ask = await ada.ask("train")
    assert ask.task.schema == schema
    assert (await server.detail(run))[0].schema == schema.to_json()


# ------------------------------------------------------------------------------------------------------------------- fetch


async def test_a_blob_is_fetched_from_any_offset(server: Running) -> None:
    ada = await server.node("ada")
    await server.begun(ada)
    digest = digest_of(BUNDLE)
    assert await ada.fetch(digest) == BUNDLE
    assert await ada.fetch(digest, 10) == BUNDLE[10:]
    assert await ada.fetch(digest, len(BUNDLE)) == b""
    for offset in (len(BUNDLE) + 1, (1 << 64) - 1):
        assert (await refusal(ada.fetch(digest, offset))).code() is BAD


async def test_frames_are_short_at_first_and_then_as_long_as_the_share_of_a_download(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    model = np.zeros((2 * FRAME + LEAST_SHARE) // 4, np.float32)
    ada = await server.node("ada")
    await server.submit(plan_text(clients={"min_per_round": 1}))
    await ada.initialize(await ada.ask("init"), model, Schema.of({"w": model}))
    digest = (await ada.ask("train")).task.model

    async def sizes(asked: int = 0) -> list[int]:
        fetch: Any = ada.channel.unary_stream(FETCH, bulk_pb2.FetchRequest.SerializeToString)
        return [len(opened(frame)) async for frame in fetch(bulk_pb2.FetchRequest(digest=digest, frame=asked))]

    assert await sizes() == [LEAST_SHARE, FRAME, FRAME]
    assert set(await sizes(LEAST_FRAME)) == {LEAST_FRAME}
    monkeypatch.setattr(outflow, "ROOM", FRAME // 2)
    assert await sizes() == [LEAST_SHARE, *[FRAME // 2] * 4]


async def test_bytes_count_for_the_run_that_the_node_works_for(server: Running) -> None:
    ada, ben = await server.node("ada"), await server.node("ben", datasets=("other",))
    first, (of_ada,) = await server.begun(ada)
    second, (of_ben,) = await server.begun(ben, data="other")
    assert of_ada.task.model == of_ben.task.model
    await ben.fetch(of_ben.task.model)
    assert [(await server.detail(run))[1]["bytes_down"] for run in (first, second)] == [0, 16]


async def test_a_node_fetches_nothing_of_another_project(server: Running) -> None:
    await server.admin.control.CreateProject(pb.CreateProjectRequest(name="lab"))
    ada, spy = await server.node("ada"), await server.node("spy", "lab")
    run, (ask,) = await server.begun(ada)
    assert await ada.fetch(ask.task.model) == SCHEMA.zeros().tobytes()
    for digest in (ask.task.model, digest_of(BUNDLE)):
        assert (await refusal(spy.fetch(digest))).code() is MISSING
    for digest in ("", "../server.db", GOOD, f"{ask.task.model}\n"):
        assert (await refusal(ada.fetch(digest))).code() is MISSING
    receipt = await spy.submit(ask.key, ask.words(1.0).tobytes())
    assert receipt.verdict == Receipt.CLOSED
    assert spy.asks == []
    await ada.answer(ask, 1.0)
    await server.over(run)
    assert (await refusal(ada.fetch(ask.task.model))).code() is MISSING


async def test_people_fetch_the_models_of_runs_that_are_over(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    await ada.answer(ask, 2.0)
    detail, _ = await server.over(run)
    researcher = await server.person(Role.RESEARCHER)
    assert np.frombuffer(await researcher.fetch(detail.model), "<f4").tolist() == [2.0] * 4
    assert await researcher.fetch(digest_of(BUNDLE)) == BUNDLE
    assert (await refusal(researcher.fetch(GOOD))).code() is MISSING
    assert (await refusal(researcher.fetch("../server.db"))).code() is BAD


async def test_a_blob_that_was_deleted_meanwhile_is_not_found(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = server.path / "gone"
    monkeypatch.setattr(server.engine, "locate", lambda *_: (gone, None))
    error = await refusal(server.admin.fetch(GOOD))
    assert (error.code(), error.details()) == (MISSING, f"{GOOD[:12]}: the blob is not needed any more")


# --------------------------------------------------------------------------------------------------------------------- put


async def test_a_bundle_is_stored_once(server: Running) -> None:
    data = os.urandom(3 << 20)
    assert [(await server.admin.put(data)).verdict for _ in range(2)] == [Receipt.ACCEPTED, Receipt.DUPLICATE]
    assert await server.admin.fetch(digest_of(data)) == data


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"size": str((64 << 20) + 1)}, f"a bundle of {(64 << 20) + 1} bytes (the limit is {64 << 20})"),
        ({"size": "3"}, "a stream is longer than it announced"),
        ({"size": "99"}, "a stream ended 95 bytes too early"),
        ({"digest": GOOD}, "a stream does not have the content it announced (its SHA-256 differs)"),
        ({"digest": "x"}, "a transfer does not announce its digest and size"),
    ],
)
async def test_a_bad_bundle_is_refused(server: Running, facts: dict[str, str], told: str) -> None:
    error = await refusal(server.admin.put(b"four", **facts))
    assert (error.code(), error.details()) == (BAD, told)
    assert left(server) == []


# ------------------------------------------------------------------------------------------------------------- how many


async def test_no_more_uploads_are_read_at_once_than_the_settings_say(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = await server.nodes(*(f"n{i}" for i in range(7)))
    run, asks = await server.begun(*nodes)
    whole, open_now, most = Upload.take, 0, 0
    release = threading.Event()

    def counted(upload: Upload, frame: bytes) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        assert release.wait(PATIENCE)
        whole(upload, frame)
        open_now -= 1

    monkeypatch.setattr(Upload, "take", counted)
    sending = [asyncio.create_task(node.answer(ask, 1.0)) for node, ask in zip(nodes, asks, strict=True)]
    await until(lambda: open_now == server.settings.uploads_at_once == 4)
    await asyncio.sleep(0.1)
    release.set()
    assert {r.verdict for r in await asyncio.gather(*sending)} == {Receipt.ACCEPTED}
    assert most == 4
    assert (await server.over(run))[1]["rounds"][0]["weight"] == 70.0


async def test_an_upload_that_stands_still_lets_others_pass(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = await server.nodes(*(f"n{i}" for i in range(5)))
    _, asks = await server.begun(*nodes)
    more = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x"
        await more.wait()
        yield b"x"
        await asyncio.Event().wait()

    stalled = [asyncio.create_task(refusal(n.submit(a.key, a.words(1.0).tobytes(), parts=stuck()))) for n, a in zip(nodes[:4], asks, strict=False)]
    await until(lambda: [path.stat().st_size for path in server.path.glob("runs/*/uploads/*")] == [1] * 4)
    assert (await nodes[4].answer(asks[4], 1.0)).verdict == Receipt.ACCEPTED
    with monkeypatch.context() as short:  # of those alone that stand still; one that flows must not meet it on any machine
        short.setattr(bulk, "STALL_SECONDS", 0.2)
        more.set()
        for error in await soon(asyncio.gather(*stalled)):
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "a transfer stands still (nothing came for 0.2 s); send it again")
    assert (await nodes[0].answer(asks[0], 1.0)).verdict == Receipt.ACCEPTED


async def test_streams_that_have_their_turn_hold_up_no_other_work_in_threads(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the event loop has threads for everything else, and each is waited for."""
    monkeypatch.setattr(bulk, "FLOW_SECONDS", 90.0)
    registry = Registry(server.engine.store, Home.load(server.path).authority, server.engine.clock)
    service = BulkService(server.engine, registry, 40, 1 << 30, Trail(tmp_path, server.engine.now))
    taken, go = Counter[int](), asyncio.Event()

    async def pausing() -> AsyncIterator[bytes]:
        yield sealed(bytes(AHEAD))
        await go.wait()
        yield sealed(b"x")

    def take(number: int, frame: memoryview) -> None:
        taken[number] += len(frame)

    pouring = [asyncio.create_task(service._pour(pausing(), partial(take, n), service._admission.guest())) for n in range(40)]
    await until(lambda: set(taken.values()) == {AHEAD} and len(taken) == 40)
    assert await soon(asyncio.to_thread(threading.active_count)) > 40
    go.set()
    await soon(asyncio.gather(*pouring))
    assert set(taken.values()) == {AHEAD + 1}


async def test_an_upload_that_breaks_off_leaves_its_beginning_until_the_round_is_closed(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2, "rejoin": 0.2})

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    sending = asyncio.create_task(ada.submit(of_ada.key, of_ada.words(1.0).tobytes(), parts=stuck()))
    (path,) = await until(lambda: list(server.path.glob("runs/*/uploads/*")))
    await until(lambda: path.stat().st_size)
    sending.cancel()
    await ada.leave()
    assert (await ben.answer(of_ben, 1.0)).verdict == Receipt.ACCEPTED
    await server.over(run)
    assert left(server) == []
    assert list(server.path.glob("runs/*/round.key")) == []
