"""fedscale's simulator, as a user calls it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.rivals import workloads
from fedscale.data import Dataset
from fedscale.learner import App
from fedscale.privacy.dp import DP
from fedscale_simulations.result import Progress
from fedscale_simulations.simulator import simulate

workload, folder = workloads.asked()
who, device = os.environ["BENCH_WHO"], os.environ.get("BENCH_DEVICE", "cpu")
if device == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # where torch sees a GPU, a process that has trained cannot be forked
report, data = workloads.Report("fedscale" if who == "fedscale" else f"fedscale, {who}", workload, folder), workloads.Data(workload, folder)
names = {workloads.name_of(at): at for at in range(workload.clients)}


class Clients(Mapping[str, Any]):
    """Clients whose rows stay in the file until they are trained on."""

    def __getitem__(self, name: str) -> Any:
        x, y = data.client(names[name])
        return TensorDataset(torch.tensor(x), torch.tensor(y)) if workload.name == "w3" else Dataset(x, y)

    def __iter__(self) -> Iterator[str]:
        return iter(names)

    def __len__(self) -> int:
        return len(names)


def watch(progress: Progress) -> None:
    """The first model is there, or a round has ended."""
    if progress.closed is not None or (progress.phase == "init" and progress.done == 1 and progress.number == 0 and not watched):
        watched.append(progress.number)
        report.mark()


watched: list[int] = []
ended = simulate(
    App(model=workload.model, loss=workloads.loss if workload.name == "w3" else functional.cross_entropy),
    Clients(),
    rounds=workload.rounds,
    seed=workloads.SEED,
    clients={"select": workload.cohort},
    train={"batch_size": workload.batch, "optimizer": {"lr": workload.lr}, "device": device, "amp": who == "mixed"},
    aggregate={"weight_cap": float(workload.rows), "bound": 1.0},
    evaluate={"every": 0, "holdout": 0.0},
    privacy=DP(epsilon=8.0, delta=1e-5, unit="node", mechanism="ftrl", tree_rounds=1) if who == "private" else None,
    on_progress=watch,
    engine=os.environ.get("BENCH_ENGINE", "vectorized"),
    workers=int(os.environ["BENCH_WORKERS"]) if "BENCH_WORKERS" in os.environ else None,
)
if ended.status != "completed":
    raise SystemExit(ended.summary())
model = workload.model()
model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in ended.model.items()})
report.write(model)
if "BENCH_MODEL" in os.environ:
    np.save(os.environ["BENCH_MODEL"], np.concatenate([array.ravel() for array in ended.model.values()]))
