"""A Flower app whose clients do nothing, and Flower's own simulation of it on Ray: what is left is the runtime.

    python -m benchmarks.rivals.flower_noop CLIENTS FILE

The strategy writes into FILE how many clients it asked and how long it took, from the end of the first round, in which
workers start, to the end of the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

ROUNDS = 3


class Idle(NumPyClient):
    """Returns what it got."""

    def fit(self, parameters: Any, _config: Any) -> Any:
        """One example, nothing learnt."""
        return parameters, 1, {}


class Timed(FedAvg):
    """FedAvg of everybody that notes the time; nobody evaluates."""

    def __init__(self, report: Path) -> None:
        super().__init__(fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters([np.zeros(10, np.float32)]))
        self.report, self.ends, self.tasks = report, list[float](), 0

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """A round has ended; that every client answered is part of the measurement."""
        done = super().aggregate_fit(server_round, results, failures)
        assert not failures
        self.ends.append(time.perf_counter())
        self.tasks += len(results) if server_round > 1 else 0
        self.report.write_text(json.dumps({"tasks": self.tasks, "seconds": self.ends[-1] - self.ends[0]}))
        return done


def server_app(report: Path) -> ServerApp:
    """Leads the rounds."""
    return ServerApp(server_fn=lambda _: ServerAppComponents(strategy=Timed(report), config=ServerConfig(num_rounds=ROUNDS)))


def client_fn(_context: Context) -> Any:
    """A client."""
    return Idle().to_client()


client_app = ClientApp(client_fn)

if __name__ == "__main__":
    from flwr.simulation import run_simulation

    resources = {"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}}
    run_simulation(server_app(Path(sys.argv[2])), client_app, int(sys.argv[1]), backend_config=resources)
