"""A round of ours and one of Flower's own deployment, in turn: a SuperLink, supernodes and an app that takes and returns a model of 128 MiB.

    python -m benchmarks.rivals.flower_link

Nobody trains. Flower is favoured: nothing is encrypted, nobody is authenticated, nothing is kept on a disk, and the model is a single array.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import Figure, round_trip
from benchmarks.round_trip import NODES, ROUNDS, SIZE

AT_LEAST = 10.0
HOST, REPORT = "127.0.0.1", "report.json"
SECONDS, START_SECONDS, STOP_SECONDS, LOOK_SECONDS = 400.0, 60.0, 20.0, 0.1
PROJECT = """
[project]
name = "echo"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "echo:server_app"
clientapp = "echo:client_app"

[tool.flwr.app.config]
nodes = 2
size = 1
rounds = 1
report = ""
"""
APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message, context):
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == self.min_train_nodes and not any(reply.has_error() for reply in replies)
        combined = super().aggregate_train(server_round, replies)
        ends.append(time.time())
        return combined


@server_app.main()
def main(grid, context):
    config = context.run_config
    everybody = {"min_available_nodes": config["nodes"], "min_train_nodes": config["nodes"], "fraction_evaluate": 0.0}
    model = ArrayRecord([np.zeros(config["size"], np.float32)])
    Timed(**everybody).start(grid=grid, initial_arrays=model, num_rounds=config["rounds"], timeout=600.0)
    Path(config["report"]).write_text(json.dumps(ends))


ends = []
"""
LINK = """
[superlink]
default = "bench"

[superlink.bench]
address = "{address}"
insecure = true
"""


def rounds(nodes: int, size: int, count: int) -> list[float]:
    """Seconds of each round but the first, in which everything starts: from the end of the one before to its own.

    Args:
        nodes: how many supernodes.
        size: coordinates of the model, of 4 bytes each.
        count: how many rounds.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, link = Path(name), _free_port()
        address = f"{HOST}:{link}"
        (folder / "app").mkdir()
        (folder / "app" / "pyproject.toml").write_text(PROJECT)
        (folder / "app" / "echo.py").write_text(APP)
        (folder / "config.toml").write_text(LINK.format(address=address))
        stack.enter_context(_going(folder, "flower-superlink", "--insecure", "--port", link, "--disable-runtime-dependency-installation"))
        for place in range(nodes):
            own = ("--port", _free_port(), "--node-config", f"partition-id={place}")
            stack.enter_context(_going(folder, "flower-supernode", "--insecure", "--superlink", address, *own))
        return _led(folder, link, f'nodes={nodes} size={size} rounds={count} report="{folder / REPORT}"')


def _led(folder: Path, link: int, config: str) -> list[float]:
    """What the ServerApp measured, which is submitted as soon as the SuperLink listens; its log goes to stderr."""
    ends = time.monotonic() + START_SECONDS
    while not _listens(link):
        if time.monotonic() > ends:
            raise TimeoutError(f"the SuperLink does not listen within {START_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
    command = [str(_program("flwr")), "run", "app", "bench", "--stream", "--run-config", config]
    subprocess.run(command, cwd=folder, env=_environment(folder), stdout=sys.stderr, check=True, timeout=SECONDS)
    return [end - begin for begin, end in pairwise(json.loads((folder / REPORT).read_text()))]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _program(name: str) -> Path:
    """One of flwr's commands, beside the Python that runs this."""
    return Path(sys.executable).with_name(name)


def _environment(folder: Path) -> dict[str, str]:
    own = {"HOME": folder, "FLWR_HOME": folder, "FLWR_TELEMETRY_ENABLED": 0, "NO_PROXY": HOST, "PYTHONPATH": ""}
    return os.environ | {name: str(value) for name, value in own.items()} | {"PATH": f"{_program('flwr').parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def _going(folder: Path, name: str, *words: object) -> Iterator[None]:
    """One of flwr's commands in the background; it ends with the ``with`` block, and so do the processes that it has started."""
    with (folder / "log").open("ab") as log:
        command = [str(_program(name)), *map(str, words)]
        process = subprocess.Popen(command, cwd=folder, env=_environment(folder), stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Print our round, theirs and how many of ours fit into one of theirs."""
    mine, *_ = round_trip.measure()
    print(mine, flush=True)
    theirs = Figure(f"a round of flwr, {NODES} supernodes, 128 MiB model", median(rounds(NODES, SIZE, ROUNDS)), "s")
    print(theirs, flush=True)
    print(Figure(f"flwr over fedscale, {AT_LEAST:g} demanded", theirs.value / mine.value, "x"))


if __name__ == "__main__":
    main()
