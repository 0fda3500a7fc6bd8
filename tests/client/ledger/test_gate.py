"""The gate on the real wire: a coordinator that asks too much is refused by the node, in time and with a typed reason."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest

from fedscale.errors import Cause
from fedscale.learner import Phase
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import repeated
from fedscale.proto.v1 import bulk_pb2
from fedscale_client import declarations, facts, policy
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.head import Head
from fedscale_client.ledger.state import Item, spends_of
from fedscale_client.policy import DatasetPolicy, Policy
from tests.client.conftest import LEARNER, ROWS, Start, write_csv
from tests.client.coordinator import PATIENCE, Coordinator, plan_text, until
from tests.client.ledger.samples import opened_database

ROUNDS, DELTA = 2, 1e-5
BEYOND = "the run would pass the privacy cap of this site before its end"

# Trains with the privacy that is asked for, or not at all.
PRIVATE = (
    LEARNER.replace("class Drift:", "class Drift:\n    def require_private(self, unit):\n        pass\n")
    .replace(
        "work.arrays.items()} if work.phase is Phase.TRAIN else None",
        "work.arrays.items()} if work.phase is Phase.TRAIN else None\n        assert work.private or work.phase is not Phase.TRAIN",
    )
    .replace('{"loss": np.full(1, float(len(work.data)))})', '({} if work.private else {"loss": np.full(1, float(len(work.data)))}), work.private)')
)


def private_plan(budget: float = 2.0, **tables: Any) -> str:
    privacy = {"epsilon": budget, "delta": DELTA, "metrics": "exact"}
    return plan_text(**{"privacy": privacy, "strategy": {"rounds": ROUNDS}, "train": {"batch_size": 10}, **tables})


def capped(limit: float, **settings: Any) -> Policy:
    return Policy(datasets={"heart": DatasetPolicy(epsilon=limit, delta=DELTA, units=("record",), **settings)})


def items(home: NodeHome) -> tuple[Item, ...]:
    return Ledger.open(home).items() if home.ledger.exists() else ()


async def settled(home: NodeHome, *standings: str) -> tuple[Item, ...]:
    """The reservations, once they stand as expected."""
    await until(lambda: tuple(item.standing for item in items(home)) == standings)
    return items(home)


@pytest.fixture
def app(coordinator: Coordinator, tmp_path: Path) -> str:
    return coordinator.put_app(tmp_path / "app", app=PRIVATE)


async def test_a_run_is_counted_and_one_round_more_is_refused(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    """One round more, the same plan as another run, and less noise: nothing passes the cap, whatever the coordinator says."""
    policy.save(home, capped(2.0))
    async with start() as node:
        await coordinator.connected()
        for number in (1, 2):
            await coordinator.answer(coordinator.assign(app, number=number, plan=private_plan())[0])
        (one, two) = await settled(home, "committed", "committed")
        asked = {
            "run-1": (3, private_plan(), "round 3 is beyond the 2 rounds of the plan"),
            "run-2": (1, private_plan(), BEYOND),
            "run-3": (1, private_plan(100.0), BEYOND),
            "run-4": (1, private_plan(strategy={"rounds": 1000}), BEYOND),
            "run-5": (1, plan_text(), "this site answers with differential privacy only"),
        }
        told = []
        for run, (number, plan, what) in asked.items():
            failure = await coordinator.failure(coordinator.assign(app, number=number, run=run, plan=plan)[0])
            assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, what)
            told.append(failure.what)
        assert ["the cap is epsilon 2 at delta 1e-05 for each record" in text for text in told] == [False, True, True, True, True]
        assert len(node.events("task")) == len(asked) + 2
        assert node.events("progress") == []
    assert len(coordinator.answers) == 2
    assert len(items(home)) == 2
    assert spends_of((one, two)) == (one.claim.spends or ()) * 2
    assert epsilon(spends_of((one, two)), DELTA) == pytest.approx(2.0, abs=0.02)
    assert (one.claim.run, one.claim.app, one.claim.unit, one.claim.delta) == ("run-1", app, "record", DELTA)
    assert (one.release or {})["parts"] == [["w", [3]], ["b", [1]], ["weight", []]]


@pytest.mark.parametrize(("phase", "number"), [(Phase.INIT, 0), (Phase.TRAIN, 1)])
async def test_a_run_that_could_not_end_within_the_cap_is_refused_before_anything_of_it_leaves(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str, phase: Phase, number: int
) -> None:
    """Its first rounds alone would fit."""
    policy.save(home, capped(4.0))
    async with start():
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(app, phase, number, plan=private_plan(8.0, strategy={"rounds": 20}))[0])
    assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, BEYOND)
    assert "the cap is epsilon 4 at delta 1e-05 for each record, of which 4 is left, and all rounds of the run need 8" in failure.what
    owner = failure.hint.removeprefix("lower privacy.epsilon or leave this site out, or its owner allows more: fedscale node policy set ")
    policy.save(home, policy.load(home, [owner]))
    assert (coordinator.answers, items(home)) == ([], ())
    async with start():
        await coordinator.connected(2)
        await coordinator.answer(coordinator.assign(app, phase, number, run="run-2", plan=private_plan(8.0, strategy={"rounds": 20}))[0])


async def test_whoever_comes_late_needs_room_for_the_rounds_that_are_left(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    policy.save(home, capped(4.0))
    asked = private_plan(8.0, strategy={"rounds": 20})
    async with start():
        await coordinator.connected()
        assert (await coordinator.failure(coordinator.assign(app, number=10, plan=asked)[0])).what.startswith(BEYOND)
        await coordinator.answer(coordinator.assign(app, number=18, run="late", plan=asked)[0])
    assert [item.claim.number for item in items(home)] == [18]


async def test_a_cap_that_is_lowered_while_a_run_goes_on_ends_it_where_it_is_reached(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str
) -> None:
    """What has begun is not for nothing: the site helps for as long as the new cap allows."""
    policy.save(home, capped(2.0))
    asked = private_plan(strategy={"rounds": 4})
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, plan=asked)[0])
        policy.save(home, capped(1.5))
        await coordinator.answer(coordinator.assign(app, number=2, plan=asked)[0])
        policy.save(home, capped(1.0))
        failure = await coordinator.failure(coordinator.assign(app, number=3, plan=asked)[0])
    assert failure.what.startswith("the privacy cap of this site would be passed (the cap is epsilon 1 at")


async def test_units_are_counted_in_the_sites_own_data(coordinator: Coordinator, home: NodeHome, start: Start, app: str, tmp_path: Path) -> None:
    """Whatever the app says; and again when the data have changed."""
    async with start():
        await coordinator.connected()
        for number, rows in ((1, ROWS), (2, 2 * ROWS)):
            write_csv(tmp_path / "heart.csv", rows)
            await coordinator.answer(coordinator.assign(app, number=number, plan=private_plan())[0])
    first, second = items(home)
    assert [spend.sampling_rate for spend in spends_of((first, second))] == [10 / ROWS, 10 / (2 * ROWS)]
    assert len({first.claim.data, second.claim.data, ""}) == 3


async def test_an_answer_is_on_record_before_its_first_byte_leaves(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    async with start():
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        key, _ = coordinator.assign(app, plan=private_plan())
        await until(lambda: coordinator.attempts)
        assert [item.standing for item in items(home)] == ["released"]
        coordinator.verdicts.clear()
        body = await coordinator.answer(key)
        (item,) = await settled(home, "committed")
    assert ((item.release or {})["size"], (item.commit or {})["verdict"]) == (len(body), "accepted")


async def test_a_pause_breaks_off_an_answer_that_is_on_its_way(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    """What has left by then counts; not a byte more leaves, and the coordinator hears why."""
    async with start():
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        key, _ = coordinator.assign(app, plan=private_plan())
        await until(lambda: coordinator.attempts)
        facts.pause(home, paused=True)
        failure = await coordinator.failure(key)
        tried = coordinator.attempts
        assert (failure.cause, failure.what) == (Cause.POLICY, "this site is paused by its owner")
        facts.pause(home, paused=False)
        coordinator.verdicts.clear()
        await coordinator.answer(coordinator.assign(app, number=2, plan=private_plan())[0])
        assert coordinator.attempts == tried + 1
    assert [item.standing for item in items(home)] == ["released", "committed"]


async def test_what_never_left_is_given_back_and_what_was_told_is_not(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    failing = coordinator.put_app(tmp_path / "failing", app=PRIVATE.replace("def run(self, work):", "def run(self, work):\n        1 / 0"))
    endless = coordinator.put_app(tmp_path / "endless", app=PRIVATE.replace("def run(self, work):", "def run(self, work):\n        while True: pass"))
    async with start():
        await coordinator.connected()
        assert (await coordinator.failure(coordinator.assign("0" * 64, run="a", plan=private_plan())[0])).cause is Cause.NETWORK
        assert (await coordinator.failure(coordinator.assign(failing, run="b", plan=private_plan())[0])).cause is Cause.CODE
        key, _ = coordinator.assign(endless, run="c", plan=private_plan())
        await settled(home, "refunded", "reserved", "reserved")
        coordinator.release(key)
        await settled(home, "refunded", "reserved", "refunded")


async def test_a_task_that_is_dropped_while_its_cost_is_set_aside_costs_nothing(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is there, and whoever asked for it does not wait any more."""
    reserve, dropped = Ledger.reserve, Event()

    def slow(ledger: Ledger, *what: Any) -> int:
        reservation = reserve(ledger, *what)
        assert dropped.wait(PATIENCE)
        return reservation

    monkeypatch.setattr(Ledger, "reserve", slow)
    async with start() as node:
        await coordinator.connected()
        key, _ = coordinator.assign(app, plan=private_plan())
        await settled(home, "reserved")
        coordinator.release(key)
        await until(lambda: node.events("released"))
        await asyncio.sleep(0)
        dropped.set()
        await settled(home, "refunded")


async def test_without_privacy_answers_are_on_record_and_covered_by_nothing(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    async with start():
        await coordinator.connected()
        for phase in (Phase.TRAIN, Phase.EVALUATE):
            await coordinator.answer(coordinator.assign(app, phase, plan=plan_text() if phase is Phase.EVALUATE else private_plan())[0])
        await coordinator.answer(coordinator.assign(app, Phase.INIT, 0, plan=private_plan())[0])
        await coordinator.answer(coordinator.assign(app, Phase.EVALUATE, run="run-2", plan=private_plan())[0])
        train, evaluate, init, held_out = await settled(home, *["committed"] * 4)
    assert [bool(item.claim.spends) for item in (train, evaluate, init, held_out)] == [True, False, False, False]
    assert (evaluate.claim.spends, init.claim.spends, held_out.claim.spends) == (None, (), None)
    assert [part[0] for part in (init.release or {})["parts"]] == ["w", "b"]
    assert (held_out.release or {})["parts"] == [["weight", []], ["loss", [1]]]


async def test_another_life_goes_on_with_the_same_ledger_and_never_without_privacy(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str
) -> None:
    """The app refuses to train without privacy, so an answer shows that it had it: in a new worker, and in a new node."""
    policy.save(home, capped(2.0))
    async with start() as node:
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, plan=private_plan())[0])
        (worker,) = node.node._workers._idle.values()
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: not worker.alive)
        await coordinator.answer(coordinator.assign(app, number=2, plan=private_plan())[0])
        await settled(home, "committed", "committed")
    coordinator.answers.clear()
    async with start():
        await coordinator.connected(2)
        failure = await coordinator.failure(coordinator.assign(app, number=2, plan=private_plan())[0])
    assert failure.what.startswith("the privacy cap of this site would be passed")
    assert [item.claim.number for item in items(home)] == [1, 2]
    assert Ledger.open(home).verify() == ""


async def test_the_same_answer_sent_again_by_another_life_counts_once(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    for life in (1, 2):
        async with start():
            await coordinator.connected(life)
            coordinator.answers.clear()
            await coordinator.answer(coordinator.assign(app, plan=plan_text())[0])
            await settled(home, *["committed", "refunded"][:life])
    first, again = items(home)
    assert (again.refund or {})["reason"] == f"the same bytes left as entry {first.seq}"


async def test_a_private_answer_that_is_asked_for_again_is_the_same_bytes_and_counts_once(
    coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path
) -> None:
    """By another coordinator after a takeover, also by a node that was started again, and under a cap that is all spent."""
    policy.save(home, capped(2.0))
    counting = PRIVATE.replace("def run(self, work):", f"def run(self, work):\n        open({str(tmp_path / 'trained')!r}, 'a').write('x')")
    app = coordinator.put_app(tmp_path / "app", app=counting)
    for life in (1, 2):
        async with start():
            await coordinator.connected(life)
            for number in (1, 2)[life - 1 :]:
                coordinator.verdicts.append(bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.ACCEPTED, keep=True))
                coordinator.answers.clear()
                await coordinator.answer(coordinator.assign(app, number=number, plan=private_plan())[0])
            await settled(home, *["committed", "committed", "refunded"][: life + 1])
    assert (tmp_path / "trained").read_text() == "xx"
    assert epsilon(spends_of(item for item in items(home) if not item.refund), DELTA) == pytest.approx(2.0, abs=0.02)


def spoil_policy(home: NodeHome) -> None:
    home.policy_file.write_text("require_dp = perhaps")


def spoil_ledger(home: NodeHome) -> None:
    with opened_database(home) as connection:
        connection.execute("DELETE FROM entry WHERE seq = 3")


def require_more(home: NodeHome) -> None:
    policy.save(home, Policy(require_secagg=True))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (spoil_policy, "the policy of this site cannot be read"),
        (spoil_ledger, "the privacy ledger of this site cannot be used"),
        (require_more, "this site answers with secure aggregation only"),
    ],
)
async def test_from_the_next_task_on(coordinator: Coordinator, home: NodeHome, start: Start, app: str, spoil: Any, what: str) -> None:
    """A running node heeds a changed policy; of one that cannot be read, and of a ledger that was changed, only that much leaves the site."""
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, plan=private_plan())[0])
        await settled(home, "committed")
        spoil(home)
        failure = await coordinator.failure(coordinator.assign(app, number=2, plan=private_plan())[0])
    assert (failure.cause, failure.what) == (Cause.POLICY, what)
    assert str(home.path) not in str(failure)
    assert "entry" not in str(failure)
    assert len(coordinator.answers) == 1


@pytest.mark.parametrize(
    ("loader", "cause", "what"),
    [
        ("def load():\n    raise ValueError('Erika')", Cause.DATA, "the dataset could not be counted"),
        ("def load():\n    print('Erika')\n    return ['Erika']", Cause.DATA, "the records of list cannot be counted"),
    ],
)
async def test_data_that_cannot_be_counted(
    coordinator: Coordinator, start: Start, app: str, tmp_path: Path, loader: str, cause: Cause, what: str
) -> None:
    site = coordinator.home(tmp_path / "other", "other")
    (tmp_path / "own.py").write_text(loader)
    declarations.add(site, "heart", Declaration(kind="loader", loader=f"{tmp_path / 'own.py'}:load"))
    async with start(site):
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(app, plan=private_plan())[0])
    assert (failure.cause, failure.what) == (cause, what)
    assert "Erika" not in str(failure)
    assert items(site) == ()


async def test_a_withdrawn_count_leaves_no_process(coordinator: Coordinator, start: Start, app: str, tmp_path: Path) -> None:
    site, marker = coordinator.home(tmp_path / "other", "other"), tmp_path / "pid"
    (tmp_path / "own.py").write_text(
        f"def load():\n    import os, pathlib, time\n    pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n    time.sleep(1000)"
    )
    declarations.add(site, "heart", Declaration(kind="loader", loader=f"{tmp_path / 'own.py'}:load"))
    async with start(site) as node:
        await coordinator.connected()
        key, _ = coordinator.assign(app, plan=private_plan())
        await until(lambda: marker.exists() and marker.read_text())
        coordinator.release(key)
        await until(lambda: not node.node._jobs)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


async def test_each_answer_tells_where_the_ledger_ends(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    async with start():
        await coordinator.connected()
        for number in (1, 2):
            await coordinator.answer(coordinator.assign(app, number=number, plan=private_plan())[0])
        await settled(home, "committed", "committed")
    told = [Head.parsed(head) for head in coordinator.heads]
    assert [entry.digest for head in told for entry in Ledger.open(home).entries() if entry.seq == head.seq] == [head.digest for head in told]
    released = [entry.seq for entry in Ledger.open(home).entries() if entry.kind == "release"]
    assert [head.seq for head in told] == released


@pytest.mark.parametrize("head", [f"7:{'ab' * 32}", f"0:{'ab' * 32}", "no end of a ledger"])
async def test_a_ledger_that_lacks_what_the_coordinator_has_noted_allows_nothing(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str, head: str
) -> None:
    coordinator.ledger = head
    async with start() as node:
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(app, plan=private_plan())[0])
        assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, "the privacy ledger of this site cannot be used")
        (event,) = node.events("ledger rolled back")
        assert [found["noted"] for found in node.events("connected")] == [head]
    assert event["problem"]
    assert items(home) == ()


async def test_a_disk_that_refuses_at_the_greeting_allows_nothing_and_keeps_the_node(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    coordinator.ledger = f"0:{'00' * 32}"
    monkeypatch.setattr(Ledger, "lacks", refuse)
    monkeypatch.setattr(NodeHome, "remember", refuse)
    async with start() as node:
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(app, plan=private_plan())[0])
        assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, "the privacy ledger of this site cannot be used")
        assert [event["error"] for event in node.events("ledger not read")] == [
            "the privacy ledger of this site cannot be read (No space left on device)"
        ]
        assert (node.task.done(), node.events("ledger rolled back"), items(home)) == (False, [], ())
        monkeypatch.undo()
        failure = await coordinator.failure(coordinator.assign(app, plan=private_plan(), run="run-2")[0])
        assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, "the privacy ledger of this site cannot be used")
        await coordinator.stop()
        coordinator.ledger = f"0:{Ledger.open(home)._signer.origin}"
        monkeypatch.setattr(Ledger, "lacks", refuse)
        await coordinator.start()
        await until(lambda: len(node.events("ledger not read")) == 2)
        monkeypatch.undo()
        await coordinator.answer(coordinator.assign(app, plan=private_plan(), run="run-3")[0])


async def test_a_ledger_that_has_what_the_coordinator_has_noted_goes_on(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, number=1, plan=private_plan())[0])
    coordinator.ledger = coordinator.heads[-1]
    async with start() as node:
        await coordinator.connected(2)
        await coordinator.answer(coordinator.assign(app, number=2, plan=private_plan())[0])
        assert node.events("ledger rolled back") == []


async def test_two_runs_at_once_are_not_both_let_in_where_only_one_fits(coordinator: Coordinator, home: NodeHome, start: Start, app: str) -> None:
    """The one that was let in keeps its room until its coordinator has ended it."""
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, run="one", plan=private_plan())[0])
        (spend,) = spends_of(await settled(home, "committed"))
        policy.save(home, capped(epsilon(repeated(spend, 3), DELTA)))
        failure = await coordinator.failure(coordinator.assign(app, run="two", plan=private_plan())[0])
        assert (failure.cause, failure.what.split(" (")[0]) == (Cause.POLICY, BEYOND)
        assert "is left beside what runs under way may yet spend" in failure.what
        coordinator.release(("one", Phase.MESSAGE, 0))
        await until(lambda: Ledger.open(home).holds() == ())
        for number in (1, 2):
            await coordinator.answer(coordinator.assign(app, number=number, run="three", plan=private_plan())[0])
    assert [item.claim.run for item in items(home)] == ["one", "three", "three"]


async def test_a_site_asks_for_the_ends_of_runs_that_keep_room_when_it_comes_back(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str
) -> None:
    """Of no others; and hears them, though it was away, and killed, when they ended."""
    lives = [([], ["one", "two"]), (["one", "two"], ["three"]), (["one", "three"], [])]
    for life, (kept, runs) in enumerate(lives, 1):
        async with start():
            session = await coordinator.connected(life)
            assert list(session.hello.runs) == kept
            if life == 2:
                coordinator.release(("two", Phase.MESSAGE, 0))
                await until(lambda: [hold.run for hold in Ledger.open(home).holds()] == ["one"])
            for run in runs:
                await coordinator.answer(coordinator.assign(app, run=run, plan=private_plan())[0])
    assert [(item.claim.run, item.claim.answers) for item in items(home)] == [("one", 2), ("two", 2), ("three", 2)]


async def test_room_is_kept_as_long_as_a_plan_may_take_and_a_day_more_but_no_longer_than_a_month(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str
) -> None:
    async with start():
        await coordinator.connected()
        for number, (rounds, deadline) in enumerate(((2, "1h"), (20, "1h"), (2, "30d"))):
            asked = private_plan(strategy={"rounds": rounds}, clients={"deadline": deadline})
            await coordinator.answer(coordinator.assign(app, run=f"run-{number}", plan=asked)[0])
    seconds = [(datetime.fromisoformat(item.claim.until) - datetime.fromisoformat(item.at)).total_seconds() for item in items(home)]
    assert seconds == pytest.approx([86400 + 2 * 7200, 86400 + 20 * 7200, 30 * 86400], abs=PATIENCE)
    assert [hold.answers for hold in Ledger.open(home).holds()] == [1, 19, 1]


@pytest.mark.parametrize("spoil", [spoil_ledger, lambda home: (home.ledger / "ledger.db").write_bytes(b"no database" * 999)])
async def test_a_ledger_that_cannot_be_read_keeps_no_site_from_coming(
    coordinator: Coordinator, home: NodeHome, start: Start, app: str, spoil: Any
) -> None:
    async with start():
        await coordinator.connected()
        await coordinator.answer(coordinator.assign(app, plan=private_plan())[0])
        await settled(home, "committed")
    spoil(home)
    async with start() as node:
        session = await coordinator.connected(2)
        coordinator.release(("run-1", Phase.MESSAGE, 0))
        failure = await coordinator.failure(coordinator.assign(app, number=2, plan=private_plan())[0])
        assert (list(session.hello.runs), failure.cause, node.task.done()) == ([], Cause.POLICY, False)
