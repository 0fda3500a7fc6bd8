"""How long one waits for ``import fedscale`` and for each command that does not train: whole processes, from start to end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks import Figure
from fedscale.plan import Plan
from fedscale_client.home import NodeSettings, write_toml
from fedscale_client.ledger.book import Ledger
from fedscale_simulations.cast import program
from tests.client.ledger.samples import finish, home_at
from tests.e2e.federation import PROJECT, Federation, environment

Words: TypeAlias = Sequence[object]

REPEAT = 7
IMPORT, COMMAND = 0.15, 0.3
ANSWERED = 100
APP = """
import numpy as np
from fedscale.learner import Result

class Nothing:
    def run(self, work):
        return Result({"w": np.zeros(4, np.float32)}, 1, {"loss": np.ones(1)})

app = Nothing()
"""


def measure() -> Iterator[Figure]:
    """Medians of wall times; the interpreter's own start is part of them."""
    yield Figure("python -c pass", timed(lambda: [sys.executable, "-c", "pass"]), "s")
    yield Figure("import fedscale", timed(lambda: [sys.executable, "-c", "import fedscale"]), "s", IMPORT)
    with tempfile.TemporaryDirectory() as folder, Federation(Path(folder)) as federation:
        for name, words in commands(federation).items():
            yield Figure(f"fedscale {name}", timed(partial(_line, words)), "s", COMMAND)


def _line(words: Callable[[], Words]) -> list[str]:
    """A command with the program in front."""
    return [*program(), *map(str, words())]


def timed(command: Callable[[], list[str]]) -> float:
    """Median wall time of a command, which is made anew each time; the first run only warms the disk's cache."""
    times = []
    for _ in range(REPEAT + 1):
        line = command()
        began = time.perf_counter()
        subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=True, env=environment(), timeout=60)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def commands(federation: Federation) -> dict[str, Callable[[], Words]]:
    """Every command that does not train, as one would use it, at a coordinator with a site, a run that is over and one that is paused."""
    folder, numbers, profile = federation.folder, count(), ("--profile", federation.profile)
    table, home = _table(folder / "table.csv"), ("--home", federation.node_home("site"))
    past, server = ("--home", _past(folder / "past")), ("--home", federation.home)
    federation.join("site", {"table": ("--path", table, "--label", "y")})
    job = _job(folder / "job")
    over, paused = federation.submit(job), federation.submit(job, "strategy.rounds=1000000")
    federation.finished(over)
    federation.manage("run", "pause", paused)

    def anew(name: str) -> Path:
        return folder / f"{name}-{next(numbers)}"

    local: dict[str, Callable[[], Words]] = {
        "--version": lambda: ("--version",),
        "--help": lambda: ("--help",),
        "run --help": lambda: ("run", "--help"),
        "simulate --help": lambda: ("simulate", "--help"),
        "demo --help": lambda: ("demo", "--help"),
        "init": lambda: ("init", anew("init")),
        "doctor": lambda: ("doctor",),
        "server init": lambda: ("server", "init", "--home", anew("server")),
        "node join": lambda: ("node", "join", federation.invite(anew("n").name), "--home", anew("node")),
        "node status": lambda: ("node", "status", *home),
        "node doctor": lambda: ("node", "doctor", *home),
        "node data add": lambda: ("node", "data", "add", anew("data").name, "--path", table, "--label", "y", *home),
        "node data list": lambda: ("node", "data", "list", *home),
        "node data check": lambda: ("node", "data", "check", "table", *home),
        "node data remove": lambda: ("node", "data", "remove", "table", *home, "--dry-run"),
        "node policy show": lambda: ("node", "policy", "show", *home),
        "node receipts": lambda: ("node", "receipts", *past),
        "privacy spent": lambda: ("privacy", "spent", *past),
        "privacy ledger": lambda: ("privacy", "ledger", *past),
        "server doctor": lambda: ("server", "doctor", *server),
        "server user list": lambda: ("server", "user", "list", *server),
        "audit tail": lambda: ("audit", "tail", *server),
        "explain": lambda: ("explain", "policy"),
    }
    remote: dict[str, Callable[[], Words]] = {
        "server status": lambda: ("server", "status"),
        "project create": lambda: ("project", "create", anew("p").name),
        "project list": lambda: ("project", "list"),
        "project invite": lambda: ("project", "invite", PROJECT),
        "project nodes": lambda: ("project", "nodes"),
        "project revoke": lambda: ("project", "revoke", "site", "--dry-run"),
        "run submit": lambda: ("run", "submit", job, "--project", PROJECT, "--dry-run"),
        "run list": lambda: ("run", "list"),
        "run show": lambda: ("run", "show", over),
        "run watch": lambda: ("run", "watch", over),
        "run pause": lambda: ("run", "pause", paused),
        "run resume": lambda: ("run", "resume", paused, "--dry-run"),
        "run stop": lambda: ("run", "stop", paused, "--dry-run"),
        "run report": lambda: ("run", "report", over, "--out", anew("report")),
        "run export": lambda: ("run", "export", over, "--out", anew("model")),
    }
    return local | {name: lambda words=words: (*words(), *profile) for name, words in remote.items()}


def _past(folder: Path) -> Path:
    """A site that has answered ``ANSWERED`` tasks of private runs."""
    node = home_at(folder)
    write_toml(node.settings_file, NodeSettings(name="past", federation="f", project="p", address="127.0.0.1:1").model_dump())
    ledger = Ledger.open(node)
    for number in range(ANSWERED):
        finish(ledger, number)
    return folder


def _table(path: Path) -> Path:
    path.write_text("a,b,y\n" + "".join(f"{i},{i % 7}.5,{i % 2}\n" for i in range(40)))
    return path


def _job(folder: Path) -> Path:
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    tables = {"job": {"name": "nothing", "data": "table"}, "strategy": {"rounds": 3}, "evaluate": {"every": 0}}
    (folder / "job.toml").write_text(Plan.model_validate(tables).to_toml())
    return folder / "job.toml"
