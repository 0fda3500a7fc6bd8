"""``fedscale run card``: files to be filled in and kept beside a model, with what sites state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import fedscale
from tests.server.fake_coordinator import Coordinator, serving
from tests.server.test_cli_run import detail

STATEMENT = {"run": "risk-1", "site": "north", "epsilon": 3.25, "delta": 1e-5, "unit": "record"}


@pytest.fixture(autouse=True)
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    fake = Coordinator(answers={"GetRun": detail()})
    with serving(fake, tmp_path / "tls") as folder:
        monkeypatch.setenv("FEDSCALE_PROFILE", str(folder))
        monkeypatch.chdir(tmp_path)
        yield fake


def test_a_card_is_left_in_three_forms(tmp_path: Path) -> None:
    done = fedscale("run", "card", "risk-1")
    assert done.out.splitlines() == [f"runs/risk-1/card.{kind}" for kind in ("html", "md", "json")]
    told = json.loads((tmp_path / "runs/risk-1/card.json").read_text())
    assert told["data"]["sites"]["south"] == {"answered": 1, "failed": 1, "examples": ""}
    assert set(fedscale("run", "card", "risk-1", "--out", "else", "--json").data) == {"card.html", "card.md", "card.json"}


@pytest.mark.parametrize("printed", [STATEMENT, {"ok": True, "data": STATEMENT}], ids=["bare", "as printed"])
def test_what_a_site_states_is_in_its_card(tmp_path: Path, printed: dict[str, object]) -> None:
    (tmp_path / "north.json").write_text(json.dumps(printed))
    assert fedscale("run", "card", "risk-1", "--statement", "north.json").code == 0
    told = json.loads((tmp_path / "runs/risk-1/card.json").read_text())
    assert told["privacy"]["sites"] == {"north": {"epsilon": 3.25, "delta": 1e-5, "unit": "record"}}
    assert "3.250" in (tmp_path / "runs/risk-1/card.md").read_text()


@pytest.mark.parametrize("content", ["no JSON", "[1, 2]", '{"ok": true, "data": {"site": "north"}}', '{"data": 7}'])
def test_what_is_no_statement_is_refused_before_anything_is_asked(tmp_path: Path, coordinator: Coordinator, content: str) -> None:
    (tmp_path / "north.json").write_text(content)
    error = fedscale("run", "card", "risk-1", "--statement", "north.json", "--json").error
    assert (error["exit_code"], error["what"], error["where"]) == (2, "this is no statement of a site", "north.json")
    assert "fedscale privacy statement RUN --json" in error["hint"]
    assert coordinator.asked == []


def test_a_statement_that_is_not_there(tmp_path: Path) -> None:
    error = fedscale("run", "card", "risk-1", "--statement", "nowhere.json", "--json").error
    assert (error["what"], error["why"]) == ("a statement cannot be read", "No such file or directory")
