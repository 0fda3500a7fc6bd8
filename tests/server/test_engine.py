"""All runs of a server: none stands in the way of another, of a restart, or of the way down."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from fedscale.errors import ConfigError, Unreachable
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale_server import engine as engines
from fedscale_server.app import serve
from fedscale_server.driver import Driver
from fedscale_server.home import Home
from fedscale_server.logbook import Logbook
from fedscale_server.settings import Settings
from fedscale_server.timers import Timers
from tests.server.running import BUNDLE, PATIENCE, Node, Receipt, Running, plan_text, refusal, until

HOUR = 3600.0


async def back(server: Running, *nodes: Node) -> None:
    """The server goes and comes, and so do the nodes."""
    await server.restart()
    if server.people:
        server.people.remove(server.admin)
    for node in nodes:
        await node.leave()
        node.channel = node.credentials.channel(server.ready.address)
        await node.connect()


async def test_a_round_goes_on_where_it_was(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben)
    await ada.answer(of_ada, 2.0)
    await back(server, ada, ben)
    assert (await ada.answer(of_ada, 2.0)).verdict == Receipt.DUPLICATE
    assert (await ben.answer(await ben.ask("train"), 4.0)).verdict == Receipt.ACCEPTED
    _, record = await server.over(run)
    assert (await server.model(run)).tolist() == [3.0] * 4
    assert record["rounds"][0]["bytes_up"] == 16 + 2 * 56
    assert [e.kind for e in await server.events(run) if e.kind in ("opened", "closed", "lost")] == ["opened", "closed"]


async def test_the_deadline_runs_again_after_a_restart(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2, "deadline": HOUR})
    await ada.answer(of_ada, 2.0)
    await back(server, ada, ben)
    assert 0 < server.due(run, "train/1/deadline") <= HOUR
    _, record = await server.over(run)
    assert record["rounds"][0]["failures"]["ben"]["cause"] == "timeout"
    assert record["rounds"][0]["answered"] == ["ada"]


async def test_whoever_makes_the_first_model_has_time_to_come_back_after_a_restart(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.driver.SILENCE_SECONDS", 0.05)
    ada = await server.node("ada")
    run = await server.submit(plan_text())
    await ada.ask("init")
    await ada.leave()
    await server.restart()
    server.people.remove(server.admin)
    await asyncio.sleep(0.3)
    ada.channel = ada.credentials.channel(server.ready.address)
    await ada.connect()
    assert (await ada.initialize(await ada.ask("init"))).verdict == Receipt.ACCEPTED
    assert (await server.detail(run))[0].info.status == "running"


async def test_nobody_is_lost_when_the_server_is_told_to_stop(server: Running) -> None:
    ada = await server.node("ada")
    run, _ = await server.begun(ada)
    store = server.engine.store
    before = await asyncio.to_thread(store.journal, run)
    await server.stop()
    assert [e.kind for e in await asyncio.to_thread(store.journal, run)] == [e.kind for e in before]
    assert ada.ended is None
    await server.restart()


async def test_an_answer_on_its_way_is_counted_before_the_server_goes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=2)
    driver = server.engine.driver(run)
    assert isinstance(driver, Driver)
    apply, begun, loop = driver.book.apply_all, asyncio.Event(), asyncio.get_running_loop()

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()
        return apply(*given)

    monkeypatch.setattr(driver.book, "apply_all", slow)
    answering = asyncio.create_task(ada.answer(ask, 2.0))
    await begun.wait()
    await back(server)
    receipt = (await asyncio.gather(answering, return_exceptions=True))[0]
    assert isinstance(receipt, BaseException) or receipt.verdict == Receipt.ACCEPTED
    detail, record = await server.detail(run)
    assert (detail.info.status, detail.info.number, record["rounds"][0]["answered"]) == ("running", 2, ["ada"])
    assert driver._timers._armed == {}


async def test_a_run_that_cannot_be_brought_back_does_not_keep_the_others_from_starting(server: Running) -> None:
    ada = await server.node("ada")
    broken, _ = await server.begun(ada, rounds=2)
    sound = await server.submit(plan_text(rounds=1, name="sound"))
    for path in (server.path / "runs" / broken / "blobs").glob("*"):
        if path.is_file():
            path.write_bytes(b"rotten")
    await back(server, ada)
    detail, record = await server.detail(broken)
    assert (detail.info.status, record["status"]) == ("failed", "failed")
    assert "the server could not bring the run back" in detail.info.reason
    assert "a vector in the spool is damaged" in detail.info.reason
    ada.taken = len(ada.asks) - 1
    ada.work()
    assert (await server.over(sound))[0].info.status == "completed"


async def test_a_model_that_somebody_cuts_off_ends_its_run_and_not_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "AGAIN_SECONDS", 0.02)
    ada = await server.node("ada")
    run, asks = await server.begun(ada, rounds=2)
    for path in (server.path / "runs" / run / "blobs").glob("*"):
        if path.is_file():
            os.truncate(path, 0)
    with structlog.testing.capture_logs():  # else the model is read once more, to be drawn in a traceback, which a started server does not do
        assert (await refusal(ada.answer(asks[0], 1.0))).code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: server.engine.store.run(run).finished)
    detail, _ = await server.detail(run)
    assert (detail.info.status, "a vector in the spool is damaged" in detail.info.reason) == ("failed", True)
    sound = await server.submit(plan_text(name="sound"))
    ada.work()
    assert (await server.over(sound))[0].info.status == "completed"


@pytest.mark.parametrize("hidden", [".", "runs"])
async def test_a_run_waits_for_shared_blobs_that_are_out_of_sight(tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared folder is not mounted, or not all of it is seen, where another coordinator goes on with the run."""
    monkeypatch.setattr(engines, "AGAIN_SECONDS", 0.02)
    shared, away = tmp_path / "shared", tmp_path / "away"
    server = await Running.start(tmp_path / "home", blobs=str(shared))
    try:
        ada = await server.node("ada")
        run, _ = await server.begun(ada)
        await server.stop()
        shutil.rmtree(server.path / "runs" / run / "blobs")
        (shared / hidden).rename(away)
        await back(server)
        assert (await server.detail(run))[0].info.status == "running"
        with pytest.raises(Unreachable, match="cannot store the run at the moment"):
            server.engine.check(run)
        watched = await refusal(server.events(run))
        assert watched.code() is grpc.StatusCode.UNAVAILABLE, "to a watcher, a run that waits is not one that is over"
        if hidden == ".":
            shared.rmdir()
        away.rename(shared / hidden)
        await until(lambda: server.engine.driver(run))
        await until(lambda: not server.engine._retries)
        await ada.leave()
        ada.channel = ada.credentials.channel(server.ready.address)
        (await ada.connect()).work()
        assert (await server.over(run))[0].info.status == "completed"
    finally:
        await server.close()


async def test_a_second_submission_while_the_first_begins_waits_for_it(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    whole = Logbook.open

    def counted(*given: Any) -> Logbook:
        opened.append(given[2].id)
        return whole(*given)

    monkeypatch.setattr(Logbook, "open", counted)
    first, second = await asyncio.gather(server.submit(plan_text(), key="k"), server.submit(plan_text(), key="k"))
    assert (first, opened) == (second, [first])


async def test_a_submission_whose_caller_goes_away_is_a_run_nevertheless(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    created, loop, whole = asyncio.Event(), asyncio.get_running_loop(), server.engine.store.create_run

    def slow(*given: Any) -> Any:
        row = whole(*given)
        loop.call_soon_threadsafe(created.set)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
        return row

    monkeypatch.setattr(server.engine.store, "create_run", slow)
    request = pb.SubmitRunRequest(project="ward", plan=plan_text(), bundle=digest_of(BUNDLE), key="k")
    call = server.admin.control.SubmitRun(request)
    waiting = asyncio.ensure_future(refusal(call))
    await created.wait()
    call.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(server.engine.drivers)
    assert server.engine.drivers()[0].id == await server.submit(plan_text(), key="k")


@pytest.mark.parametrize("option", ["--port", "--enrolment-port"])
async def test_a_port_that_is_taken_is_said_so(server: Running, tmp_path: Path, option: str) -> None:
    port = int(server.ready.address.rpartition(":")[2])
    settings = Settings(**{"port": 0, "enrolment_port": 0, option.strip("-").replace("-", "_"): port})
    Home.create(tmp_path / "other", settings, server.engine.now())
    with pytest.raises(ConfigError) as caught:
        await serve(tmp_path / "other", settings, lambda _: None)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port} (the port is taken or the address is not this machine's); choose another with {option}"
    )


async def test_timers_run_once_under_the_last_action_of_a_name() -> None:
    timers, ran = Timers(), asyncio.Queue[str]()
    timers.arm("a", 0.0, lambda: ran.put_nowait("old"))
    timers.arm("a", 0.01, lambda: ran.put_nowait("new"))
    timers.arm("b", 60.0, lambda: ran.put_nowait("never"))
    assert await asyncio.wait_for(ran.get(), PATIENCE) == "new"
    timers.clear()
    timers.arm("c", 0.0, lambda: ran.put_nowait("again"))
    assert await asyncio.wait_for(ran.get(), PATIENCE) == "again"
    timers.stop()
    timers.arm("d", 0.0, lambda: ran.put_nowait("never"))
    await asyncio.sleep(0.02)
    assert ran.empty()


async def test_no_task_of_a_server_dies_unheard(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben, rounds=2, clients={"min_per_round": 1, "wait_for": 2, "rejoin": 0.1})
    with caplog.at_level(logging.ERROR):
        await ben.leave()
        await ada.answer(of_ada, 1.0)
        ada.work()
        await server.over(run)
        await server.stop()
    assert caplog.records == []
