"""The same Flower app here and on Flower's own simulation: clients that do nothing, so that only the runtimes differ; and deployed here.

    python -m benchmarks.flower_apps [--clients 1000] [--theirs 1000] [--timeout 300] [--rounds 60] [--json]

Flower's cost per client grows with their number; with fewer of ``--theirs`` it is favoured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks import Figure
from tests.e2e.federation import Federation, until
from tests.flower import samples

ROOT = Path(__file__).parents[1]
CLIENTS, THEIRS, TIMEOUT, ROUNDS = 1000, 1000, 300.0, 60
AT_MOST = 50.0
AT_LEAST = 20.0
PROJECT = """
[project]
name = "noop"

[tool.flwr.app.components]
serverapp = "noop:app"
clientapp = "noop:client_app"
"""
SERVER = """
from pathlib import Path

from benchmarks.rivals.flower_noop import client_app, server_app

app = server_app(Path({report!r}))
"""
LOADER = "def load():\n    return {'partition-id': 0, 'num-partitions': 1}\n"
OURS = """
from fedscale_simulations.flower import simulate_app

ended = simulate_app({app!r}, {clients})
assert ended.record.status == "completed", ended.record.reason
"""


def measure() -> Iterator[Figure]:
    """Tasks per second of both, and how many times as many ours are."""
    yield from bench(CLIENTS, THEIRS, TIMEOUT)
    yield from deployed(ROUNDS)


def bench(clients: int, theirs: int, timeout: float) -> Iterator[Figure]:
    """Tasks per second of both, and their ratio; without a figure of Flower's where it does not end in time or Ray is missing."""
    ours = _ours(clients, timeout)
    yield Figure(f"fedscale, {clients} idle Flower clients", ours, "1/s")
    if (flower := _theirs(theirs, timeout)) is not None:
        yield Figure(f"flwr on Ray, {theirs} idle Flower clients", flower, "1/s")
        yield Figure(f"fedscale over flwr, {AT_LEAST:g} demanded", ours / flower, "x")


def deployed(rounds: int) -> Iterator[Figure]:
    """Milliseconds of a message to a warm worker and back: a real coordinator, a real node and its worker, mutual TLS on loopback."""
    with tempfile.TemporaryDirectory() as name, Federation(Path(name)) as federation:
        folder = Path(name)
        (folder / "site.py").write_text(LOADER)
        federation.join("site", {"default": ("--loader", f"{folder / 'site.py'}:load")})
        run = federation.submit(samples.write(folder / "app"), "evaluate.every=0", f"num-server-rounds={rounds}")
        until(lambda: federation.nodes["site"].told().count("] answered ") > rounds, "the last answer")
        watching = federation.watch(run)
        assert watching.wait().code == 0
        found = {(event["kind"], event["number"]): event["at"] for event in watching.events() if event["phase"] == "train"}
    times = [1000 * (found["answered", number] - found["opened", number]) for number in range(2, rounds + 1)]
    for percent in (50, 95):
        yield Figure(f"a message of a deployed Flower app, p{percent}", float(np.percentile(times, percent)), "ms", AT_MOST)


def _ours(clients: int, timeout: float) -> float:
    """Our tasks per second, in a process of their own as Flower's."""
    with tempfile.TemporaryDirectory() as folder:
        app, report = Path(folder, "app"), Path(folder, "report.json")
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "noop.py").write_text(SERVER.format(report=str(report)))
        command = [sys.executable, "-c", OURS.format(app=str(app), clients=clients)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=timeout, stdout=subprocess.DEVNULL)
        return _rate(report)


def _theirs(clients: int, timeout: float) -> float | None:
    """Flower's tasks per second."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "benchmarks.rivals.flower_noop", str(clients), str(report)]
        try:
            subprocess.run(command, cwd=ROOT, check=True, timeout=timeout, stdout=subprocess.DEVNULL)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"flwr: {error}", file=sys.stderr)
            return None
        return _rate(report)


def _rate(report: Path) -> float:
    done = json.loads(report.read_text())
    return float(done["tasks"] / done["seconds"])


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(prog="benchmarks.flower_apps", description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the simulated run; 0 for none")
    parser.add_argument("--theirs", type=int, default=THEIRS)
    parser.add_argument("--timeout", type=float, default=TIMEOUT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the deployed run; 0 for none")
    options = parser.parse_args()
    simulated = bench(options.clients, options.theirs, options.timeout) if options.clients else ()
    for figure in chain(simulated, deployed(options.rounds) if options.rounds else ()):
        print(json.dumps(asdict(figure)) if options.json else figure, flush=True)


if __name__ == "__main__":
    main()
