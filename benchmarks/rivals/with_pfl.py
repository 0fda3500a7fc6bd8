"""Apple's pfl-research as its documentation has it: ``torchrun`` with two processes of one thread, stock FedAvg."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

if "LOCAL_RANK" not in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "PFL_PYTORCH_DEVICE": "cpu"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    os.execv(sys.executable, [*launcher, *sys.argv])  # noqa: S606 - becomes the launcher

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.rivals import workloads

torch.set_num_threads(1)
workload, folder = workloads.asked()
report, data = workloads.Report("pfl-research, 2 processes", workload, folder), workloads.Data(workload, folder)
net: Any = workloads.first_model(workload)


def loss(module: Any, x: Any, y: Any, eval: bool = False) -> Any:  # noqa: A002, ARG001, FBT001, FBT002 - pfl's signature
    """What pfl minimises; it makes floats of every feature."""
    return workloads.loss(module(x.long() if workload.name == "w3" else x), y.long())


def metrics(module: Any, x: Any, y: Any, eval: bool = False) -> Any:  # noqa: A002, ARG001, FBT001, FBT002 - pfl's signature
    """Nothing is measured while the clock runs."""
    return {"rows": Weighted(0.0, len(x))}


class Marks(TrainingProcessCallback):
    """Notes when a round ends."""

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:  # noqa: ARG002
        """A round has ended."""
        report.mark()
        return False, Metrics()


net.loss, net.metrics = types.MethodType(loss, net), types.MethodType(metrics, net)
schedule = iter([(client, number) for number, cohort in enumerate(workload.cohorts(), 1) for client in cohort.tolist()])
users = FederatedDataset(lambda user: Dataset(list(data.shuffled(*user)), user_id=str(user)), lambda: next(schedule))
model = PyTorchModel(model=net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0))
backend = SimulatedBackend(training_data=users, val_data=None, postprocessors=[WeightByDatapoints()])
report.mark()
FederatedAveraging().run(
    NNAlgorithmParams(central_num_iterations=workload.rounds, evaluation_frequency=10**6, train_cohort_size=workload.cohort, val_cohort_size=0),
    backend,
    model,
    NNTrainHyperParams(local_num_epochs=1, local_learning_rate=workload.lr, local_batch_size=workload.batch),
    NNEvalHyperParams(local_batch_size=workload.rows),
    [Marks()],
    send_metrics_to_platform=False,
)
if os.environ.get("RANK", "0") == "0":
    report.write(net)
