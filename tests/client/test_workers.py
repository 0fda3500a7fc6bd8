"""Workers as real processes: warm, silent, and every way in which one can end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.errors import Cause, Failure
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.ring import WORD
from fedscale.task import layout_for
from fedscale.vector import Schema
from fedscale_client import workers as workers_module
from fedscale_client.declarations import Declaration
from fedscale_client.worker import PROGRESS_SECONDS
from fedscale_client.workers import Done, Worker, Workers
from tests.client.conftest import LEARNER, ROWS, learner, write_csv
from tests.client.coordinator import MODEL, SCHEMA, digest, plan_text, until
from tests.server.ports import own_port

ROOT = Path(__file__).parents[2]
CANARY = "Erika_Mustermann_1951"
PATIENT = "'Erika_' + 'Mustermann_1951'"  # as an app comes to it: not by a literal in its source


class Shop:
    """Workers and everything a task for them is made of."""

    def __init__(self, folder: Path, most: int = 2) -> None:
        self.folder, self.log = folder, folder / "log/worker.log"
        self.workers = Workers(self.log, most)
        self.csv = write_csv(folder / "heart.csv")
        (folder / "model").write_bytes(MODEL.tobytes())
        self.progress: list[float] = []

    def app(self, text: str, name: str = "bundle", module: str = "app") -> Path:
        bundle = self.folder / name
        bundle.mkdir(exist_ok=True)
        (bundle / f"{module}.py").write_text(text)
        return bundle

    async def do(
        self, bundle: Path, phase: Phase = Phase.TRAIN, *, key: Hashable = "run", number: int = 1, seconds: float = 60.0, **changes: Any
    ) -> Done | Failure:
        """Have one task done; ``changes`` are made to its request, its plan or the dataset's declaration."""
        declaration = changes.pop("declaration", Declaration(kind="csv", path=str(self.csv), label="y"))
        first = phase is Phase.INIT
        told = declaration.model_dump(mode="json")
        seat = {"bundle": str(bundle), "home": str(self.folder), "dataset": changes.pop("dataset", "heart"), "declaration": told}
        request = {
            "plan": plan_text(**changes.pop("plan", {})),
            "node": "mercy",
            "phase": str(phase),
            "number": number,
            "terms": 2,
            "clip": 0.0,
            "schema": "" if first else SCHEMA.to_json(),
            "model": "" if first else str(self.folder / "model"),
            "answer": str(self.folder / "answer"),
            **changes,
        }
        return await self.workers.perform(key, seat, request, asyncio.get_running_loop().time() + seconds, self.progress.append)

    async def done(self, bundle: Path, phase: Phase = Phase.TRAIN, **changes: Any) -> Done:
        outcome = await self.do(bundle, phase, **changes)
        assert isinstance(outcome, Done), outcome
        return outcome

    async def failed(self, bundle: Path, phase: Phase = Phase.TRAIN, **changes: Any) -> Failure:
        outcome = await self.do(bundle, phase, **changes)
        assert isinstance(outcome, Failure), outcome
        assert CANARY not in str(asdict(outcome))
        assert str(self.folder) not in str(asdict(outcome))
        return outcome

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers._idle.values()]


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a corpse its parent has not fetched yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop(tmp_path)
    yield made
    pids = made.pids()
    await made.workers.close()
    assert all(map(gone, pids))


# ---------------------------------------------------------------------------------------------------------- good work


async def test_an_answer_is_what_it_says(shop: Shop) -> None:
    done = await shop.done(shop.app(LEARNER))
    body = (shop.folder / "answer").read_bytes()
    assert (digest(body), len(body), done.schema) == (done.digest, done.size, "")
    layout = layout_for(Plan.from_toml(plan_text()), Phase.TRAIN, SCHEMA.size, 2)
    words = np.frombuffer(body, WORD)
    assert layout.tail(words)[0] == ROWS * 0.8
    layout.check(words)


async def test_a_first_model_comes_with_its_schema(shop: Shop) -> None:
    done = await shop.done(shop.app(LEARNER), Phase.INIT, number=0)
    assert Schema.from_json(done.schema) == SCHEMA
    assert np.frombuffer((shop.folder / "answer").read_bytes(), "<f4").tolist() == [0, 0, 0, 1]


async def test_a_worker_stays_warm_with_all_it_has_loaded(shop: Shop) -> None:
    head = "import os\nprint('imported', os.getpid())"
    bundle = shop.app(learner("print('data', id(work.data.x), len(work.data))", head))
    for number in (1, 2, 3):
        await shop.done(bundle, number=number)
        await shop.done(bundle, Phase.EVALUATE, number=number)
    (pid,) = shop.pids()
    lines = shop.log.read_text().splitlines()
    assert lines.count(f"imported {pid}") == 1
    data = [line for line in lines if line.startswith("data")]
    assert len(data) == 6
    assert len(set(data)) == 2


async def test_one_worker_a_run_and_the_oldest_makes_room(shop: Shop) -> None:
    bundle = shop.app(LEARNER)
    pids = []
    for key in ("a", "b", "c"):
        await shop.done(bundle, key=key)
        pids.append(shop.pids()[-1])
    assert len(set(pids)) == 3
    assert shop.pids() == pids[1:]
    assert gone(pids[0])
    await shop.done(bundle, key="b")
    assert shop.pids() == [pids[2], pids[1]]


async def test_there_are_never_more_than_allowed(tmp_path: Path) -> None:
    shop = Shop(tmp_path, most=1)
    bundle = shop.app(learner("import time; time.sleep(0.2)"))
    await asyncio.gather(*(shop.done(bundle, key=key, answer=str(tmp_path / key)) for key in ("a", "b")))
    assert len(shop.pids()) == 1
    wait = "import os, time\nwhile not os.path.exists('over'): time.sleep(0.01)"
    slow = asyncio.create_task(shop.done(shop.app(learner(wait), "slow"), key="c"))
    await until(lambda: shop.workers._busy)
    waited = await shop.do(bundle, key="d", seconds=0.2)
    assert isinstance(waited, Failure)
    assert (waited.cause, waited.hint) == (Cause.TIMEOUT, "raise workers in node.toml")
    (tmp_path / "slow" / "over").touch()
    await slow
    await shop.workers.close()


LISTENER = """
import socket

class Listener:
    exclusive = True

    def __init__(self, port):
        self.socket = socket.create_server(("127.0.0.1", port))

    def __len__(self):
        return 4

def load():
    return Listener({port})
"""
GATEWAY = """
from fedscale.flower.gateway import Gateway

def load():
    return Gateway("127.0.0.1:{port}", "127.0.0.1:{other}")
"""
ANSWER = "return Result({name: value + 1 for name, value in work.arrays.items()}, 3, {'loss': np.ones(1)})"


def loader(folder: Path, text: str) -> Declaration:
    """A dataset at ports that are nobody else's while one worker ends and the next begins."""
    (folder / "place.py").write_text(text.replace("{port}", str(own_port())).replace("{other}", str(own_port())))
    return Declaration(kind="loader", loader=str(folder / "place.py:load"))


@pytest.mark.parametrize("text", [LISTENER, pytest.param(GATEWAY, marks=pytest.mark.requires("flower"))], ids=["a port", "a gateway"])
async def test_what_can_be_there_once_serves_one_run_after_another(shop: Shop, text: str) -> None:
    bundle, declaration = shop.app(learner(ANSWER)), loader(shop.folder, text)
    pids = []
    for key in ("a", "b", "b", "a"):
        await shop.done(bundle, key=key, declaration=declaration)
        assert len(shop.pids()) == 1, "the worker of the other run has ended"
        pids += shop.pids()
    assert (len(set(pids)), pids[1] == pids[2]) == (3, True)


async def test_another_run_waits_while_what_can_be_there_once_is_in_use(shop: Shop) -> None:
    wait = "import os, time\nif work.number == 2:\n    work.progress(0.1)\n    while not os.path.exists('over'): time.sleep(0.01)"
    bundle, declaration = shop.app(learner(wait)), loader(shop.folder, LISTENER)
    await shop.done(bundle, key="a", declaration=declaration)
    busy = asyncio.create_task(shop.done(bundle, key="a", number=2, declaration=declaration))
    await until(lambda: shop.progress)
    waited = await shop.failed(bundle, key="b", declaration=declaration, seconds=0.2)
    assert waited.what == "no worker was free by the task's deadline", "none was begun"
    await shop.done(bundle, key="c", dataset="other", answer=str(shop.folder / "c"))
    (bundle / "over").touch()
    await busy
    await shop.done(bundle, key="b", declaration=declaration)
    assert len(shop.pids()) == 2, "a worker that holds nothing stays warm"


async def test_another_plan_for_the_same_run_is_read_anew(shop: Shop) -> None:
    bundle = shop.app(learner("print('rows', len(work.data), work.training.epochs)"))
    await shop.done(bundle)
    await shop.done(bundle, plan={"evaluate": {"holdout": 0.5}, "train": {"epochs": 3}})
    assert shop.log.read_text().splitlines() == [f"rows {round(ROWS * 0.8)} 1", f"rows {ROWS // 2} 3"]


async def test_seeds_and_model_arrive_as_they_were_sent(shop: Shop) -> None:
    body = "import numpy as np\nprint(work.seed, work.arrays['w'].tolist(), work.arrays['b'].flags.writeable, work.number, work.metrics)"
    bundle = shop.app(learner(body))
    await shop.done(bundle, number=5)
    await shop.done(bundle, number=6)
    first, second = (line.split(" ", 1) for line in shop.log.read_text().splitlines())
    assert first[0] != second[0]
    assert first[1] == "[0.0, 1.0, 2.0] False 5 ('loss',)"


async def test_progress_is_passed_on_but_not_every_step(shop: Shop) -> None:
    body = "for i in range(20000): work.progress(i / 20000)\nwork.progress(float('nan'))\nimport time; time.sleep(0.3); work.progress(7)"
    began = time.monotonic()
    await shop.done(shop.app(learner(body)))
    assert shop.progress[0] == 0.0
    assert shop.progress[-1] == 1.0
    assert len(shop.progress) <= 2 + (time.monotonic() - began) / PROGRESS_SECONDS < 20_000


async def test_what_an_app_prints_or_reads_is_not_the_pipe(shop: Shop) -> None:
    body = """
import os, subprocess, sys
print("to stdout"); sys.stdout.flush(); os.write(1, b"to descriptor 1\\n"); sys.stderr.write("to stderr\\n")
subprocess.run(["echo", "from a child"], check=True)
print(repr(sys.stdin.read()), repr(os.read(0, 10)))
sys.stdout.write("x" * 300000 + "\\n")
"""
    bundle = shop.app(learner(body))
    await shop.done(bundle)
    await shop.done(bundle, number=2)
    log = shop.log.read_text()
    for text in ("to stdout", "to descriptor 1", "to stderr", "from a child", "'' b''", "x" * 300000):
        assert log.count(f"{text}\n") == 2
    assert len(shop.pids()) == 1
    assert shop.log.stat().st_mode & 0o777 == 0o600


async def test_the_bundle_comes_first_in_the_path_and_is_where_the_app_is(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    bundle = shop.app(LEARNER.replace("import numpy", "import helper, os\nprint(helper.here, os.getcwd())\nimport numpy"))
    shop.app("here = 'helper of the bundle'", module="helper")
    shop.app("raise SystemExit('not the library')", module="json")
    await shop.done(bundle)
    assert shop.log.read_text() == f"helper of the bundle {bundle}\n"
    assert not (bundle / "__pycache__").exists()


async def test_a_package_can_be_an_app(shop: Shop) -> None:
    bundle = shop.app("")
    (bundle / "models/deep").mkdir(parents=True)
    (bundle / "models/deep/__init__.py").write_text(LEARNER)
    await shop.done(bundle, plan={"app": "models.deep:app"})
    assert len(shop.pids()) == 1


@pytest.mark.requires("torch")
async def test_an_app_is_trained_with_torch(shop: Shop) -> None:
    text = """
import torch
from fedscale.learner import App
app = App(model=lambda: torch.nn.Linear(2, 2), loss=torch.nn.functional.cross_entropy, metrics=["accuracy"])
"""
    bundle = shop.app(text)
    first = await shop.done(bundle, Phase.INIT, number=0)
    schema = Schema.from_json(first.schema)
    assert [tensor.name for tensor in schema.tensors] == ["weight", "bias"]
    (shop.folder / "model").write_bytes((shop.folder / "answer").read_bytes())
    await shop.done(bundle, schema=first.schema)
    layout = layout_for(Plan.from_toml(plan_text()), Phase.TRAIN, schema.size, 2)
    words = np.frombuffer((shop.folder / "answer").read_bytes(), WORD)
    weight, sums = layout.tail(words)
    assert weight == ROWS * 0.8
    assert np.abs(layout.mean(words, weight)).max() > 0
    assert 0 < sums["loss"][0] / weight < 5


async def test_a_plain_learner_does_not_load_torch(shop: Shop) -> None:
    await shop.done(shop.app(learner("import sys; print('torch' in sys.modules, 'grpc' in sys.modules)")))
    assert shop.log.read_text() == "False False\n"


# ------------------------------------------------------------------------------------------------- what can go wrong


FAULTS = [
    (f"raise ValueError({PATIENT})", Cause.CODE, "the app raised ValueError"),
    (f"error = KeyError({PATIENT}); error.add_note({PATIENT}); raise error", Cause.CODE, "KeyError"),
    (f"raise RuntimeError({PATIENT}) from ValueError({PATIENT})", Cause.CODE, "RuntimeError"),
    ("return None", Cause.CODE, "returned NoneType"),
    ("return Result(None, 0)", Cause.CODE, "saw no examples"),
    ("return Result({'w': np.zeros(3, np.float32)}, 3)", Cause.REJECTED, "tensor 'b' is missing"),
    ("return Result({'w': np.full(3, np.nan), 'b': np.zeros(1)}, 3, {'loss': np.ones(1)})", Cause.DIVERGED, "not finite"),
    ("return Result({'w': np.full(3, 1e9), 'b': np.zeros(1)}, 3, {'loss': np.ones(1)})", Cause.DIVERGED, "beyond the agreed range"),
    ("return Result({'w': np.zeros(3), 'b': np.zeros(1)}, 3, {'loss': np.full(1, np.inf)})", Cause.DIVERGED, "not finite"),
    ("raise MemoryError", Cause.MEMORY, "out of memory"),
    ("np.empty(1 << 50)", Cause.MEMORY, "out of memory"),
    (f"raise OSError(28, {PATIENT})", Cause.DISK, "disk full"),
    ("open('/dev/full', 'wb', buffering=0).write(b'x')", Cause.DISK, "disk full"),
    ("from fedscale.errors import PolicyRefusal; raise PolicyRefusal('x')", Cause.CODE, "PolicyRefusal"),
    ("import nothing_like_that", Cause.CODE, "needs the package 'nothing_like_that'"),
]


async def test_a_failed_task_leaves_the_worker_warm(shop: Shop) -> None:
    body = "\n".join(f"if work.number == {number}: {body}" for number, (body, _, _) in enumerate(FAULTS))
    bundle = shop.app(learner(body))
    await shop.done(bundle, number=len(FAULTS))
    pids = shop.pids()
    for number, (fault, cause, words) in enumerate(FAULTS):
        failure = await shop.failed(bundle, number=number)
        assert (failure.cause, words in failure.what) == (cause, True), (fault, failure)
        assert shop.pids() == pids
    await shop.done(bundle, number=len(FAULTS))


async def test_nan_is_placed_in_its_tensor(shop: Shop) -> None:
    failure = await shop.failed(shop.app(learner("return Result({'w': np.zeros(3), 'b': np.full(1, np.nan)}, 3, {'loss': np.ones(1)})")))
    assert failure.where == "tensor 'b'"
    assert failure.hint == "lower the learning rate or raise aggregate.bound"


@pytest.mark.parametrize(
    ("body", "cause", "words"),
    [
        ("import os; os._exit(3)", Cause.WORKER, "exit code 3"),
        ("import sys; sys.exit(4)", Cause.WORKER, "exit code 4"),
        ("import os; os.kill(os.getpid(), 11)", Cause.WORKER, "signal SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", Cause.WORKER, "signal SIGSEGV"),
        ("import os; os.abort()", Cause.WORKER, "signal SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", Cause.MEMORY, "killed by the system"),
    ],
)
async def test_a_worker_that_dies_is_replaced(shop: Shop, body: str, cause: Cause, words: str) -> None:
    bundle = shop.app(learner(f"if work.number == 2: {body}"))
    await shop.done(bundle)
    (pid,) = shop.pids()
    failure = await shop.failed(bundle, number=2)
    assert failure.cause is cause
    assert words in failure.what
    assert (shop.pids(), gone(pid)) == ([], True)
    await shop.done(bundle, number=3)


async def test_a_crash_leaves_its_trace_at_the_site(shop: Shop) -> None:
    await shop.failed(shop.app(learner("import ctypes; ctypes.string_at(0)")))
    assert "Fatal Python error: Segmentation fault" in shop.log.read_text()
    await shop.failed(shop.app(learner(f"raise ValueError({PATIENT})"), "other"), key="other")
    assert f"ValueError: {CANARY}" in shop.log.read_text()


@pytest.mark.parametrize(
    "body", ["import time; time.sleep(100)", "while True: pass", "import signal; signal.signal(2, signal.SIG_IGN); signal.pause()"]
)
async def test_a_task_that_hangs_is_ended_at_its_deadline(shop: Shop, body: str) -> None:
    bundle = shop.app(learner(f"if work.number == 2:\n    {body}"))
    await shop.done(bundle)
    (pid,) = shop.pids()
    failure = await shop.failed(bundle, number=2, seconds=0.3)
    assert (failure.cause, failure.what) == (Cause.TIMEOUT, "the task was not done by its deadline")
    assert gone(pid)


@pytest.mark.parametrize("flight", ["pass", "os.setsid()"])
async def test_a_child_of_the_app_does_not_keep_a_dead_worker_open(shop: Shop, monkeypatch: pytest.MonkeyPatch, flight: str) -> None:
    """A forked process holds the worker's pipe. It ends with the worker; one that has fled is not waited for."""
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 0.3)
    body = f"import os, time\npid = os.fork()\nif pid == 0:\n    {flight}\n    time.sleep(1000)\nopen('child', 'w').write(str(pid))\nos._exit(5)"
    bundle = shop.app(learner(body))
    failure = await shop.failed(bundle)
    assert "exit code 5" in failure.what
    child = int((bundle / "child").read_text())
    if "setsid" in flight:
        os.kill(child, signal.SIGKILL)
    assert await until(lambda: gone(child))


async def test_a_worker_that_closes_its_pipe_is_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 0.2)
    failure = await shop.failed(
        shop.app(learner("import os, time\nfor fd in range(3, 64):\n    try: os.close(fd)\n    except OSError: pass\ntime.sleep(100)"))
    )
    assert failure.cause is Cause.WORKER
    assert "closed its pipe" in failure.what


@pytest.mark.parametrize("data", ["b'\\0\\0\\0\\2[]'", "b'\\xff' * 8", "b'\\0\\0\\0\\2{}'", "b'\\0\\0\\0\\x0f{\"failed\": 17.5}'"])
async def test_an_app_that_writes_into_the_pipe_fails_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 0.2)
    body = f"import os, time\nfor fd in range(3, 64):\n    try: os.write(fd, {data})\n    except OSError: pass\ntime.sleep(1)"
    failure = await shop.failed(shop.app(learner(body)))
    assert failure.cause is Cause.WORKER


async def test_an_answer_that_does_not_fit_on_the_disk(shop: Shop) -> None:
    failure = await shop.failed(shop.app(LEARNER), answer="/dev/full")
    assert (failure.cause, failure.hint) == (Cause.DISK, "free space in the node's home")


# ---------------------------------------------------------------------------------------------------- data and bundle


async def test_a_dataset_that_is_gone(shop: Shop) -> None:
    declaration = Declaration(kind="csv", path="gone.csv", label="y")
    failure = await shop.failed(shop.app(LEARNER), declaration=declaration)
    assert (failure.cause, failure.where) == (Cause.DATA, "dataset 'heart'")
    assert "No such file" in failure.what


async def test_a_dataset_that_is_broken_is_placed_and_not_quoted(shop: Shop) -> None:
    with shop.csv.open("a") as file:
        file.write(f"{CANARY},1,1\n")
    failure = await shop.failed(shop.app(LEARNER))
    assert (failure.cause, failure.where) == (Cause.DATA, f"dataset 'heart':{ROWS + 2}")


async def test_a_dataset_that_was_mended_is_read_again_by_the_same_worker(shop: Shop) -> None:
    text = shop.csv.read_text()
    shop.csv.write_text(text + "?,?,?\n")
    await shop.failed(shop.app(LEARNER))
    (pid,) = shop.pids()
    shop.csv.write_text(text)
    await shop.done(shop.folder / "bundle")
    assert shop.pids() == [pid]


async def test_a_loader_that_fails(shop: Shop) -> None:
    (shop.folder / "site.py").write_text(f"def load():\n    raise ConnectionError('{CANARY} on db.mercy.example')")
    failure = await shop.failed(shop.app(LEARNER), declaration=Declaration(kind="loader", loader="site.py:load"))
    assert (failure.cause, failure.what) == (Cause.DATA, "the dataset 'heart' could not be loaded: ConnectionError")
    assert "db.mercy.example" not in str(asdict(failure))


async def test_an_app_cannot_pose_as_the_sites_loader(shop: Shop) -> None:
    """The site names a module; a module of that name in the bundle is not looked at."""
    shop.app("def load():\n    return 'stolen'", module="site_loader")
    failure = await shop.failed(shop.app(LEARNER), declaration=Declaration(kind="loader", loader="site_loader:load"))
    assert (failure.cause, failure.where) == (Cause.DATA, "dataset 'heart'")
    assert "ModuleNotFoundError" in failure.what


@pytest.mark.parametrize(
    ("text", "app", "cause", "words"),
    [
        ("import numpy as np\nx = = 1", "app:app", Cause.CODE, "SyntaxError"),
        (f"raise RuntimeError({PATIENT})", "app:app", Cause.CODE, "RuntimeError"),
        ("app = 3", "app:app", Cause.CODE, "the app is of type int"),
        ("class app:\n    def run(self, work): ...", "app:app", Cause.CODE, "the app is a class"),
        (LEARNER, "app:gone", Cause.CODE, "module 'app' has no 'gone'"),
        (LEARNER, "other:app", Cause.CODE, "the bundle has no module 'other'"),
        (LEARNER, "os.path:join", Cause.CODE, "the bundle has no module 'os.path'"),
        ("import no_such_library", "app:app", Cause.CODE, "needs the package 'no_such_library'"),
    ],
)
async def test_bundles_that_cannot_be_imported(shop: Shop, text: str, app: str, cause: Cause, words: str) -> None:
    failure = await shop.failed(shop.app(text), plan={"app": app})
    assert failure.cause is cause
    assert words in failure.what


async def test_a_module_named_as_one_of_the_nodes_packages(shop: Shop) -> None:
    failure = await shop.failed(shop.app(LEARNER, module="struct"), plan={"app": "struct:app"})
    assert "module 'struct' is taken" in failure.what
    assert failure.hint == "give the app's module another name"


# ------------------------------------------------------------------------------------------------- stopping and ending


async def cancelled(shop: Shop, bundle: Path, **changes: Any) -> None:
    """Begin a task and drop it once it is at work."""
    shop.progress.clear()
    task = asyncio.create_task(shop.do(bundle, **changes))
    await until(lambda: shop.progress)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_dropped_task_leaves_the_worker_warm(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 60.0)
    bundle = shop.app(learner("import time\nif work.number == 1:\n    work.progress(0.1)\n    time.sleep(1000)"))
    await cancelled(shop, bundle)
    (pid,) = shop.pids()
    await shop.done(bundle, number=2)
    assert shop.pids() == [pid]


async def test_a_dropped_task_that_is_deaf_costs_the_worker(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 0.3)
    body = "import signal, time\nif work.number == 1:\n    signal.signal(2, signal.SIG_IGN)\n    work.progress(0.1)\n    time.sleep(1000)"
    bundle = shop.app(learner(body))
    await cancelled(shop, bundle)
    assert shop.pids() == []
    await shop.done(bundle, number=2)


async def test_closing_ends_workers_that_do_not_end_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE_SECONDS", 0.3)
    shop = Shop(tmp_path)
    bundle = shop.app(learner("import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()"))
    await shop.done(bundle)
    (pid,) = shop.pids()
    await shop.workers.close()
    assert gone(pid)


async def test_an_idle_worker_that_died_is_replaced_unseen(shop: Shop) -> None:
    bundle = shop.app(LEARNER)
    await shop.done(bundle)
    (pid,) = shop.pids()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not next(iter(shop.workers._idle.values())).alive)
    await shop.done(bundle, number=2)
    assert shop.pids() != [pid]


async def test_a_worker_that_cannot_start(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "COMMAND", (sys.executable, "-c", "raise SystemExit(9)"))
    failure = await shop.failed(shop.app(LEARNER))
    assert failure.cause is Cause.WORKER
    assert "exit code 9" in failure.what
    monkeypatch.setattr(workers_module, "COMMAND", ("/no/such/python",))
    with pytest.raises(FileNotFoundError):
        await shop.do(shop.folder / "bundle")


async def test_a_worker_does_not_outlive_the_node(tmp_path: Path) -> None:
    """Killed in the middle of a task, the node can tell nobody; the system ends its worker."""
    script = f"""
import asyncio, os, pathlib
from tests.client.test_workers import Shop, learner
async def main():
    shop = Shop(pathlib.Path({str(tmp_path)!r}))
    task = asyncio.create_task(shop.do(shop.app(learner("import time; work.progress(0.1); time.sleep(1000)"))))
    while not shop.progress:
        await asyncio.sleep(0.01)
    print(*(worker.pid for worker in shop.workers._busy), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    out, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert await until(lambda: gone(int(out)))


async def test_a_log_that_has_grown_makes_room_for_a_new_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "MOST_LOG", 1000)
    bundle = shop.app(learner("print('x' * 2000)"))
    await shop.done(bundle, key="a")
    await shop.done(bundle, key="b")
    assert sorted(path.name for path in shop.log.parent.iterdir()) == ["worker.log", "worker.old.log"]


async def test_alive_says_whether_a_worker_can_take_a_task(tmp_path: Path) -> None:
    seat: dict[str, Any] = {"bundle": str(tmp_path), "home": str(tmp_path), "dataset": "d", "declaration": {"kind": "npz", "path": "x"}}
    worker = await Worker.start(seat, tmp_path / "log")
    states: list[bool] = [worker.alive]
    await worker.kill()
    await worker.kill()
    assert [*states, worker.alive] == [True, False]
    check: Callable[[], bool] = lambda: gone(worker.pid)  # noqa: E731
    assert check()
