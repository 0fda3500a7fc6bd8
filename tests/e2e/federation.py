"""A federation of real processes: everything is started, asked and ended the way people do it, through the command line.

Tests and benchmarks share it. Every wait is for a condition and has a deadline; whatever still runs when the ``with``
block ends is ended. ``living`` has the federations of the moment, so that a failed test can show their logs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

from fedscale.record import RunRecord
from fedscale_simulations.cast import program
from tests.command import Done
from tests.server.ports import own_port

Event: TypeAlias = dict[str, Any]
T = TypeVar("T")

PROJECT = "trial"
PATIENCE, STOP_SECONDS, LOOK_SECONDS = 180.0, 60.0, 0.01
LAST_LINES = 40
LOCAL = "127.0.0.1,localhost"

living: list[Federation] = []


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait until something is so, and return it."""
    ends = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < ends, f"waited {patience:g} s in vain for {what}"
        time.sleep(LOOK_SECONDS)
    return value


def environment() -> dict[str, str]:
    """Nobody's own settings, and no proxy for what stays on this machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEDSCALE_")} | {"NO_PROXY": LOCAL, "no_proxy": LOCAL}


class Process:
    """A command in the background.

    Args:
        log: the file that receives its stderr; its stdout goes to the same name with ``.out``.
        words: what one types behind ``fedscale``.
        through: the command that runs it, if there is one.
    """

    def __init__(self, log: Path, *words: object, through: Sequence[str] = ()) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.out, self._words = log, log.with_suffix(".out"), list(map(str, words))
        with self.log.open("wb") as err, self.out.open("wb") as out:
            self._popen = subprocess.Popen(
                [*through, *program(), *self._words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(), start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def said(self) -> str:
        """Its stdout so far."""
        return self.out.read_text(encoding="utf-8")

    def told(self) -> str:
        """Its stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def events(self) -> list[Event]:
        """The complete lines of a ``--jsonl`` stream."""
        return [json.loads(line) for line in self.said().splitlines(keepends=True) if line.endswith("\n")]

    def event(self, kind: str, **facts: object) -> Event:
        """Wait for an event of that kind with these facts."""

        def found() -> Event | None:
            ended = not self.alive
            event = next((e for e in self.events() if e["kind"] == kind and facts.items() <= e.items()), None)
            assert event or not ended, f"{self._words} ended without {kind} {facts}: {self.said()[-2000:]}{self.told()}"
            return event

        event = until(found, f"{kind} with {facts}")
        assert event is not None
        return event

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> Done:
        """Its end."""
        until(lambda: not self.alive, f"the end of {self._words}", patience)
        return Done(self._popen.returncode, self.said(), self.told())

    def kill(self) -> None:
        """SIGKILL to the process itself; what it has started must notice."""
        self._popen.kill()
        self._popen.wait()

    def stop(self) -> None:
        """End it, by force if it does not listen."""
        self._popen.terminate()
        self._popen.send_signal(signal.SIGCONT)
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()


class Federation:
    """A coordinator with one project, and its nodes by name.

    Args:
        folder: where everything lies; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, dict[str, Process]()
        self.home, self.profile = folder / "coordinator", folder / "coordinator" / "admin"
        self.processes: list[Process] = []
        self.ports: tuple[str, ...] = tuple(str(own_port()) for _ in range(3))
        self.listening: tuple[str, ...] = ()

    def through(self, words: Sequence[object]) -> Sequence[str]:
        """The command that runs a command."""
        return ()

    def __enter__(self) -> Self:
        """Make and start the coordinator."""
        self.folder.mkdir(parents=True, exist_ok=True)
        living.append(self)
        try:
            self.ask("server", "init", "--home", self.home, "--federation", "trial", *self.listening)
            self.start_server()
            self.manage("project", "create", PROJECT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End every process."""
        running = [process for process in self.processes if process.alive]
        with ThreadPoolExecutor(max(len(running), 1)) as pool:
            list(pool.map(Process.stop, running))
        living.remove(self)

    # ------------------------------------------------------------------------------------------------------- commands

    def fedscale(self, *words: object, stdin: str = "", patience: float = PATIENCE) -> Done:
        """A command, to its end."""
        line = [*self.through(words), *program(), *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, input=stdin, env=environment(), cwd=self.folder, timeout=patience, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, *words: object) -> Any:
        """The data that a command answers with."""
        done = self.fedscale(*words, "--json")
        assert done.code == 0, f"{words}: {done.out}{done.err}"
        return done.data

    def manage(self, *words: object) -> Any:
        """The data of a command that calls the coordinator."""
        return self.ask(*words, "--profile", self.profile)

    def begin(self, name: str, *words: object) -> Process:
        """A command in the background."""
        number = sum(process.log.stem.startswith(f"{name}.") for process in self.processes)
        process = Process(self.folder / "logs" / f"{name}.{number}.log", *words, through=self.through(words))
        self.processes.append(process)
        return process

    def logs(self) -> str:
        """The last lines of every process."""
        parts = [(process.log.stem, process.told().splitlines()[-LAST_LINES:]) for process in self.processes]
        return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in parts)

    # ---------------------------------------------------------------------------------------------------- coordinator

    def start_server(self) -> None:
        """Start the coordinator, each time on the same ports."""
        ports = ("--port", self.ports[0], "--enrolment-port", self.ports[1], "--web-port", self.ports[2])
        self.server = self.begin("coordinator", "server", "start", "--home", self.home, "--json", *ports)
        until(lambda: self.server.said().endswith("\n") or not self.server.alive, "the coordinator")
        assert self.server.alive, self.server.told()
        ready = json.loads(self.server.said())["data"]
        self.ports = tuple(ready[key].rpartition(":")[2] for key in ("address", "enrolment", "dashboard"))

    # ---------------------------------------------------------------------------------------------------------- nodes

    def node_home(self, name: str) -> Path:
        return self.folder / "sites" / name

    def invite(self, name: str) -> str:
        """A ticket."""
        return str(self.manage("project", "invite", PROJECT, "--name", name)["ticket"])

    def join(self, name: str, datasets: Mapping[str, Sequence[object]]) -> None:
        """A node that declares datasets by name, each with the options of ``node data add``, and is at the coordinator when this returns."""
        home = ("--home", self.node_home(name))
        self.ask("node", "join", self.invite(name), *home)
        for dataset, options in datasets.items():
            self.ask("node", "data", "add", dataset, *options, *home)
        self.start_node(name)
        self.connected(name)

    def join_all(self, nodes: Iterable[str], datasets: Callable[[str], Mapping[str, Sequence[object]]]) -> None:
        """Several nodes at the same time."""
        names = list(nodes)
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: self.join(name, datasets(name)), names))

    def start_node(self, name: str) -> Process:
        """A node that has joined, at work."""
        self.nodes[name] = self.begin(name, "node", "start", "--home", self.node_home(name))
        return self.nodes[name]

    def connected(self, name: str) -> None:
        """Wait until a node has reached the coordinator."""
        until(lambda: "connected" in self.nodes[name].told(), f"{name} at the coordinator")

    # ----------------------------------------------------------------------------------------------------------- runs

    def submit(self, job: Path, *settings: str) -> str:
        """Start a run; its id."""
        options = [word for setting in settings for word in ("--set", setting)]
        return str(self.manage("run", "submit", job, "--project", PROJECT, *options)["run"])

    def watch(self, run: str) -> Process:
        """Everything that happens to a run, as lines of JSON."""
        return self.begin("watch", "run", "watch", run, "--jsonl", "--profile", self.profile)

    def at_work(self, node: str, run: str, number: int) -> None:
        """Wait until a node trains in a round; its own log tells it even to whoever begins to watch late."""
        until(lambda: f" key={run}/train/{number} " in self.nodes[node].told(), f"{node} at work in round {number}")

    def status(self, run: str) -> str:
        return str(self.manage("run", "show", run)["run"]["status"])

    def record(self, run: str) -> RunRecord:
        """What a run has left so far."""
        return RunRecord.from_json(json.dumps(self.manage("run", "show", run)["record"]))

    def finished(self, run: str, patience: float = PATIENCE) -> RunRecord:
        """Wait for the end of a run."""
        self.watch(run).wait(patience)
        return self.record(run)
