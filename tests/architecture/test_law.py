"""The law of the house: what lies where, what is imported by whom, what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture import measure

HEAVY = {"torch", "flwr", "opacus", "sklearn", "scipy", "pandas", "ray"}
ROOM_FOLDERS = ("server", "client", "simulations")


def loaded_after(statements: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after ``statements``."""
    script = f"import json, sys\n{statements}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def import_all(root: Path, package: str, *, besides: str = "-") -> str:
    """Statements that import every module of a package but those whose names begin with ``besides``."""
    return "\n".join(f"import {name}" for name in measure.importable(root, package) if not name.startswith(besides))


def test_rooms_hold_one_package_and_no_loose_code(root: Path) -> None:
    for folder in ROOM_FOLDERS:
        packages = [path.parent.name for path in (root / folder).glob("*/__init__.py")]
        assert packages == [f"fedscale_{folder}"]
        assert list((root / folder).glob("*.py")) == []


def test_every_folder_of_code_is_a_package(root: Path) -> None:
    """A folder without __init__.py is invisible to the layer contracts."""
    folders = {(root / module.path).parent for module in measure.read_rooms(root)}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_importing_fedscale_is_light() -> None:
    assert loaded_after("import fedscale") & (HEAVY | {"sqlmodel", "sqlalchemy", "alembic"}) == set()


def test_importing_the_command_line_is_light() -> None:
    assert loaded_after("import fedscale.cli") & HEAVY == set()


def test_the_server_never_loads_what_trains(root: Path) -> None:
    assert loaded_after(import_all(root, "fedscale_server")) & HEAVY == set()


def test_the_node_loads_torch_in_its_worker_only(root: Path) -> None:
    assert loaded_after(import_all(root, "fedscale_client", besides="fedscale_client.worker")) & HEAVY == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert "torch" in loaded_after("import sys\nsys.modules['torch'] = sys")
    with pytest.raises(AssertionError, match="no_such_module"):
        loaded_after("import no_such_module")


def test_the_layers_hold(root: Path) -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_layer_is_optional(root: Path) -> None:
    """A layer in brackets may be missing; by now every one has its module."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", [])]
    assert [layer for layer in layers if "(" in layer] == []


def test_make_has_few_targets_that_explain_themselves(root: Path) -> None:
    text = (root / "Makefile").read_text()
    targets = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=root, capture_output=True, text=True, check=True)
    assert len(targets) <= 10
    assert [line.split()[1] for line in done.stdout.splitlines()] == targets
    assert all(len(line.split()) > 3 for line in done.stdout.splitlines())


def test_constraints_pin_every_dependency_exactly(root: Path) -> None:
    pins = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "@" not in line for line in pins)
    assert {"torch==2.13.0", "flwr==1.41.0", "grpcio-tools==1.76.0"} <= set(pins)
    assert not any(line.startswith("nvidia") for line in pins)
