"""A GPU beside this machine's processors on the simulator's three workloads: how much faster, and whether it computes the same.

Every run is a process of its own. ``gap`` is how far the models are apart at most, of the largest change of training, and
``other bits`` how many numbers differ between two runs on the GPU. Ends with status 1 where there is no CUDA device.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import Figure, Missing, simulator
from benchmarks.rivals import workloads
from fedscale.vector import Vector

ROUNDS = 3
MOST_APART = 1e-3
# Who trains, on what, in which form.
ENTRANTS = {
    "processors": ("cpu", "vectorized"),
    "GPU, clients one by one": ("cuda", "sequential"),
    "GPU, many clients at once": ("cuda", "vectorized"),
    "GPU, the same again": ("cuda", "vectorized"),
}


def measure() -> Iterator[Figure]:
    """Clients a second of each, and what the models are to each other.

    Raises:
        Missing: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise Missing("no CUDA device")
    with tempfile.TemporaryDirectory() as folder:
        for workload in simulator.WORKLOADS:
            yield from compared(workload, Path(folder), ENTRANTS)


def compared(workload: str, folder: Path, entrants: dict[str, tuple[str, str]]) -> Iterator[Figure]:
    """The figures of one workload; the first entrant is what the others are compared with, the last is the one before once more.

    Raises:
        Missing: a run gave no result.
    """
    simulator.prepare(workload, folder)
    paces, models = dict[str, float](), list[Vector]()
    for at, (who, (device, engine)) in enumerate(entrants.items()):
        saved = folder / f"{workload}-{at}.npy"
        changes: simulator.Changes = {"device": device, "engine": engine, "model": saved, "rounds": ROUNDS}
        row = simulator.run(Path(sys.executable), "fedscale", workload, folder, changes)
        if row is None:
            raise Missing(f"{workload} on {who} gave no result")
        paces[who] = row["clients_per_s"]
        models.append(np.load(saved))
        yield Figure(f"{workload} {who}", paces[who], "clients/s")
    reference, first = next(iter(entrants)), first_model(workload)
    for who, model in zip(entrants, models, strict=True):
        if who != reference:
            yield Figure(f"{workload} {who}, over {reference}", paces[who] / paces[reference], "x")
            yield Figure(f"{workload} {who}, gap", gap(model, models[0], first), "", MOST_APART)
    yield Figure(f"{workload} GPU, other bits", float((models[-1] != models[-2]).sum()), "", 0.0)


def gap(one: Vector, other: Vector, first: Vector) -> float:
    """How far two models are apart at most, of the largest change since the first."""
    return float(np.abs(one - other).max() / np.abs(other - first).max())


def first_model(workload: str) -> Vector:
    """The model that all begin with, flat."""
    state = workloads.first_model(workloads.WORKLOADS[workload]).state_dict()
    return np.concatenate([part.numpy().ravel() for part in state.values()])
