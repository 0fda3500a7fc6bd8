"""A node says what it would refuse of a round before anything is asked: by the same rules as its tasks, and at no cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedscale.errors import Cause, Failure
from fedscale.proto.v1 import node_pb2
from fedscale.wire.convert import failure_from_proto
from fedscale_client import chronicle, declarations, policy
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.policy import DatasetPolicy, Policy
from tests.client.conftest import LEARNER, Start
from tests.client.coordinator import Coordinator, plan_text, until

PRIVATE: dict[str, Any] = {"privacy": {"epsilon": 2.0, "delta": 1e-5, "metrics": "exact"}, "strategy": {"rounds": 2}, "train": {"batch_size": 10}}
MASKED: dict[str, Any] = {"secagg": {"enabled": True}, "clients": {"min_per_round": 3}}


async def stance(
    coordinator: Coordinator, plan: str, *, run: str = "run-1", phase: str = "train", number: int = 1, nodes: int = 3
) -> dict[str, Failure]:
    """What the connected node would refuse, by phase."""
    key = node_pb2.TaskKey(run=run, phase=phase, number=number)
    already = len(coordinator.heard("stance"))
    proposal = node_pb2.Proposal(key=key, plan=plan, bundle="a" * 64, nodes=nodes)
    coordinator.session.outbox.put_nowait(node_pb2.ServerMessage(proposal=proposal))
    told = await until(lambda: coordinator.heard("stance")[already:])
    assert told[0].key == key
    return {each.key.phase: failure_from_proto(each) for each in told[0].refused}


def capped(limit: float) -> Policy:
    return Policy(datasets={"heart": DatasetPolicy(epsilon=limit, units=("record",))})


async def test_a_site_without_a_policy_would_do_all(coordinator: Coordinator, start: Start) -> None:
    async with start() as node:
        session = await coordinator.connected()
        assert session.hello.proposals
        assert await stance(coordinator, plan_text()) == {}
        assert node.events("declined") == []


@pytest.mark.parametrize(
    ("rules", "tables", "refused"),
    [
        (Policy(paused=True), {}, {"train": "this site is paused by its owner", "evaluate": "this site is paused by its owner"}),
        (Policy(paused=True), {"evaluate": {"every": 0}}, {"train": "this site is paused by its owner"}),
        (capped(9.0), PRIVATE, {"evaluate": "this site does not let such metrics leave (it allows: pooled)"}),
        (Policy(min_cohort=4), MASKED, dict.fromkeys(("train", "evaluate"), "a sum over 3 nodes is not opened (the site asks for at least 4)")),
        (Policy(min_cohort=3), MASKED, {}),
    ],
)
async def test_what_the_policy_forbids_is_known_before_it_is_asked_for(
    coordinator: Coordinator, home: NodeHome, start: Start, rules: Policy, tables: dict[str, Any], refused: dict[str, str]
) -> None:
    policy.save(home, rules)
    async with start():
        await coordinator.connected()
        told = await stance(coordinator, plan_text(**tables))
    assert {phase: failure.what for phase, failure in told.items()} == refused
    assert {failure.cause for failure in told.values()} <= {Cause.POLICY}
    assert all(failure.hint for failure in told.values())


async def test_a_curious_server_is_refused_where_the_owner_does_not_believe_in_it(coordinator: Coordinator, home: NodeHome, start: Start) -> None:
    curious = plan_text(secagg={"enabled": True, "profile": "curious"}, clients={"min_per_round": 3}, evaluate={"every": 0})
    async with start():
        await coordinator.connected()
        assert (await stance(coordinator, curious))["train"].where == "curious_server"
        policy.save(home, Policy(curious_server=True))
        assert await stance(coordinator, curious) == {}


async def test_a_run_that_does_not_fit_under_the_cap_is_known_and_costs_nothing(coordinator: Coordinator, home: NodeHome, start: Start) -> None:
    policy.save(home, capped(1.5))
    trained = {**PRIVATE, "evaluate": {"every": 0}}
    async with start() as node:
        await coordinator.connected()
        (failure,) = (await stance(coordinator, plan_text(**trained))).values()
        assert failure.what.startswith("the run would pass the privacy cap of this site before its end (the cap is epsilon 1.5 ")
        policy.save(home, capped(3.0))
        # Nothing is set aside for it: however often it asks, all of it fits.
        assert [await stance(coordinator, plan_text(**trained), run=f"run-{at}") for at in range(3)] == [{}] * 3
        assert [event["phase"] for event in node.events("declined")] == ["train"]
    assert Ledger.open(home).items() == ()


async def test_a_task_that_counts_already_is_let_in_again(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    """A coordinator that has lost its place asks again for what this site has given."""
    app = coordinator.put_app(
        tmp_path / "app",
        app=LEARNER.replace("class Drift:", "class Drift:\n    def require_private(self, unit):\n        pass\n").replace(
            '{"loss": np.full(1, float(len(work.data)))})', "{}, work.private)"
        ),
    )
    trained = plan_text(**{**PRIVATE, "evaluate": {"every": 0}, "strategy": {"rounds": 1}})
    policy.save(home, capped(2.0))
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, plan=trained)[0])
        assert await stance(coordinator, trained) == {}
        assert set(await stance(coordinator, trained, run="run-2")) == {"train"}


async def test_data_that_have_moved_are_missed_in_time(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    (tmp_path / "heart.csv").rename(tmp_path / "moved.csv")
    async with start():
        await coordinator.connected()
        for plan in (plan_text(), plan_text(**PRIVATE)):
            told = await stance(coordinator, plan)
            assert {(failure.cause, failure.what) for failure in told.values()} == {(Cause.DATA, "a file of this dataset is not there")}
            assert str(tmp_path) not in str(told)
        declarations.remove(home, "heart")
        await coordinator.connected(2)
        assert "does not offer the dataset 'heart'" in (await stance(coordinator, plan_text(**PRIVATE)))["train"].what


async def test_a_plan_that_makes_no_sense_is_refused(coordinator: Coordinator, start: Start) -> None:
    async with start():
        await coordinator.connected()
        assert (await stance(coordinator, "[job]"))["train"].cause is Cause.REJECTED


def test_the_sites_own_people_see_what_was_declined(tmp_path: Path) -> None:
    facts = {"key": "run-1/train/1", "run": "run-1", "phase": "train", "number": 1, "name": "trial", "dataset": "heart", "app": "a", "plan": "b"}
    failure = {"cause": "policy", "what": "no", "where": "", "hint": "", "traceback": ""}
    (asked,) = chronicle.asked([{"event": "declined", "at": 1.0, **facts, "failure": failure}])
    assert (asked.run, asked.name, asked.tasks, asked.answered, asked.failures[0].what) == ("run-1", "trial", {}, 0, "no")
