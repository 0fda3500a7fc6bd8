"""A run and its nodes, through everything that happens between them on the wire."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from operator import contains
from typing import Any

import grpc
import pytest

from fedscale.errors import Unreachable
from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server import engine, spool
from fedscale_server.driver import Driver
from fedscale_server.sessions import Watch
from tests.server.running import Counting, Receipt, Running, none_left, plan_text, refusal, soon, until

HOUR = 3600.0  # a deadline that comes when a test says so


def kinds(events: list[pb.RunEvent]) -> list[str]:
    return [event.kind for event in events if event.sequence]


async def test_a_run_goes_from_the_first_model_to_its_end(server: Running) -> None:
    nodes = await server.nodes("ada", "ben")
    for node in nodes:
        node.work()
    run = await server.submit(plan_text(rounds=2, every=1, clients={"min_per_round": 2}))
    events = await server.events(run)
    assert [e.sequence for e in events if e.sequence] == list(range(1, len(kinds(events)) + 1))
    one = ["roster", "opened", "answered", "answered", "closed"]
    assert kinds(events) == ["roster", "initialized", *one * 4, "finished"]
    detail, record = await server.detail(run)
    assert (detail.info.status, detail.info.phase, detail.info.number, detail.info.rounds) == ("completed", "evaluate", 2, 2)
    assert record["nodes"] == ["ada", "ben"]
    assert [(r["phase"], r["number"], r["answered"]) for r in record["rounds"]] == [
        (phase, number, ["ada", "ben"]) for number in (1, 2) for phase in ("train", "evaluate")
    ]
    assert (await server.model(run)).tolist() == [2.0] * 4


async def test_a_lost_node_that_returns_in_time_is_asked_again_and_counts(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben)
    await ada.answer(of_ada, 2.0)
    await ben.leave()
    await event(server, run, "lost", "ben")
    await ben.connect()
    again = await ben.ask("train")
    assert (await ben.answer(again, 4.0)).verdict == Receipt.ACCEPTED
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "ben"]
    assert record["rounds"][0]["failures"] == {}
    assert (await server.model(run)).tolist() == [3.0] * 4


async def test_a_node_that_is_back_before_its_loss_is_noticed_was_never_lost(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    driver, session = server.engine.driver(run), server.engine.sessions.get("ada")
    assert driver is not None
    assert session is not None
    driver.disconnected("ada")
    await driver.errands.settled()
    await ada.answer(ask, 2.0)
    assert "lost" not in kinds(await server.events(run))


async def test_a_lost_node_may_answer_without_its_stream(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben)
    await ben.leave()
    await event(server, run, "lost", "ben")
    assert (await ben.answer(of_ben, 4.0)).verdict == Receipt.ACCEPTED
    await ada.answer(of_ada, 2.0)
    _, record = await server.over(run)
    assert (record["rounds"][0]["answered"], record["rounds"][0]["failures"]) == (["ada", "ben"], {})


async def test_a_node_that_stays_away_longer_than_rejoin_has_failed(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, _) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2, "rejoin": 0.2})
    await ben.leave()
    await ada.answer(of_ada, 2.0)
    _, record = await server.over(run)
    assert record["status"] == "completed"
    assert record["rounds"][0]["failures"]["ben"]["cause"] == "lost"


async def test_a_silent_node_is_lost(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    watches: list[Watch] = []

    def watched(seconds: float, silent: Callable[[], object]) -> Watch:
        watches.append(Watch(seconds, silent))
        return watches[-1]

    monkeypatch.setattr("fedscale_server.services.node.Watch", watched)
    ada = await server.node("ada")
    run = await server.submit(plan_text(clients={"min_per_round": 1}))
    await ada.initialize(await ada.ask("init"))
    ada.mute = True
    watches[-1]._seconds = 0.01  # only from here on: until it has fallen silent, nobody may take it for that
    assert await event(server, run, "lost", "ada") == {}
    await until(lambda: server.engine.sessions.get("ada") is None)


async def test_a_server_that_was_held_up_lets_go_of_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.services.node.SILENCE_SECONDS", 1.0)
    ada = await server.node("ada", connect=False)
    await ada.connect(heartbeat=0.1)
    session = server.engine.sessions.get("ada")
    for _ in range(3):
        time.sleep(1.5)  # noqa: ASYNC251 - the event loop is what is held up
        await asyncio.sleep(0.3)
    assert server.engine.sessions.get("ada") is session is not None
    assert ada.connected


async def test_a_node_that_vanished_before_it_was_asked_is_lost_and_others_go_on(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.driver.SILENCE_SECONDS", 0.1)
    ada, ben = await server.nodes("ada", "ben")
    run, _ = await server.begun(ada, ben, rounds=2, clients={"min_per_round": 1, "wait_for": 2, "rejoin": 0.2})
    # ben's session is still there when the second round opens, but its stream is not.
    driver = server.engine.driver(run)
    assert driver is not None
    session = server.engine.sessions.get("ben")
    assert session is not None
    await ben.answer(ben.asks[-1], 2.0)
    eligible = server.engine.sessions.eligible
    monkeypatch.setattr(server.engine.sessions, "eligible", lambda *_: ("ada", "ben", "ghost"))
    await ada.answer(ada.asks[-1], 2.0)
    for node in (ada, ben):
        await node.answer(await node.ask("train"), 1.0)
    monkeypatch.setattr(server.engine.sessions, "eligible", eligible)
    _, record = await server.over(run)
    assert record["rounds"][1]["answered"] == ["ada", "ben"]
    assert record["rounds"][1]["failures"]["ghost"]["cause"] == "lost"


async def test_whoever_makes_the_first_model_and_vanishes_is_replaced(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.driver.SILENCE_SECONDS", 0.1)
    nodes = await server.nodes("ada", "ben")
    run = await server.submit(plan_text(clients={"min_per_round": 1}))
    asked = await until(lambda: next((n for n in nodes if n.asks), None))
    other = next(n for n in nodes if n is not asked)
    await asked.leave()
    assert (await other.initialize(await other.ask("init"))).verdict == Receipt.ACCEPTED
    assert [e.node for e in await some(server, run, "initialized") if e.kind == "lost"] == [asked.name]


async def test_whoever_makes_the_first_model_may_blink(server: Running) -> None:
    ada = await server.node("ada")
    run = await server.submit(plan_text())
    await ada.ask("init")
    await ada.leave()
    await until(lambda: server.engine.sessions.get("ada") is None)
    await ada.connect()
    assert (await ada.initialize(await ada.ask("init"))).verdict == Receipt.ACCEPTED
    assert "lost" not in kinds(await some(server, run, "opened"))


async def test_no_node_can_make_the_first_model(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run = await server.submit(plan_text(clients={"min_per_round": 2}))
    for _ in range(2):
        node = await until(lambda: next((n for n in (ada, ben) if len(n.asks) > n.taken), None))
        node.fail((await node.ask("init")).key, f"no torch at {node.name}")
    detail, _ = await server.over(run)
    assert detail.info.status == "failed"
    assert detail.info.reason == (
        "no node could make the first model: ada: code: app.py:7: no torch at ada; see the log; ben: code: app.py:7: no torch at ben; see the log"
    )


async def test_the_deadline_closes_a_round_with_its_quorum(server: Running) -> None:
    ada, ben = await server.nodes("ada", "ben")
    run, (of_ada, of_ben) = await server.begun(ada, ben, clients={"min_per_round": 1, "wait_for": 2, "deadline": HOUR})
    await ada.answer(of_ada, 2.0)
    assert 0 < server.due(run, "train/1/deadline") <= HOUR
    _, record = await server.over(run)
    failure = record["rounds"][0]["failures"]["ben"]
    assert (failure["cause"], failure["what"], failure["hint"]) == (
        "timeout",
        "no answer within 3600 s",
        "raise clients.deadline or ask fewer epochs",
    )
    late = await ben.answer(of_ben, 2.0)
    assert record["rounds"][0]["answered"] == ["ada"]
    assert (late.verdict, late.reason) == (Receipt.CLOSED, "the run is over")


async def test_timers_end_with_the_step_they_belong_to(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=2, clients={"min_per_round": 1, "deadline": HOUR})
    first = server.timers(run)["train/1/deadline"]
    await ada.answer(ask, 1.0)
    await ada.ask("train")
    assert first.cancelled()
    assert [*server.timers(run)] == ["train/2/deadline"]
    server.due(run, "train/2/deadline")
    events = await server.events(run)
    assert [(e.phase, e.number) for e in events if e.kind == "fired"] == [("train", 2)]
    assert json.loads(events[-1].detail)["status"] == "failed"


async def test_a_failed_quorum_names_every_cause(server: Running) -> None:
    ada, ben, cyd = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(ada, ben, cyd)
    ada.fail(asks[0].key, "RuntimeError in the app")
    detail, record = await server.over(run)
    assert detail.info.status == record["status"] == "failed"
    assert detail.info.reason == "round 1 (train): 0 of 3 nodes answered, 3 are needed: ada: code: app.py:7: RuntimeError in the app; see the log"
    for node in (ben, cyd):
        await until(partial(contains, node.released, (run, "train", 1)))


async def test_too_few_nodes_within_the_deadline_end_the_run(server: Running) -> None:
    await server.node("ada")
    run = await server.submit(plan_text(clients={"min_per_round": 2, "deadline": 0.2}))
    detail, _ = await server.over(run)
    assert (detail.info.status, detail.info.reason) == ("failed", "fewer than 2 nodes were there within 0.2 s")


async def test_a_run_waits_for_the_nodes_it_wants(server: Running) -> None:
    ada = await server.node("ada")
    run = await server.submit(plan_text(clients={"min_per_round": 1, "wait_for": 2}))
    assert (await server.detail(run))[0].info.phase == "init"
    assert ada.asks == []
    ben = await server.node("ben")
    first = await until(lambda: next((n for n in (ada, ben) if n.asks), None))
    assert first.asks[0].run == run


async def test_a_node_without_the_dataset_is_not_asked(server: Running) -> None:
    ada = await server.node("ada")
    other = await server.node("ben", datasets=("another",))
    run = await server.submit(plan_text())
    ada.work()
    _, record = await server.over(run)
    assert (record["nodes"], other.asks) == (["ada"], [])


async def test_over_selection_releases_who_is_too_slow(server: Running) -> None:
    nodes = await server.nodes("ada", "ben", "cyd")
    run, asks = await server.begun(*nodes, clients={"select": 2, "min_per_round": 2, "over_select": 1.5, "wait_for": 3})
    for node, ask in list(zip(nodes, asks, strict=True))[:2]:
        await node.answer(ask, 2.0)
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "ben"]
    assert (record["rounds"][0]["failures"], record["nodes"]) == ({}, ["ada", "ben", "cyd"])
    await until(lambda: nodes[2].released == [(run, "train", 1)])


async def test_a_run_can_be_stopped_paused_and_resumed(server: Running) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=3)
    paused = await steer(server, run[:8], "pause")
    assert (paused.run, paused.status) == (run, "paused")
    await ada.answer(ask, 1.0)
    await event(server, run, "closed")
    assert len(ada.asks) == 2
    assert (await steer(server, run, "resume")).status == "running"
    await ada.ask("train")
    stopped = await steer(server, run, "stop", "enough")
    assert (stopped.status, stopped.reason) == ("stopped", "enough")
    await until(lambda: ada.released == [(run, "train", 2)])
    assert [e.kind for e in await server.events(run)][-4:] == ["roster", "opened", "stop", "finished"]
    assert (await server.model(run)).tolist() == [1.0] * 4


async def test_nodes_that_rest_do_not_count_as_being_there(server: Running) -> None:
    """After a restart the first who are back may be those who have answered in this tree already: that is no reason to give up."""
    privacy = {"epsilon": 8.0, "delta": 1e-5, "clip": 2.0, "unit": "node", "mechanism": "ftrl", "tree_rounds": 2}
    early = await server.nodes("ada", "ben")
    run, asks = await server.begun(*early, rounds=2, clients={"select": 2, "min_per_round": 2}, privacy=privacy)
    for node, ask in zip(early, asks, strict=True):
        await node.answer(ask, weight=1.0)
    await event(server, run, "closed")
    for node in await server.nodes("cleo", "dora"):
        await node.answer(await node.ask("train"), weight=1.0)
    _, record = await server.over(run)
    assert (record["status"], record["reason"]) == ("completed", "")
    assert [row["answered"] for row in record["rounds"]] == [["ada", "ben"], ["cleo", "dora"]]


async def test_two_runs_at_once_do_not_meet(server: Running) -> None:
    nodes = await server.nodes("ada", "ben")
    runs = [await server.submit(plan_text(rounds=3, every=1, seed=seed, clients={"min_per_round": 2})) for seed in (1, 2)]
    for node in nodes:
        node.work(Counting(seeded=True))
    for seed, run in enumerate(runs, 1):
        _, record = await server.over(run)
        assert record["status"] == "completed"
        assert (await server.model(run)).tolist() == [3.0 + seed / 8] * 4
        ups = {(r["phase"], r["bytes_up"]) for r in record["rounds"]}
        # The first round has the first model on top: four coordinates.
        assert ups == {("train", 2 * 56), ("train", 2 * 56 + 16), ("evaluate", 2 * 40)}
        # The model of every round is fetched once by each node for each phase, and here the bundle by nobody.
        assert {r["bytes_down"] for r in record["rounds"]} == {2 * 16}


async def test_a_model_that_another_run_has_left_behind_is_found_where_it_was_kept(server: Running) -> None:
    ada = await server.node("ada")
    ada.work()
    runs = [await server.submit(plan_text(rounds=rounds, clients={"min_per_round": 1})) for rounds in (6, 1)]
    for run in runs:
        await server.over(run)
    assert [(await server.model(run)).tolist() for run in runs] == [[6.0] * 4, [1.0] * 4]


async def test_a_poisoned_answer_is_shown_and_leaves_no_trace_in_the_model(server: Running) -> None:
    honest = await server.nodes("ada", "ben")
    for node in honest:
        node.work()
    alone = await server.submit(plan_text(rounds=2, clients={"min_per_round": 2}))
    await server.over(alone)
    for node in honest:
        await node.leave()
        await node.connect()
        node.taken = len(node.asks)
    eve = await server.node("eve")
    run = await server.submit(plan_text(rounds=2, clients={"min_per_round": 2, "wait_for": 3}))
    first = await until(lambda: next((n for n in (*honest, eve) if len(n.asks) > n.taken), None))
    await first.initialize(await first.ask("init"))
    for node in honest:
        node.work()
    for number in (1, 2):
        ask = await eve.ask("train")
        assert ask.task.number == number
        bad = ask.words(1.0)
        bad[:] = 0xFFFFFFFF
        receipt = await eve.submit(ask.key, bad.tobytes())
        assert (receipt.verdict, receipt.reason) == (Receipt.REJECTED, "rejected: the weight or a metric of an answer is malformed")
    _, record = await server.over(run)
    for row in record["rounds"]:
        assert row["answered"] == ["ada", "ben"]
        assert row["failures"]["eve"]["cause"] == "rejected"
    assert (await server.model(run)).tobytes() == (await server.model(alone)).tobytes()


async def test_a_run_that_meets_a_mistake_of_ours_ends_loudly_and_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=3)
    other = await server.submit(plan_text(rounds=2))
    driver = server.engine.driver(run)
    assert driver is not None

    def mistaken(*_: Any) -> str:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(driver.book.spool, "store", mistaken)
    await ada.answer(ask, 1.0)
    detail, record = await server.over(run)
    assert (detail.info.status, detail.info.reason) == ("stopped", "server: the server met ZeroDivisionError; see its log")
    assert record["status"] == "stopped"
    ada.work()
    assert (await server.over(other))[0].info.status == "completed"


async def test_a_run_that_cannot_be_stored_waits_until_it_can(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "AGAIN_SECONDS", 0.05)
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=3)
    driver = server.engine.driver(run)
    assert driver is not None

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    # The answer is in the journal already; what cannot be stored is the model that it leads to.
    monkeypatch.setattr(driver.book.spool, "store", full)
    refused = await refusal(ada.answer(ask, 1.0))
    assert (refused.code(), refused.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        f"run {run}: the server cannot store the run at the moment; try again; see the server's log",
    )
    ada.work()
    # Whoever watches meanwhile is sent away, as at any restart.
    await until(lambda: server.engine.driver(run) not in (None, driver))
    detail, record = await server.over(run)
    assert (detail.info.status, [row["answered"] for row in record["rounds"]]) == ("completed", [["ada"]] * 3)


async def test_an_answer_that_cannot_be_opened_at_the_moment_is_sent_again_and_nobody_is_blamed(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    with monkeypatch.context() as starved:
        starved.setattr(spool, "Sealed", none_left)
        assert (await refusal(ada.answer(ask, 1.0))).code() is grpc.StatusCode.UNAVAILABLE
    assert (await ada.answer(ask, 1.0)).verdict == Receipt.ACCEPTED
    _, record = await server.over(run)
    assert [(row["answered"], row["failures"]) for row in record["rounds"]] == [(["ada"], {})]


async def test_a_run_that_cannot_be_stored_at_all_is_taken_up_after_a_restart(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada)
    driver = server.engine.driver(run)
    assert driver is not None

    def gone(*_: Any, **__: Any) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(driver.book.store, "append_all", gone)
        assert (await refusal(ada.answer(ask, 1.0))).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Unreachable, match="cannot store the run at the moment"):
            server.engine.check(run)
    await server.restart()
    await ada.leave()
    ada.channel = ada.credentials.channel(server.ready.address)
    await ada.connect()
    assert (await ada.answer(await ada.ask("train"), 1.0)).verdict == Receipt.ACCEPTED
    assert (await server.over(run))[0].info.status == "completed"


async def test_a_caller_that_goes_away_in_the_middle_of_a_step_does_not_stop_it(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await server.node("ada")
    run, (ask,) = await server.begun(ada, rounds=2)
    driver = server.engine.driver(run)
    assert isinstance(driver, Driver)
    apply, held = driver.book.apply_all, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(held.set)
        done = apply(*given)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
        return done

    monkeypatch.setattr(driver.book, "apply_all", slow)
    answering = asyncio.create_task(ada.answer(ask, 1.0))
    await held.wait()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    again = await ada.ask("train")
    assert again.task.number == 2
    assert driver.book.run.model is not None
    assert driver.book.run.model.tolist() == [1.0] * 4


async def some(server: Running, run: str, kind: str, node: str = "") -> list[pb.RunEvent]:
    """The events of a run so far, the last of which is of that kind."""

    async def so_far() -> list[pb.RunEvent]:
        call = server.admin.control.WatchRun(pb.WatchRunRequest(run=run))
        seen: list[pb.RunEvent] = []
        async for told in call:
            seen.append(told)
            if told.kind == kind and node in ("", told.node):
                break
        call.cancel()
        return seen

    return await soon(so_far())


async def event(server: Running, run: str, kind: str, node: str = "") -> dict[str, Any]:
    """Wait for an event; its detail."""
    found = await some(server, run, kind, node)
    detail: dict[str, Any] = json.loads(found[-1].detail)
    return detail


async def steer(server: Running, run: str, action: str, reason: str = "") -> Any:
    return await server.admin.control.SteerRun(pb.SteerRunRequest(run=run, action=action, reason=reason))
