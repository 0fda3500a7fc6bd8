"""What every test may ask for: components that not every machine has, and the folder of optional data.

``@pytest.mark.requires("postgresql")`` skips a test where a component is missing. Under CI nothing may be missing: there every
skip is a failure, except for data that is no part of the repository, for a GPU, and for what a container does not let anybody do.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Simulations fork workers in the process in which other tests have used gRPC, whose own handlers for forks can wait for ever.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A process that sees a GPU trains on it, to other bits, and cannot be forked afterwards: only the tests of GPUs see one, where they are asked for.
if "FEDSCALE_TEST_GPUS" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# No example of a property has to be done in a given time: machines differ, and this one may be busy.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL_DATA, OPTIONAL_POWER, OPTIONAL_DEVICE = "optional data", "this container does not permit it", "a device that not every machine has"


def postgres_bin() -> Path | None:
    """The folder that holds initdb, on PATH or where Debian puts it."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    return max((folder for folder in folders if (folder / "initdb").exists()), key=lambda folder: float(folder.parent.name), default=None)


def shared_data() -> Path | None:
    """Data sets that lie beside the repository on some machines and are never part of it."""
    folder = ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def module(name: str) -> Callable[[], bool]:
    """A probe for a Python package, without importing it."""
    return lambda: importlib.util.find_spec(name) is not None


def gpu() -> bool:
    """Whether torch has a CUDA device."""
    return module("torch")() and bool(importlib.import_module("torch").cuda.is_available())


COMPONENTS: dict[str, tuple[Callable[[], object], str]] = {
    "postgresql": (postgres_bin, "install the package postgresql-15"),
    "torch": (module("torch"), "pip install 'fedscale-fl[torch]'"),
    "flower": (module("flwr"), "pip install 'fedscale-fl[flower]'"),
    "sklearn": (module("sklearn"), "pip install 'fedscale-fl[demo]'"),
    "pandas": (module("pandas"), "pip install 'fedscale-fl[dev]'"),
    "xgboost": (module("xgboost"), "pip install 'fedscale-fl[dev]'"),
    "prv-accountant": (module("prv_accountant"), "pip install 'fedscale-fl[dev]'"),
    "optuna": (module("optuna"), "pip install 'fedscale-fl[sweep]'"),
    "tensorboard": (module("tensorboard"), "pip install 'fedscale-fl[tensorboard]'"),
    "mlflow": (module("mlflow"), "pip install 'fedscale-fl[mlflow]'"),
    "sphinx": (module("sphinx"), "pip install 'fedscale-fl[docs]'"),
    "ray": (module("ray"), "pip install 'fedscale-fl[ray]'"),
    "chromium": (lambda: Path("/usr/bin/chromium").exists(), "install the packages chromium and fonts-dejavu-core"),
    "object-store": (lambda: module("moto")() and module("obstore")(), "pip install 'fedscale-fl[dev]'"),
    "ip": (lambda: shutil.which("ip"), "install the package iproute2"),
    "cuda": (gpu, f"{OPTIONAL_DEVICE}, and that FEDSCALE_TEST_GPUS=1 shows"),
    "shared-data": (shared_data, OPTIONAL_DATA),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--release", action="store_true", help="the few tests that have two sizes, at the one that a release is put through")


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest) -> bool:
    """Whether a test of two sizes runs at the larger one."""
    return bool(request.config.getoption("release"))


def requires(*components: str) -> None:
    """Skip the running test, with a reason, unless all ``components`` are here; also the marker of the same name."""
    for component in components:
        probe, remedy = COMPONENTS[component]
        if not probe():
            pytest.skip(f"{component} is missing: {remedy}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        requires(*marker.args)


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure under CI; expected failures, and what is not for every machine to have, stay as they are."""
    optional = any(reason in str(report.longrepr) for reason in (OPTIONAL_DATA, OPTIONAL_POWER, OPTIONAL_DEVICE))
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail") and not optional:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # A failure is reported by parsing source code, which in CPython before 3.11.8 fails where the collector runs other code meanwhile.
    gc.disable()
    try:
        report = yield
    finally:
        gc.enable()
    forbid_skip(report)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failure at once: whatever ends the run early, what failed before is on record."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nfailed in {report.when}: {report.nodeid}\n{str(report.longrepr)[-2000:]}", file=sys.__stderr__, flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured: ``record_property("measured", "...")`` arrives from every process that runs tests."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(f"measured: {value}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT
