"""Virtual time to the same accuracy: FedBuff, synchronous FedAvg, and FedAvg that asks half as many more and drops the slowest.

    python simulations/experiments/fedbuff/compare.py [--json]

Leaves ``comparison.html``, with the curves of all three over rounds and over time, beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fedscale.report.units import duration
from fedscale.report.versus import write_comparison
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate_file

HERE = Path(__file__).parent
TARGETS = (0.80, 0.85, 0.90)
SYNCHRONOUS = ("strategy={ name = 'fedavg', rounds = 100 }",)
WAYS = {"FedBuff": (), "FedAvg": SYNCHRONOUS, "FedAvg, over-selected": (*SYNCHRONOUS, "clients.over_select=1.5")}


def main() -> None:
    """Run the three, print the times, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    as_json = parser.parse_args().json
    runs: dict[str, Simulation] = {name: simulate_file(HERE / "job.toml", overrides=overrides) for name, overrides in WAYS.items()}
    times = {name: {f"{target:.2f}": run.reached("evaluate.accuracy", target) for target in TARGETS} for name, run in runs.items()}
    write_comparison({name: run.record for name, run in runs.items()}, HERE / "comparison.html")
    if as_json:
        print(json.dumps({"virtual_seconds_to_accuracy": times}))
        return
    print(f"{'virtual time to accuracy':<26}" + "".join(f"{target:>16.2f}" for target in TARGETS))
    for name, reached in times.items():
        print(f"{name:<26}" + "".join(f"{'never' if at is None else duration(at):>16}" for at in reached.values()))


if __name__ == "__main__":
    main()
