"""The node as a whole: real workers, a real coordinator's protocol, everything over mTLS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from fedscale.errors import Cause, ConfigError, Conflict
from fedscale.learner import Phase
from fedscale.proto.v1 import bulk_pb2
from fedscale.vector import Schema
from fedscale_client import declarations, states
from fedscale_client import node as node_module
from fedscale_client import workers as workers_module
from fedscale_client.cache import Part
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from fedscale_client.node import run
from fedscale_client.states import States
from tests.client.conftest import LEARNER, ROWS, Running, Start, learner, write_csv
from tests.client.coordinator import PATIENCE, Coordinator, plan_text, until

Receipt = bulk_pb2.Receipt


def waiting(name: str, when: str = "True") -> str:
    """A learner that waits for a file beside its node's home."""
    body = f"""
import pathlib, time
work.progress(0.5)
while {when} and not (pathlib.Path.cwd().parents[3] / "{name}").exists():
    time.sleep(0.01)
print('trained')
"""
    return learner(body)


def has_answered(node: Running, times: int) -> bool:
    return len(node.events("answered")) == times


def trained(home: NodeHome) -> int:
    """How often a learner has trained, by the worker's log."""
    return home.log_file.read_text().splitlines().count("trained")


async def test_all_phases_of_a_run(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        session = await coordinator.connected()
        assert list(session.hello.datasets) == ["heart"]
        key, _ = coordinator.assign(app, Phase.INIT, 0)
        first = await coordinator.answer(key)
        assert np.frombuffer(first, "<f4").tolist() == [0, 0, 0, 1]
        assert Schema.from_json(coordinator.answers[0][2]).tensors[1].name == "b"

        key, layout = coordinator.assign(app, Phase.TRAIN, 1)
        words = await coordinator.words(key, layout)
        weight, sums = layout.tail(words)
        assert weight == ROWS * 0.8
        assert layout.mean(words, weight).tolist() == [0.5] * 4
        assert sums["loss"].tolist() == [weight]

        key, layout = coordinator.assign(app, Phase.EVALUATE, 1, plan=plan_text(evaluate={"metrics": ["accuracy"]}))
        weight, sums = layout.tail(await coordinator.words(key, layout))
        assert (weight, sums["accuracy"].tolist()) == (ROWS * 0.2, [ROWS * 0.2])
        await until(lambda: len(node.events("answered")) == 3)
        assert {event["verdict"] for event in node.events("answered")} == {"accepted"}
        assert coordinator.fetches.count((app, 0)) == 1
        assert list((tmp_path / "node/cache/answers").iterdir()) == []


# ---------------------------------------------------------------------------------------------- what outlives a stream


async def test_work_goes_on_without_a_server_and_its_answer_arrives(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    async with start() as node:
        await coordinator.connected()
        key, layout = coordinator.assign(app)
        await until(lambda: node.events("progress"))
        await coordinator.stop()
        await until(lambda: node.events("disconnected"))
        (tmp_path / "go").touch()
        await until(lambda: node.node._delivering)
        await coordinator.start()
        assert (await coordinator.words(key, layout)).size == layout.length
        await until(lambda: node.events("answered"))
    assert trained(home) == 1


async def test_the_same_task_again_is_answered_from_what_is_kept(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    """A server that was restarted asks again, while the answer is still on its way."""
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    (tmp_path / "go").touch()
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        key, layout = coordinator.assign(app)
        await until(lambda: coordinator.attempts >= 2)
        coordinator.session.outbox.put_nowait(None)
        await coordinator.connected(2)
        coordinator.assign(app)
        await until(lambda: len(coordinator.heard("accepted")) == 2)
        coordinator.verdicts.clear()
        assert (await coordinator.words(key, layout)).size == layout.length
        await until(lambda: node.events("answered"))
    assert trained(home) == 1


@pytest.mark.parametrize("whole", [True, False], ids=["stopped", "died"])
async def test_an_answer_outlives_its_node(
    coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """The next life of the node is asked again, and delivers without training."""
    monkeypatch.setattr(node_module, "DRAIN_SECONDS", 0.05)
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    (tmp_path / "go").touch()
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 5000)
        key, layout = coordinator.assign(app)
        await until(lambda: coordinator.attempts >= 2)
        left = {path: path.read_bytes() for path in (home.cache / "answers").iterdir()}
        await node.stop()
    if not whole:
        # What a killed process leaves, with a file that it was in the middle of.
        for path, data in left.items():
            path.write_bytes(data)
        (home.cache / "answers" / "torn").write_bytes(b"half an ans")
    coordinator.verdicts.clear()
    async with start() as node:
        await coordinator.connected(2)
        coordinator.assign(app)
        assert (await coordinator.words(key, layout)).size == layout.length
        await until(lambda: node.events("answered"))
    assert trained(home) == 1
    assert list((home.cache / "answers").iterdir()) == []


async def test_an_answer_that_the_server_may_lose_is_kept_until_the_next_task(
    coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path
) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    (tmp_path / "go").touch()
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([Receipt(verdict=Receipt.ACCEPTED, keep=True)] * 2)
        for times in (1, 2):
            coordinator.assign(app)
            await until(partial(has_answered, node, times))
        assert trained(home) == 1
        assert coordinator.answers[0] == coordinator.answers[1]
        assert len(list((home.cache / "answers").iterdir())) == 2
        coordinator.assign(app, number=2)
        await until(partial(has_answered, node, 3))
        await until(lambda: not list((home.cache / "answers").iterdir()))
    assert trained(home) == 2


async def test_a_task_at_work_is_not_begun_twice(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    async with start() as node:
        await coordinator.connected()
        key, _ = coordinator.assign(app)
        await until(lambda: node.events("progress"))
        coordinator.assign(app)
        await until(lambda: len(coordinator.heard("accepted")) == 2)
        (tmp_path / "go").touch()
        await coordinator.answer(key)
    assert trained(home) == 1
    assert len(coordinator.answers) == 1


async def test_a_failure_is_told_again_without_trying_again(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=learner("print('trained')\nraise ValueError"))
    async with start():
        await coordinator.connected()
        key, _ = coordinator.assign(app)
        first = await coordinator.failure(key)
        coordinator.assign(app)
        await until(lambda: len(coordinator.heard("failed")) == 2)
        assert coordinator._failed(key) == [first, first]
    assert trained(home) == 1


async def test_a_failure_that_nobody_heard_is_told_to_the_next_server(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go").replace("print('trained')", "raise ValueError"))
    async with start() as node:
        await coordinator.connected()
        key, _ = coordinator.assign(app)
        await until(lambda: node.events("progress"))
        await coordinator.stop()
        (tmp_path / "go").touch()
        await until(lambda: node.events("failed"))
        assert coordinator._failed(key) == []
        await coordinator.start()
        await coordinator.connected(2)
        coordinator.assign(app)
        assert (await coordinator.failure(key)).what == "the app raised ValueError"


async def test_an_answer_is_kept_until_it_is_wanted_no_more(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    answers = home.cache / "answers"
    async with start() as node:
        await coordinator.connected()
        for number, verdict in enumerate(("REJECTED", "CLOSED", "DUPLICATE"), 1):
            coordinator.verdicts.append(Receipt(verdict=Receipt.Verdict.Value(verdict), reason="because"))
            coordinator.assign(app, number=number)
            await until(partial(has_answered, node, number))
            assert node.events("answered")[-1]["verdict"] == verdict.lower()
            assert list(answers.iterdir()) == []
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        key, _ = coordinator.assign(app, number=4)
        await until(lambda: coordinator.attempts >= 5)
        assert [path.suffix for path in sorted(answers.iterdir())] == ["", ".json"]
        coordinator.release(key)
        await until(lambda: not list(answers.iterdir()))


async def test_an_answer_the_server_refuses_becomes_a_failure(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start():
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.INVALID_ARGUMENT] * 30)
        key, _ = coordinator.assign(app)
        failure = await coordinator.failure(key)
        assert (failure.cause, failure.what) == (Cause.REJECTED, "scripted")


# ------------------------------------------------------------------------------------------------ order and releasing


async def test_a_released_task_ends_and_the_worker_goes_on(
    coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 60.0)
    app = coordinator.put_app(tmp_path / "app", app=waiting("go", when="work.number == 1"))
    async with start() as node:
        await coordinator.connected()
        first, _ = coordinator.assign(app)
        await until(lambda: node.events("progress"))
        (pid,) = [worker.pid for worker in node.node._workers._busy]
        coordinator.release(first)
        second, _ = coordinator.assign(app, number=2)
        await coordinator.answer(second)
        assert [worker.pid for worker in node.node._workers._idle.values()] == [pid]
        assert node.events("released") == [{"event": "released", "node": "mercy", "key": "run-1/train/1"}]
        coordinator.release(("no", Phase.TRAIN, 1))
        third, _ = coordinator.assign(app, number=3)
        await coordinator.answer(third)
    assert [key for key, _, _ in coordinator.answers] == [second, third]
    assert coordinator.heard("failed") == []


async def test_what_an_app_remembers_goes_with_its_run(coordinator: Coordinator, home: NodeHome, start: Start) -> None:
    for name in ("run-1", "run-2", "of old"):
        States(states.folder_of(home.cache, name)).keep(1, b"a patient's")
    os.utime(states.folder_of(home.cache, "of old"), (0, 0))
    async with start():
        await coordinator.connected()
        assert not states.folder_of(home.cache, "of old").exists()
        coordinator.release(("run-1", Phase.MESSAGE, 1))
        coordinator.release(("run-2", Phase.MESSAGE, 0))
        await until(lambda: not states.folder_of(home.cache, "run-2").exists())
        assert States(states.folder_of(home.cache, "run-1")).before(2) == b"a patient's"


async def test_a_task_that_waits_can_be_released(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    async with start() as node:
        await coordinator.connected()
        first, _ = coordinator.assign(app)
        waiting_key, _ = coordinator.assign(app, number=2)
        await until(lambda: node.events("progress"))
        coordinator.release(waiting_key)
        await until(lambda: node.events("released"))
        (tmp_path / "go").touch()
        await coordinator.answer(first)
    assert trained(home) == 1


async def test_one_task_of_a_run_at_a_time_but_two_runs(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    async with start() as node:
        await coordinator.connected()
        keys = [coordinator.assign(app, number=number, run=run)[0] for run in ("run-1", "run-2") for number in (1, 2)]
        await until(lambda: len({event["key"] for event in node.events("progress")}) == 2)
        assert {event["key"] for event in node.events("progress")} == {"run-1/train/1", "run-2/train/1"}
        (tmp_path / "go").touch()
        for key in keys:
            await coordinator.answer(key)
    assert sorted(keys) == sorted(key for key, _, _ in coordinator.answers)


async def test_there_is_an_end_to_what_is_taken_on(coordinator: Coordinator, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MOST_JOBS", 2)
    app = coordinator.put_app(tmp_path / "app", app=waiting("go"))
    async with start():
        await coordinator.connected()
        keys = [coordinator.assign(app, number=number)[0] for number in (1, 2, 3)]
        failure = await coordinator.failure(keys[2])
        assert (failure.cause, failure.what) == (Cause.WORKER, "the node has 2 tasks already")
        (tmp_path / "go").touch()
        await coordinator.answer(keys[1])


async def test_failures_are_kept_within_bounds(coordinator: Coordinator, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MOST_FAILURES", 2)
    async with start() as node:
        await coordinator.connected()
        for number in (1, 2, 3):
            await coordinator.failure(coordinator.assign("0" * 64, number=number)[0])
        assert [key[2] for key in node.node._failures] == [2, 3]
        coordinator.release(("run-1", Phase.TRAIN, 2))
        await until(lambda: len(node.node._failures) == 1)


async def test_progress_reaches_the_server(coordinator: Coordinator, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "PROGRESS_SECONDS", 0.0)
    app = coordinator.put_app(tmp_path / "app", app=learner("import time\nfor i in range(4): work.progress(i / 4); time.sleep(0.25)"))
    async with start():
        await coordinator.connected()
        key, _ = coordinator.assign(app)
        await coordinator.answer(key)
        await until(lambda: len(coordinator.heard("progress")) >= 3)
        stages = [message.stage for message in coordinator.heard("progress")]
        assert (stages[0], set(stages[1:])) == ("train", {""}), "that work begins is told once, before anything of how far it is"
        heard = [message.fraction for message in coordinator.heard("progress") if not message.stage]
        assert heard == sorted(heard)
        assert set(heard) <= {0.0, 0.25, 0.5, 0.75}
        assert len(heard) >= 2


# --------------------------------------------------------------------------------------------- what cannot be answered


async def test_a_dataset_the_site_has_not_declared(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    async with start():
        await coordinator.connected()
        key, _ = coordinator.assign(coordinator.put_app(tmp_path / "app", app=LEARNER), plan=plan_text(data="lungs"))
        failure = await coordinator.failure(key)
    assert (failure.cause, failure.what) == (Cause.POLICY, "this site does not offer the dataset 'lungs'")
    assert "fedscale node data add lungs ..." in failure.hint
    assert coordinator.fetches == []


async def test_a_bundle_that_is_damaged(coordinator: Coordinator, start: Start) -> None:
    async with start():
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(coordinator.put(b"no bundle"))[0])
    assert (failure.cause, failure.what) == (Cause.CODE, "this is not a bundle, or its end is missing")


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd"])
async def test_a_bundle_the_server_does_not_have(coordinator: Coordinator, start: Start, name: str) -> None:
    async with start():
        await coordinator.connected()
        failure = await coordinator.failure(coordinator.assign(name)[0])
    assert failure.cause is Cause.NETWORK
    assert failure.what.startswith(("no such blob", "a blob's name is malformed"))


async def test_a_model_that_does_not_come_in_time(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start():
        await coordinator.connected()
        coordinator.break_fetch_after.extend([0] * 1000)
        failure = await coordinator.failure(coordinator.assign(app, deadline=0.5)[0])
    assert (failure.cause, failure.hint) == (Cause.NETWORK, "raise clients.deadline")


async def test_a_full_disk_is_told(coordinator: Coordinator, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        await coordinator.connected()

        def full(frame: bytes) -> None:
            raise OSError(28, "No space left on device", str(tmp_path))

        with monkeypatch.context() as patch:
            patch.setattr(Part, "take", lambda self, frame: full(frame))
            failure = await coordinator.failure(coordinator.assign(app)[0])
        assert (failure.cause, failure.hint) == (Cause.DISK, "free space in the node's home")
        assert str(tmp_path) not in str(failure)
        await coordinator.answer(coordinator.assign(app, number=2)[0])
        assert node.events("disconnected") == []


@pytest.mark.parametrize(
    ("body", "cause", "deadline"), [("import os; os._exit(1)", Cause.WORKER, 60.0), ("import time; time.sleep(1000)", Cause.TIMEOUT, 6.0)]
)
async def test_the_end_of_a_worker_reaches_the_server(
    coordinator: Coordinator, start: Start, tmp_path: Path, body: str, cause: Cause, deadline: float
) -> None:
    app = coordinator.put_app(tmp_path / "app", app=learner(f"if work.number == 1:\n    {body}"))
    async with start():
        await coordinator.connected()
        assert (await coordinator.failure(coordinator.assign(app, deadline=deadline)[0])).cause is cause
        await coordinator.answer(coordinator.assign(app, number=2)[0])


async def test_no_patient_reaches_the_server(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    """The name is in the data, in the message, in a note, in a cause and in a variable; it stays in the site's log."""
    name = "Erika Mustermann"
    body = """
name = work.data.groups[3]
try:
    float(name)
except ValueError as error:
    error.add_note(name)
    raise KeyError(name, {name: name}) from error
"""
    home = coordinator.home(tmp_path / "other", "other")
    rows = "\n".join(f"{i},{name},{i % 2}" for i in range(ROWS))
    (tmp_path / "patients.csv").write_text(f"a,who,y\n{rows}\n")
    declarations.add(home, "heart", Declaration(kind="csv", path=str(tmp_path / "patients.csv"), label="y", group="who"))
    app = coordinator.put_app(tmp_path / "app", app=learner(body))
    async with start(home) as node:
        await coordinator.connected()
        await coordinator.failure(coordinator.assign(app)[0])
        heard = [str(message) for session in coordinator.sessions for message in session.heard]
        assert any("KeyError" in message for message in heard)
        assert not any("Mustermann" in text for text in (*heard, *map(str, node.told)))
    assert home.log_file.read_text().count(name) >= 3


async def test_a_change_of_the_data_is_seen_in_the_next_round(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start():
        await coordinator.connected()
        for number, rows in ((1, ROWS), (2, 2 * ROWS)):
            write_csv(tmp_path / "heart.csv", rows)
            key, layout = coordinator.assign(app, number=number)
            assert layout.tail(await coordinator.words(key, layout))[0] == rows * 0.8


# -------------------------------------------------------------------------------------------------- beginning and end


async def test_stopping_delivers_what_is_ready(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        key, _ = coordinator.assign(app)
        await until(lambda: coordinator.attempts)
        node.node.stop()
        await until(lambda: node.events("delivering"))
        coordinator.verdicts.clear()
        await coordinator.answer(key)
        await asyncio.wait_for(node.task, PATIENCE)
    assert [event["event"] for event in node.told][-2:] == ["answered", "stopped"]


async def test_stopping_waits_for_no_answer_for_ever(coordinator: Coordinator, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "DRAIN_SECONDS", 0.2)
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 5000)
        coordinator.assign(app)
        await until(lambda: coordinator.attempts)
        await node.stop()
    assert coordinator.answers == []


async def test_stopping_ends_work_and_workers(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=waiting("never"))
    async with start() as node:
        session = await coordinator.connected()
        coordinator.assign(app)
        await until(lambda: node.events("progress"))
        (pid,) = [worker.pid for worker in node.node._workers._busy]
        await node.stop()
        await until(lambda: not session.open)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert coordinator.answers == []
    assert coordinator.heard("failed") == []


async def test_a_stopping_node_takes_nothing_on(coordinator: Coordinator, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    async with start() as node:
        await coordinator.connected()
        coordinator.verdicts.extend([grpc.StatusCode.UNAVAILABLE] * 500)
        coordinator.assign(app)
        await until(lambda: coordinator.attempts)
        node.node.stop()
        await until(lambda: node.events("delivering"))
        coordinator.assign(app, number=2)
        await until(lambda: coordinator.session.kinds().count("heartbeat") >= 2)
        coordinator.verdicts.clear()
        await asyncio.wait_for(node.task, PATIENCE)
    assert len(node.events("task")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_in_order(coordinator: Coordinator, home: NodeHome, tmp_path: Path, number: signal.Signals) -> None:
    script = """
import asyncio, json, pathlib, sys
from fedscale_client.home import NodeHome
from fedscale_client.node import run
from fedscale_client.states import States
asyncio.run(run(NodeHome(pathlib.Path(sys.argv[1])), on_event=lambda event: print(json.dumps(event), flush=True)))
"""
    app = coordinator.put_app(tmp_path / "app", app=waiting("never"))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(home.path), stdout=asyncio.subprocess.PIPE)
    session = await coordinator.connected()
    with pytest.raises(Conflict, match="running in this home already"):
        await run(home, on_event=lambda _: None)
    coordinator.assign(app)
    await until(lambda: any(message.fraction for message in coordinator.heard("progress")))
    process.send_signal(number)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["connected", "task", "progress", "stopped"]
    await until(lambda: not session.open)


async def test_after_a_crash_the_node_starts_clean(coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    (home.cache / "answers").mkdir(parents=True)
    (home.cache / "answers/0").write_text("of an earlier life")
    async with start():
        await coordinator.connected()
        key, layout = coordinator.assign(app)
        assert (await coordinator.words(key, layout)).size == layout.length


async def test_datasets_that_cannot_be_read_keep_a_node_from_starting(coordinator: Coordinator, home: NodeHome) -> None:
    home.datasets_file.write_text("[heart]\nkind = 'oracle'")
    with pytest.raises(ConfigError, match=r"\[heart\]: kind"):
        await run(home, on_event=lambda _: None)


def test_the_node_itself_is_light() -> None:
    script = "import sys, fedscale_client.node\nprint(*sorted({'torch', 'pandas', 'alembic', 'flwr', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
