"""Stock supernodes of several releases of flwr complete one run of ours through the gateway, each for a site of its own.

    python -m benchmarks.rivals.flower_supernodes [--versions 1.30.0 1.39.0 1.41.0] [--folder DIR] [--torch 2.13.0]

The environments are those of ``flower_versions``. The model is compared with that of Flower's ServerApp in our simulation.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.rivals.flower_versions import environment
from fedscale.flower import bridge
from fedscale.flower.deployment import job_of
from fedscale.flower.gateway import Gateway
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.job import importable
from fedscale_simulations.simulator import simulate
from tests.flower import samples

VERSIONS = ("1.30.0", "1.39.0", "1.41.0")
HTTP, PORT = (1, 40), (1, 36)
ROUNDS, MESSAGE_SECONDS, STOP_SECONDS = 2, 120.0, 20.0
PORTS = 19_400


@contextmanager
def supernode(python: Path, version: str, gate: Gateway, place: int, count: int, scratch: Path) -> Iterator[None]:
    """A stock supernode that connects to a gateway; it ends with the ``with`` block, and so do the processes it has started."""
    release = tuple(map(int, version.split(".")[:2]))
    home = scratch / f"home-{place}"
    own = ["--port", str(PORTS + place)] if release >= PORT else ["--clientappio-api-address", f"127.0.0.1:{PORTS + place}"]
    facts = f"partition-id={place} num-partitions={count}"
    address = gate.http if release >= HTTP else gate.rpc
    command = [str(python.with_name("flower-supernode")), "--insecure", "--superlink", address, "--node-config", facts, *own]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    chosen = {"PATH": path, "HOME": str(home), "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "NO_PROXY": "127.0.0.1"}
    home.mkdir()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | chosen, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def bench(versions: list[str], folder: Path, torch: str, scratch: Path) -> bool:
    """Run it, print what came of it, and say whether the models are equal."""
    app = samples.write(scratch / "app")
    told, plan = job_of(app, [f"num-server-rounds={ROUNDS}", 'evaluate.metrics=["score"]', f"clients.deadline={len(versions) * 4 * MESSAGE_SECONDS}"])
    pythons = [environment(folder, version, torch) for version in versions]
    gates = {f"site-{place}": Gateway(seconds=MESSAGE_SECONDS) for place in range(len(versions))}
    began = time.monotonic()
    try:
        with importable(app), ExitStack() as stack:
            for place, each in enumerate(zip(pythons, versions, gates.values(), strict=True)):
                stack.enter_context(supernode(*each, place, len(versions), scratch))
            ended = simulate(bridge.FlowerLearner(told, told.config), gates, plan=plan, engine="sequential")
    finally:
        for gate in gates.values():
            gate.close()
    seconds = time.monotonic() - began
    ours, theirs = ended.model, simulate_app(app, len(versions), [f"num-server-rounds={ROUNDS}"]).arrays
    equal = set(ours) == set(theirs) and all(np.allclose(ours[name], theirs[name], rtol=1e-5) for name in theirs)
    messages = 2 * ROUNDS * len(versions)
    print(f"supernodes {', '.join(versions)}: {ended.status} {ended.record.reason}".rstrip())
    print(f"{messages} messages in {seconds:.0f} s, {seconds / messages:.1f} s each; model {'equal' if equal else 'DIFFERENT'}")
    return equal


def main() -> None:
    """The exit code says whether all is well."""
    parser = argparse.ArgumentParser(prog="benchmarks.rivals.flower_supernodes", description=__doc__)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--folder", type=Path, help="where the environments are kept; by default they are made and thrown away")
    parser.add_argument("--torch", default="2.13.0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(not bench(options.versions, options.folder or Path(scratch), options.torch, Path(scratch)))


if __name__ == "__main__":
    main()
