"""The tests of the Flower adapter under several releases of flwr, each in an environment of its own.

    python -m benchmarks.rivals.flower_versions [--versions 1.22.0 1.30.0 1.39.0 1.41.0] [--folder DIR] [--torch 2.13.0] [--json]

Older releases pin packages of which we need newer ones; those are installed over the pins, and the table names them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ("1.22.0", "1.30.0", "1.39.0", "1.41.0")
TESTING = ("pytest", "pytest-randomly", "pytest-timeout", "pytest-asyncio", "hypothesis", "httpx")
TESTS = "tests/flower"
INSTALL_SECONDS, TEST_SECONDS = 1800.0, 900.0


@dataclass(frozen=True)
class Verdict:
    """What the tests say of a release.

    Args:
        version: of flwr.
        passed: how many tests.
        failed: how many tests, errors included.
        skipped: how many.
        overridden: packages that flwr pins and we need newer.
    """

    version: str
    passed: int
    failed: int
    skipped: int
    overridden: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        over = f", over its pins of {', '.join(self.overridden)}" if self.overridden else ""
        return f"flwr {self.version:8} {self.passed:4} passed {self.failed:4} failed {self.skipped:4} skipped{over}"


def environment(folder: Path, version: str, torch: str) -> Path:
    """A virtual environment with this flwr and all that we need; returns its Python. One that is there already is taken as it is."""
    python = folder / f"flwr-{version}" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for packages in ((f"flwr=={version}",), (*project["dependencies"], f"torch=={torch}", *TESTING)):
            command = [str(python), "-m", "pip", "install", "--quiet", "--no-warn-conflicts", *packages]
            subprocess.run(command, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return python


def tested(python: Path, version: str) -> Verdict:
    """Run the adapter's tests with that Python."""
    rooms = os.pathsep.join(str(ROOT / room) for room in ("", "server", "client", "simulations"))
    inherited = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [str(python), "-m", "pytest", TESTS, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=inherited | {"PYTHONPATH": rooms}, capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    said = done.stdout.splitlines() or [done.stderr]
    print("\n".join(line for line in said if line.startswith(("FAILED", "ERROR"))), file=sys.stderr)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", said[-1])}
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0) + (not counts)
    return Verdict(version, counts.get("passed", 0), failed, counts.get("skipped", 0), overridden(python))


def overridden(python: Path) -> tuple[str, ...]:
    """Packages that are not of the version which flwr asks for."""
    done = subprocess.run([str(python), "-m", "pip", "check"], capture_output=True, text=True, timeout=TEST_SECONDS, check=False)
    return tuple(sorted(set(re.findall(r"flwr \S+ has requirement ([\w-]+)", done.stdout))))


def verdicts(versions: list[str], folder: Path, torch: str) -> Iterator[Verdict]:
    """The verdict on each release, one after the other."""
    for version in versions:
        yield tested(environment(folder, version, torch), version)


def main() -> None:
    """Print one line a release; the exit code says whether all pass."""
    parser = argparse.ArgumentParser(prog="benchmarks.rivals.flower_versions", description=__doc__)
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--folder", type=Path, help="where the environments are kept; by default they are made and thrown away")
    parser.add_argument("--torch", default="2.13.0")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        failed = 0
        for verdict in verdicts(options.versions, options.folder or Path(scratch), options.torch):
            print(json.dumps(asdict(verdict)) if options.json else verdict, flush=True)
            failed += verdict.failed
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
