"""A federation of real processes that can be killed, frozen and started again, each through the command line that everybody types."""

from __future__ import annotations

import json
import signal
import time
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.numpy import load_file

from fedscale.errors import Unreachable
from fedscale.record import RunRecord
from fedscale.vector import Vector
from fedscale_simulations.cast import Cast
from fedscale_simulations.chaos.clockwork import through
from fedscale_simulations.chaos.oracle import DATASET, LABEL, Job, dark

PROJECT, SERVER = "chaos", "server"
LOOK_SECONDS, PATIENCE = 0.005, 60.0


@dataclass
class Troupe:
    """A coordinator and its nodes.

    Args:
        cast: holds the processes.
        folder: where everything lies.
        job: what they run.
        database: URL of the coordinator's database; SQLite in its folder by default.
        clocks: whether the wall clock of each process can be set.
    """

    cast: Cast
    folder: Path
    job: Job
    database: str = ""
    clocks: bool = False
    restarts: list[float] = field(default_factory=list)
    _lives: dict[str, int] = field(default_factory=dict)
    _ports: tuple[str, str] = ("0", "0")
    _read: dict[Path, int] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def port(self) -> int:
        """Where the coordinator listens."""
        return int(self._ports[0])

    def clock(self, name: str) -> Path:
        """The file that says by how many seconds a process's wall clock is wrong."""
        return self.folder / f"{name}.clock"

    def site(self, node: str) -> Path:
        """A node's folder."""
        return self.folder / "sites" / node

    def open(self) -> None:
        """Make everything; the nodes are started when the first run is submitted."""
        self.job_file = self.job.write(self.folder / "job")
        self.cast.call("server", "init", "--home", self.home, "--federation", PROJECT, "--port", 0, "--enrolment-port", 0)
        self.start_server()
        self.manage("project", "create", PROJECT)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._join, self.job.nodes))

    def _join(self, node: str) -> None:
        home = ("--home", self.site(node))
        ticket = self.manage("project", "invite", PROJECT, "--name", node)["ticket"]
        self.cast.call("node", "join", ticket, *home, show=False)
        table = self.folder / "tables" / f"{node}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(self.job.table(node), encoding="utf-8")
        self.cast.call("node", "data", "add", DATASET, "--path", table, "--label", LABEL, *home)

    def reroute(self, node: str, port: int) -> None:
        """Let a node that is not running look for the coordinator at another port of this machine."""
        file = self.site(node) / "node.toml"
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
        settings["address"] = f"{settings['address'].rpartition(':')[0]}:{port}"
        file.write_text(tomli_w.dumps(settings), encoding="utf-8")

    # ------------------------------------------------------------------------------------------------------- processes

    def start_server(self) -> None:
        """Start the coordinator and wait until it is ready; the second time on the ports of the first."""
        began = time.monotonic()
        ports = ("--port", self._ports[0], "--enrolment-port", self._ports[1])
        database = ("--database", self.database) if self.database else ()
        log = self._start(SERVER, "server", "start", "--home", self.home, "--json", *ports, *database)
        ready = self.cast.ready(SERVER, log)
        self._ports = (ready["address"].rpartition(":")[2], ready["enrolment"].rpartition(":")[2])
        self.restarts.append(time.monotonic() - began)

    def start_node(self, node: str) -> None:
        """Start a node; it finds the coordinator by itself."""
        self._start(node, "node", "start", "--home", self.site(node), "--log", "json")

    def _start(self, name: str, *words: object) -> Path:
        self._lives[name] = self._lives.get(name, -1) + 1
        log = self.folder / "logs" / f"{name}.{self._lives[name]}.log"
        self.cast.start(name, *words, log=log, through=through(self.clock(name)) if self.clocks else ())
        return log

    def kill(self, name: str) -> None:
        """SIGKILL; what the process has started must notice."""
        self.cast.send(name, signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Start again what was killed."""
        if name == SERVER:
            self.start_server()
        else:
            self.start_node(name)

    # ------------------------------------------------------------------------------------------------------------ runs

    def manage(self, *words: object) -> Any:
        """The data of a command that calls the coordinator."""
        return self.cast.call(*words, "--profile", self.home / "admin")

    def insist(self, *words: object) -> Any:
        """The same, asked again while the coordinator is away.

        Raises:
            Unreachable: it stays away.
        """
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                return self.manage(*words)
            except Unreachable:
                if time.monotonic() > ends:
                    raise

    def submit(self, key: str) -> str:
        """Start a run, once for each key; its id."""
        return str(self.insist("run", "submit", self.job_file, "--project", PROJECT, "--key", key)["run"])

    def watch(self, run: str) -> Watch:
        """Everything that happens to a run."""
        return Watch(self, run)

    def alive(self, name: str) -> bool:
        """Whether a process runs."""
        return name in self.cast.alive()

    def start_watch(self, run: str, after: int) -> Path:
        """Begin to watch a run behind an event; returns the file in which the events appear."""
        log = self._start(f"watch-{run}", "run", "watch", run, "--jsonl", "--after", after, "--profile", self.home / "admin")
        return log.with_suffix(".out")

    def record(self, run: str) -> RunRecord:
        """What a run has left."""
        return RunRecord.from_json(json.dumps(self.insist("run", "show", run)["record"]))

    def model(self, run: str) -> Vector:
        """A run's newest model."""
        file = self.folder / "models" / f"{run}.safetensors"
        self.insist("run", "export", run, "--out", file)
        return dark(load_file(file))

    def accepted(self, run: str) -> set[tuple[int, str]]:
        """Rounds and nodes whose answers the coordinator has told the nodes it accepted, from the nodes' own logs."""
        found = set()
        for node in self.job.nodes:
            for facts in self._said(node):
                name, phase, number = str(facts.get("key", "//")).split("/")
                if (facts.get("event"), name, phase, facts.get("verdict")) == ("answered", run, "train", "accepted"):
                    found.add((int(number), node))
        return found

    def _said(self, node: str) -> Iterator[Mapping[str, Any]]:
        """Every whole line that a node has logged in all its lives."""
        for life in range(self._lives.get(node, -1) + 1):
            for line in (self.folder / "logs" / f"{node}.{life}.log").read_text(encoding="utf-8").splitlines():
                facts = _parsed(line)
                if facts is not None:
                    yield facts


@dataclass
class Watch:
    """A ``run watch`` in the background, which outlives the coordinator; one that finds none when it begins is begun again.

    Args:
        troupe: the federation.
        run: the run.
    """

    troupe: Troupe
    run: str
    events: list[Mapping[str, Any]] = field(default_factory=list)
    _offset: int = 0

    def __post_init__(self) -> None:
        """Begin."""
        self._file = self.troupe.start_watch(self.run, 0)

    def read(self) -> list[Mapping[str, Any]]:
        """The events that are new."""
        with self._file.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")
        self._offset += len(whole[0]) + len(whole[1])
        new = [json.loads(line) for line in whole[0].splitlines()]
        self.events += new
        return new

    @property
    def over(self) -> bool:
        """Whether the run is."""
        if not self.troupe.alive(f"watch-{self.run}"):
            self.read()
            if not self.finished:
                told = [event["sequence"] for event in self.events]
                self._file, self._offset = self.troupe.start_watch(self.run, max(told, default=0)), 0
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether the last event was heard."""
        return any(event["kind"] == "finished" for event in self.events[-1:])

    def gaps(self) -> int:
        """How many events are missing or told twice."""
        told = [event["sequence"] for event in self.events if event["sequence"]]
        return sum(1 for number, sequence in enumerate(told, 1) if number != sequence)


def _parsed(line: str) -> Mapping[str, Any] | None:
    """A line of a log; ``None`` for one that a kill has torn."""
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
