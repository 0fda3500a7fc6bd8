"""A consortium that migrates site by site: one site has our node, the other still runs Flower's own supernode, behind a gateway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.e2e.federation import Federation, environment
from tests.e2e.partners import LOADER
from tests.e2e.test_flower import PATIENCE, TOGETHER, expected
from tests.flower import samples
from tests.server.ports import own_port

SCRIPT = Path(sys.executable).with_name("flower-supernode")
pytestmark = [pytest.mark.requires("flower"), pytest.mark.timeout(600), pytest.mark.skipif(not SCRIPT.exists(), reason="flwr is not installed")]

GATEWAY = """
from fedscale.flower.gateway import Gateway


def load():
    return Gateway(http="127.0.0.1:{port}", rpc="", seconds=250)
"""
STOP_SECONDS = 20.0


@contextmanager
def supernode(folder: Path, port: int) -> Iterator[Path]:
    """A stock supernode, the second of two; its log."""
    home, log = folder / "flower-home", folder / "supernode.log"
    home.mkdir()
    own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"}
    facts = "partition-id=1 num-partitions=2"
    command = [str(SCRIPT), "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own_port()), "--node-config", facts]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment() | own, stdout=out, stderr=out, start_new_session=True)
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_site_may_keep_its_supernode(tmp_path: Path) -> None:
    """For one run after another: the gateway's place is fixed, and the supernode stays."""
    port = own_port()
    (tmp_path / "ann.py").write_text(LOADER.format(place=0))
    (tmp_path / "bob.py").write_text(GATEWAY.format(port=port))
    app = samples.write(tmp_path / "app")
    with Federation(tmp_path) as federation, supernode(tmp_path, port) as log:
        federation.join_all(("ann", "bob"), lambda name: {"default": ("--loader", f"{tmp_path / name}.py:load")})
        runs = []
        for _ in range(2):
            runs.append(federation.submit(app, *TOGETHER[:3], "num-server-rounds=1", "evaluate.every=0"))
            watching = federation.watch(runs[-1])
            assert watching.wait(2 * PATIENCE).code == 0, log.read_text(errors="replace")[-4000:]
            assert [row.answered for row in federation.record(runs[-1]).rounds] == [("ann", "bob")]
        federation.manage("run", "export", runs[-1], "--out", tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["0"].ravel().tolist() == pytest.approx([expected(1)] * 6, rel=1e-5)
