"""What every change to the round must survive, as functions that fail or else are true: the kit that planted mistakes are tried on.

``pure`` needs only the core; ``durable`` runs a server on a disk that forgets, cuts its power at a few moments and lets it go on.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedscale.events import Answered, Event, Failed, Fired, Lost, Returned, Roster
from fedscale.proto.v1 import control_pb2 as pb
from tests.chaos.errand import Bench
from tests.chaos.platter import SURE, Platter, Remains, refusing
from tests.chaos.ward import NAMES, ONCE, PARTS, ROUNDS, Ward
from tests.fedscale.test_run_machine import Anything
from tests.fedscale.world import BROKEN, NODES, World, bits, plan_of
from tests.server.running import Receipt

SEEDS = (5, 8, 12)  # runs with momentum, with evaluation and without


def opened(quorum: int = len(NODES), rounds: int = 1) -> World:
    """A run whose first round is open."""
    clients = {"min_per_round": quorum, "deadline": 60.0, "rejoin": 30.0}
    world = World(plan_of(strategy={"rounds": rounds}, clients=clients, evaluate={"every": 0}, aggregate={"bound": 8, "weight_cap": 64}))
    world.begin()
    return world


def arrive(order: list[str], away: list[str]) -> str:
    """Digest of the model after everybody has answered in this order; those who are ``away`` are lost first, and some of them return."""
    world = opened()
    answers = {node: Answered(node, node, world.words(0.1 * place + 0.01, 3.0 + place, loss=place)) for place, node in enumerate(NODES, 1)}
    for place, node in enumerate(away):
        world.send(Lost(node))
        if place % 2:
            world.send(Returned(node))
    for node in order:
        world.send(answers[node])
        # Whatever is told of a node whose answer is in, or sent again, changes nothing.
        for late in (answers[node], Lost(node), Failed(node, BROKEN), Returned(node)):
            if world.run.round is not None:
                world.send(late)
    assert (world.run.status, world.run.history[-1].answered) == ("completed", NODES)
    return world.run.digest


def any_order_gives_the_same_bits(count: int, chance: random.Random) -> bool:
    """Answers in so many orders, with nodes that were lost and came back in between."""
    found = {arrive(chance.sample(NODES, len(NODES)), chance.sample(NODES, chance.randint(0, len(NODES)))) for _ in range(count)}
    assert len(found) == 1
    return True


def every_round_closes(chance: random.Random) -> bool:
    """Whatever has happened, and however late the timers are, the round ends, and with enough answers or not at all."""
    for quorum in range(1, len(NODES) + 1):
        world = opened(quorum)
        timers, words = list(world.timers), world.words(0.5, 4.0, loss=1.0)
        for node in NODES:
            answer = Answered(node, node, words)
            fates: list[list[Event]] = [[answer], [Lost(node)], [Lost(node), answer], [Failed(node, BROKEN)], []]
            for event in chance.choice(fates):
                if world.run.round is not None:
                    world.send(event)
                    timers += world.timers
        inside = set(world.round.answered()) if world.run.round is not None else set(world.run.history[-1].answered if world.run.history else ())
        events: list[Event] = [Fired(timer) for timer in chance.sample(timers, len(timers))]
        for event in events:
            world.send(event)
        assert world.run.round is None
        assert world.run.status == ("completed" if len(inside) >= quorum else "failed"), (quorum, inside)
    return True


def lost_nodes_are_waited_for_no_longer_than_they_may() -> bool:
    """Everybody else has answered: the end of the wait ends the round, before its deadline."""
    world = opened(quorum=2)
    absent, *rest = NODES
    world.send(Lost(absent))
    timer = next(timer for timer in world.timers if timer.endswith(absent))
    for node in rest:
        world.answer(node, 0.5)
    assert world.run.round is not None
    world.send(Fired(timer))
    assert world.run.history[-1].answered == tuple(rest)
    assert absent in world.run.history[-1].failures
    return True


def a_crash_forgets_nothing() -> bool:
    """The journal and the checkpoints give the same state after every event."""
    world = opened(rounds=2)
    for _ in range(2):
        world.send(Roster(NODES))
        for node in NODES:
            world.answer(node, 0.25)
            assert bits(world.crash().run) == bits(world.run)
    assert world.run.status == "completed"
    return True


def pure() -> bool:
    """The core's part of the kit."""
    chance = random.Random(7)
    any_order_gives_the_same_bits(20, chance)
    for _ in range(5):
        every_round_closes(chance)
    lost_nodes_are_waited_for_no_longer_than_they_may()
    a_crash_forgets_nothing()
    quick = settings(max_examples=25, stateful_step_count=30, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(Anything, settings=settings(quick, suppress_health_check=list(HealthCheck)))
    return True


# -------------------------------------------------------------------------------------------------------------- server


async def durable(folder: Path, database: Path) -> bool:
    """The server's part of the kit."""
    ward = await Ward.open(folder / "home", database)
    (folder / "grave").mkdir()
    platter = Platter(folder / "home", PARTS, folder / "grave")
    ward.told, ward.twice = platter.tell, True
    try:
        with platter.watched(*SURE), refusing(platter):
            run = await ward.submit("only")
            await ward.play(run)
            platter.cut("the end")
        await whole(ward, run)
        for number, remains in enumerate(moments(platter)):
            await survived(ward, run, remains, folder / f"cut-{number}")
    finally:
        await ward.close()
    return True


def scattered(folder: Path, database: Path) -> bool:
    """What any server must survive of any disk: a few runs, and a few power cuts of each."""
    with Bench.at(folder, database) as bench:
        for seed in SEEDS:
            assert bench.tried(seed, 15)[1] == []
    return True


def moments(platter: Platter) -> list[Remains]:
    """A few moments that tell most: just after each answer was accepted, and on both sides of the checkpoints."""
    found, chosen = list(platter.remains.values()), []
    for told in (2, 3, 4, 5):
        for how in SURE:
            chosen += [remains for remains in found if len(remains.told) == told and remains.how is how][:1]
    checkpoints = [number for number, (after, _) in enumerate(platter.trail) if after == "before database checkpoint"]
    marks = {platter.trail[near][1] for number in checkpoints for near in (number, number + len(SURE)) if near < len(platter.trail)}
    return chosen + [remains for mark, remains in platter.remains.items() if mark in marks and remains not in chosen]


async def survived(former: Ward, run: str, remains: Remains, folder: Path) -> None:
    """A server that goes on where the power was cut comes to the same end, and asks for nothing that it has accepted."""
    again = await Ward.reopen(folder, remains, former)
    try:
        await again.play(run)
        await whole(again, run)
        assert set(again.accepted) & set(remains.told) == set()
    finally:
        await again.close()


async def whole(ward: Ward, run: str) -> None:
    """A run in which everybody was counted once, was told so once, and whose record is complete."""
    assert await ward.verdict(run) == ONCE
    assert ward.again <= {Receipt.DUPLICATE, Receipt.CLOSED}
    for (kind, _), times in (await _told(ward, run)).items():
        assert times == (len(NAMES) if kind == "answered" else 1)
    assert await ward.answered(run) == [sorted(NAMES)] * ROUNDS


async def _told(ward: Ward, run: str) -> Counter[tuple[str, int]]:
    events = [event async for event in ward.running.admin.control.WatchRun(pb.WatchRunRequest(run=run), timeout=30)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return Counter((event.kind, event.number) for event in events if event.kind in ("opened", "answered", "closed", "finished"))
