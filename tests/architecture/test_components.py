"""What is missing is skipped with its remedy, and under CI a skip is a failure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest


def report(*, skipped: bool = True, reason: str = "Skipped: no", **more: object) -> pytest.TestReport:
    return SimpleNamespace(skipped=skipped, outcome="skipped" if skipped else "passed", longrepr=("file", 1, reason), **more)  # type: ignore[return-value]


def test_a_missing_component_skips_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conftest.COMPONENTS, "cyclotron", (lambda: None, "build one"))
    with pytest.raises(pytest.skip.Exception, match="cyclotron is missing: build one"):
        conftest.requires("torch", "cyclotron")


@pytest.mark.requires("torch", "flower", "sklearn", "pandas")
def test_the_development_environment_is_complete() -> None:
    assert not conftest.module("no_such_package")()


def test_an_unknown_component_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="cyclotron"):
        conftest.requires("cyclotron")


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (report(), "failed"),
        (report(reason="Skipped: shared-data is missing: optional data"), "skipped"),
        (report(reason="Skipped: cuda is missing: a device that not every machine has"), "skipped"),
        (report(wasxfail="known"), "skipped"),
        (report(skipped=False), "passed"),
    ],
)
def test_under_ci_a_skip_is_a_failure(monkeypatch: pytest.MonkeyPatch, given: pytest.TestReport, outcome: str) -> None:
    before = given.outcome
    monkeypatch.delenv("CI", raising=False)
    conftest.forbid_skip(given)
    assert given.outcome == before
    monkeypatch.setenv("CI", "true")
    conftest.forbid_skip(given)
    assert given.outcome == outcome


def test_postgres_is_found_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "initdb"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert conftest.postgres_bin() == tmp_path.resolve()
