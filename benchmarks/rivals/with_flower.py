"""Flower's simulation runtime on Ray, two actors, stock FedAvg; only who is asked is given, so that the work is the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.rivals import workloads

workload, folder = workloads.asked()
report, data = workloads.Report("flower, ray", workload, folder), workloads.Data(workload, folder)
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, _context: Context) -> Message:
    """One client's work."""
    torch.set_num_threads(1)
    model = workload.model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    asked = message.content["config"]
    workloads.train(model, data.shuffled(int(asked["client"]), int(asked["round"])), workload)
    records = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": workload.rows})}
    return Message(content=RecordDict(records), reply_to=message)


class Scheduled(FedAvg):
    """FedAvg that asks whom the workload says."""

    def configure_train(self, server_round: int, arrays: Any, _config: Any, grid: Grid) -> Iterable[Message]:
        """One message a client."""
        if server_round == 1:
            report.mark()
        cohort = workload.cohorts()[server_round - 1].tolist()
        content = [RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client, "round": server_round})}) for client in cohort]
        return [Message(content=part, message_type="train", dst_node_id=node) for part, node in zip(content, grid.get_node_ids(), strict=False)]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """A round has ended."""
        done = super().aggregate_train(server_round, replies)
        report.mark()
        return done


@server_app.main()
def main(grid: Grid, _context: Context) -> None:
    """All rounds."""
    while len(list(grid.get_node_ids())) < workload.clients:
        time.sleep(0.05)
    model = workloads.first_model(workload)
    strategy = Scheduled(fraction_train=1.0, fraction_evaluate=0.0)
    ended = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=workload.rounds)
    model.load_state_dict(ended.arrays.to_torch_state_dict())
    report.write(model)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app=server_app, client_app=client_app, num_supernodes=workload.clients, backend_config=resources)
