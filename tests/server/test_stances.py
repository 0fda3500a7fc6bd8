"""Sites are asked what they would refuse before anybody works or spends privacy for a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedscale.errors import Cause, Failure
from fedscale.learner import Phase
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import failure_to_proto
from fedscale_server.driver import Driver
from tests.server.running import Node, Running, plan_text, until

METRICS = Failure(Cause.POLICY, "this site does not let such metrics leave", "metrics", "set evaluate.every = 0")
PAUSED = Failure(Cause.POLICY, "this site is paused by its owner", "paused", "ask the site when it will go on, or leave it out")
NOTHING: Mapping[str, Failure] = {}
TWO: dict[str, Any] = {"clients": {"min_per_round": 2}}


async def sites(server: Running, *names: str) -> list[Node]:
    """Nodes that want to be asked first."""
    return [await (await server.node(name, connect=False)).connect(proposals=True) for name in names]


async def proposal(node: Node, number: int = 1) -> node_pb2.Proposal:
    """What the node was asked of a round."""

    def found() -> node_pb2.Proposal | None:
        told = [message.proposal for message in node.heard if message.WhichOneof("message") == "proposal"]
        return next((each for each in told if each.key.number == number), None)

    return await until(found)


async def stand(node: Node, number: int = 1, refused: Mapping[str, Failure] = NOTHING) -> None:
    """Say what the node would refuse of a round."""
    run = (await proposal(node, number)).key.run
    told = [failure_to_proto((run, Phase(phase), number), failure) for phase, failure in refused.items()]
    node.say(node_pb2.NodeMessage(stance=node_pb2.Stance(key=node_pb2.TaskKey(run=run, phase="train", number=number), refused=told)))


async def test_a_site_that_would_refuse_is_left_out_and_named(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(rounds=2, **TWO))
    asked = await proposal(ada)
    assert (asked.key.run, asked.key.phase, asked.key.number, asked.nodes) == (run, "train", 1, 3)
    assert not ada.asks
    for number in (1, 2):
        await stand(ada, number)
        await stand(ben, number, {"train": PAUSED})
        await stand(cyd, number)
        ada.work()
        cyd.work()
    info, record = await server.over(run)
    assert info.info.status == "completed"
    assert [row["answered"] for row in record["rounds"]] == [["ada", "cyd"]] * 2
    assert [row["failures"]["ben"]["hint"] for row in record["rounds"]] == [PAUSED.hint] * 2
    assert not ben.asks


async def test_a_site_may_think_better_of_it(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(rounds=2, **TWO))
    for node in (ada, ben, cyd):
        node.work()
        await stand(node, 1, {"train": PAUSED} if node is ben else NOTHING)
    for node in (ada, ben, cyd):
        await stand(node, 2)
    _, record = await server.over(run)
    assert [row["answered"] for row in record["rounds"]] == [["ada", "cyd"], ["ada", "ben", "cyd"]]
    assert record["rounds"][1]["failures"] == {}


async def test_a_site_that_was_waited_for_may_be_one_that_refuses(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(clients={"min_per_round": 2, "wait_for": 3}))
    for node in (ada, ben, cyd):
        node.work()
        await stand(node, 1, {"train": PAUSED} if node is ben else NOTHING)
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "cyd"]


async def test_no_site_spends_for_a_run_that_cannot_be_evaluated(server: Running) -> None:
    ada, ben = await sites(server, "ada", "ben")
    run = await server.submit(plan_text(every=1, **TWO))
    await stand(ada)
    await stand(ben, 1, {"evaluate": METRICS})
    info, record = await server.over(run)
    told = "ben: policy: metrics: this site does not let such metrics leave; set evaluate.every = 0"
    assert (info.info.status, info.info.reason) == ("failed", f"round 1: fewer than 2 of 2 nodes would evaluate: {told}")
    assert not ada.asks
    assert not ben.asks
    assert record["rounds"] == []


async def test_a_site_that_keeps_its_metrics_back_trains_all_the_same(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(every=1, **TWO))
    for node in (ada, ben, cyd):
        node.work()
        await stand(node, 1, {"evaluate": METRICS} if node is ben else NOTHING)
    _, record = await server.over(run)
    trained, evaluated = record["rounds"]
    assert trained["answered"] == ["ada", "ben", "cyd"]
    assert (evaluated["answered"], evaluated["failures"]["ben"]["what"]) == (["ada", "cyd"], METRICS.what)


async def test_nobody_waits_for_ever_for_what_a_site_thinks(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(**TWO))
    await stand(ada)
    await proposal(ben)
    await cyd.leave()
    await until(lambda: server.engine.sessions.get("cyd") is None)
    driver = server.engine.driver(run)
    assert isinstance(driver, Driver)
    assert not driver.book.run.asked
    driver._impatient()
    ada.work()
    ben.work()
    _, record = await server.over(run)
    # Whoever says nothing is asked as ever, and whoever is away is not.
    assert record["rounds"][0]["answered"] == ["ada", "ben"]


async def test_a_site_that_leaves_holds_nobody_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.driver.MOST_SECONDS", 3600.0)
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(**TWO))
    for node in (ada, ben):
        node.work()
        await stand(node)
    await proposal(cyd)
    assert not ada.asks
    await cyd.leave()
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "ben"]


async def test_a_stance_nobody_asked_for_changes_nothing(server: Running) -> None:
    ada, ben = await sites(server, "ada", "ben")
    (eve,) = [await server.node("eve", datasets=["other"])]
    run = await server.submit(plan_text(**TWO))
    for node, number in ((eve, 1), (ada, 7)):
        failure = failure_to_proto((run, Phase.TRAIN, number), PAUSED)
        key = node_pb2.TaskKey(run=run, phase="train", number=number)
        node.say(node_pb2.NodeMessage(stance=node_pb2.Stance(key=key, refused=[failure])))
    for node in (ada, ben):
        node.work()
        await stand(node)
    _, record = await server.over(run)
    assert (record["rounds"][0]["answered"], record["rounds"][0]["failures"]) == (["ada", "ben"], {})


async def test_who_was_left_out_is_known_after_a_restart(server: Running) -> None:
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(**TWO))
    for node in (ada, ben, cyd):
        await stand(node, 1, {"train": PAUSED} if node is ben else NOTHING)
    first = await until(lambda: next((node for node in (ada, cyd) if node.asks), None))
    await first.initialize(await first.ask("init"))
    for node in (ada, cyd):
        await node.ask("train")
    await server.restart()
    for node in (ada, cyd):
        await node.leave()
        node.taken = len(node.asks)
        await node.connect(proposals=True)
        node.work()
    _, record = await server.over(run)
    assert record["rounds"][0]["answered"] == ["ada", "cyd"]
    assert record["rounds"][0]["failures"]["ben"]["what"] == PAUSED.what


async def test_a_site_that_says_nothing_is_not_waited_for_again_until_it_does(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.driver.MOST_SECONDS", 3600.0)
    ada, ben, cyd = await sites(server, "ada", "ben", "cyd")
    run = await server.submit(plan_text(rounds=3, **TWO))
    driver = server.engine.driver(run)
    assert isinstance(driver, Driver)
    for node in (ada, ben, cyd):
        node.work()
        await proposal(node)
    for node in (ada, ben):
        await stand(node)
    await until(lambda: driver._stances.due == {"cyd"})
    driver._impatient()
    # Nobody is impatient in the second round, and its answer in that one counts in the third.
    for node in (ada, ben):
        await stand(node, 2)
    await proposal(cyd, 2)
    await until(lambda: driver._stances.number == 3)
    await stand(cyd, 2)
    await until(lambda: not driver._stances.silent)
    for node in (ada, ben):
        await stand(node, 3)
    _, record = await server.over(run)
    assert [row["answered"] for row in record["rounds"]] == [["ada", "ben", "cyd"]] * 3
