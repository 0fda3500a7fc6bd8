"""Simulate a Flower app as it is: its ServerApp leads, its ClientApp works for virtual supernodes in this process."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from safetensors.numpy import save

from fedscale import report
from fedscale.errors import RunFailed
from fedscale.flower import apps, touches
from fedscale.flower.directory import Directory, read
from fedscale.flower.grid import LEADER, LocalGrid
from fedscale.flower.nodes import Nodes
from fedscale.flower.quick import quick
from fedscale.flower.turns import in_turn
from fedscale.flower.witness import Outcome, witnessed
from fedscale.record import RunRecord
from fedscale.vector import Arrays
from fedscale_simulations.diary import Diary
from fedscale_simulations.failures import failure_of
from fedscale_simulations.files import replace_file
from fedscale_simulations.job import importable
from fedscale_simulations.result import MODEL_FILE, Progress, Simulation

Watch: TypeAlias = Callable[[Progress], None]

LOOK_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class FlowerSimulation:
    """A Flower app's run that has ended.

    Args:
        record: what every run leaves; its metrics are those that the app's strategy made of the clients'.
        arrays: the strategy's final model by name, in its own types; empty where the app led its rounds itself.
    """

    record: RunRecord
    arrays: Arrays

    @property
    def plain(self) -> Simulation:
        """The run without its model, as people are told of any simulation."""
        return Simulation(self.record, None, None)

    def save(self, folder: Path) -> dict[str, Path]:
        """Write summary, metrics, report, model card and model into a folder; returns where each file lies.

        Raises:
            ConfigError: the folder cannot be written.
        """
        files = report.write(self.record, folder) | report.card_beside(self.record, folder)
        if self.arrays:
            files[MODEL_FILE] = folder / MODEL_FILE
            replace_file(files[MODEL_FILE], save({name: np.asarray(array, order="C") for name, array in self.arrays.items()}))
        return files


def simulate_app(
    path: str | Path,
    clients: int | None = None,
    overrides: Iterable[str] = (),
    folder: str | Path | None = None,
    on_progress: Watch = lambda _: None,
) -> FlowerSimulation:
    """Simulate a Flower app's directory.

    Args:
        path: the directory with the app's ``pyproject.toml``.
        clients: how many virtual supernodes; by default as many as the app's federation says, else ten.
        overrides: settings that win over the app's run config, see ``fedscale.flower.directory.read``.
        folder: where the summary, the report and the model go.
        on_progress: called after every reply and every closed phase of a round.

    Returns:
        The ended run. One whose ServerApp failed is returned as well, with the reason in its record.

    Raises:
        ConfigError: no Flower app, or a setting that it does not have, or ``folder`` cannot be written.
        AppError: the ServerApp or the ClientApp cannot be imported.
    """
    directory = read(Path(path), overrides, clients)
    with importable(directory.path), _quiet(), _settled():
        ended = _run(directory, on_progress)
    if folder is not None:
        ended.save(Path(folder))
    return ended


def _run(directory: Directory, on_progress: Watch) -> FlowerSimulation:
    """Run an imported app to its end."""
    number = int.from_bytes(hashlib.sha256(directory.to_toml().encode()).digest()[:7])
    server, client, outcome = apps.server_app(directory), apps.client_app(directory), Outcome()
    nodes = Nodes(client, directory.config, directory.nodes, number)
    touches.identify(number)
    diary = Diary(nodes, int(directory.config.get("num-server-rounds", 0)), on_progress)
    grid = LocalGrid(nodes, number, diary)
    # As in Flower, a ServerApp has a thread of its own, so that Ctrl-C reaches us and not its code.
    with ThreadPoolExecutor(1, thread_name_prefix=LEADER) as lane:
        try:
            with witnessed(outcome), in_turn(grid.among_clients), quick():
                led = lane.submit(apps.led, server, grid, nodes.server_context)
                _wait(led)
        finally:
            grid.close()
    return FlowerSimulation(diary.close(directory, outcome, _reason(led)), outcome.arrays)


def _wait(led: Future[None]) -> None:
    """Wait for a ServerApp, awake for Ctrl-C."""
    while wait([led], LOOK_SECONDS).not_done:
        pass


def _reason(led: Future[None]) -> str:
    """Why a ServerApp failed; empty where it did not."""
    error = led.exception()
    if error is None:
        return ""
    if isinstance(error, RunFailed) or not isinstance(error, Exception):
        return str(error) or type(error).__name__
    failure = failure_of(error)
    return f"the ServerApp failed: {failure.where}: {failure.what}" if failure.where else f"the ServerApp failed: {failure.what}"


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """Spare the garbage collector what is loaded already: some of Flower's strategies ask it to look at everything, several times a round."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results, and Flower's own log to what is a warning."""
    with touches.muted(), contextlib.redirect_stdout(sys.stderr):
        yield
