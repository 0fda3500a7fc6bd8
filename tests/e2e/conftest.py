"""What the tests with real processes share: jobs, sites' files, and the logs of a federation whose test failed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedscale.data import from_csv
from fedscale.plan import Plan
from fedscale_simulations.simulator import simulate
from tests.conftest import COMPONENTS, OPTIONAL_POWER
from tests.e2e import trial
from tests.e2e.federation import living
from tests.e2e.hosts import permitted

ROWS = 20
DATASET = "ward"
COMPONENTS["netns"] = permitted, OPTIONAL_POWER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every process takes its time on a busy machine; what is waited for in vain is told long before."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell that starts the tests in the background has Ctrl-C ignored, and every process would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"logs of {federation.folder}", federation.logs()) for federation in living]
    return report


def plan_of(rounds: int = 3, epochs: int = 1, **tables: Any) -> Plan:
    """A plan of the trial app, which evaluates in the end only."""
    fixed = {"job": {"name": "trial", "app": "trial:app", "data": DATASET, "seed": 11}, "evaluate": {"every": rounds, "min_cell": 1}}
    return Plan.model_validate({**fixed, "strategy": {"rounds": rounds}, "train": {"epochs": epochs}, **tables})


def write_job(folder: Path, plan: Plan) -> Path:
    """A job's folder with the trial app; returns the job file."""
    folder.mkdir(parents=True)
    (folder / "trial.py").write_text(Path(trial.__file__).read_text())
    (folder / "job.toml").write_text(plan.to_toml())
    return folder / "job.toml"


def write_table(path: Path, name: str, how: int = trial.WELL, patient: str = "somebody") -> Path:
    """The patients of a site, each in a row; no two sites have the same."""
    shift = sum(name.encode()) % 7
    rows = [f"{how},{i % 5 + shift},{i % 3}.5,{(i * shift) % 7},{i % 2},{patient}-{i}" for i in range(ROWS)]
    path.write_text("\n".join(["how,a,b,c,y,patient", *rows]) + "\n")
    return path


def declared(table: Path) -> dict[str, tuple[object, ...]]:
    """A table as a site declares it."""
    return {DATASET: ("--path", table, "--label", "y", "--group", "patient")}


@pytest.fixture(scope="module")
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the sites that a module names in ``SITES``."""
    folder = tmp_path_factory.mktemp("tables")
    return {name: write_table(folder / f"{name}.csv", name) for name in request.module.SITES}


@pytest.fixture
def expected(tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """The digest of the model that a job comes to without masks and when nothing happens, from a simulation."""
    monkeypatch.setattr(trial, "time", SimpleNamespace(sleep=lambda seconds: None))
    data = {name: from_csv(path, "y", group="patient") for name, path in tables.items()}

    def digest(job: Path) -> str:
        tree = Plan.load(job).model_dump(exclude={"secagg"})
        return simulate(trial.app, data, plan=Plan.model_validate(tree)).digest

    return digest


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job of its own."""
    return lambda **tables: write_job(tmp_path / "job", plan_of(**tables))
