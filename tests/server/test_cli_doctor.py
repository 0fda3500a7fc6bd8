"""``fedscale server doctor``: what is sound, what protects a coordinator, and what it says where something does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import fedscale


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    assert fedscale("server", "init", "--home", folder).code == 0
    assert fedscale("server", "user", "add", "grace", "--role", "auditor", "--home", folder).code == 0
    return folder


def checks(home: Path) -> dict[str, dict[str, Any]]:
    """What was found, by name."""
    done = fedscale("server", "doctor", "--home", home, "--json")
    found = done.data if done.code == 0 else json.loads(done.out)["data"]
    return {check["name"].replace(str(home), "HOME"): check for check in found["checks"]}


def test_a_fresh_coordinator_is_sound(home: Path) -> None:
    found = checks(home)
    assert {name: check["found"] for name, check in found.items() if check["state"] != "ok"} == {}
    assert found["audit trail"]["found"] == "1 lines verify"
    assert "SQLite" in found["database"]["found"]
    assert found["reach"]["found"] == "listens at 127.0.0.1, this machine only"
    assert {"wire", "keys", "dashboard", "certificate HOME/server/cert.pem"} <= set(found)


def test_a_trail_that_was_edited_is_a_fault(home: Path) -> None:
    trail = home / "audit.jsonl"
    trail.write_text(trail.read_text().replace("grace", "linus"))
    assert (checks(home)["audit trail"]["state"], checks(home)["audit trail"]["found"]) == ("fault", "line 1 was edited")
    assert fedscale("server", "doctor", "--home", home).code == 2


def test_keys_that_others_can_read_are_a_fault(home: Path) -> None:
    (home / "ca" / "key.pem").chmod(0o644)
    found = checks(home)["keys"]
    assert found["state"] == "fault"
    assert found["found"].endswith("ca/key.pem")
    assert found["hint"] == f"chmod -R go= {home}"


def test_what_is_open_to_others_is_told(home: Path) -> None:
    (home / "server.toml").write_text('host = "0.0.0.0"\nweb_host = "0.0.0.0"\ndatabase = "postgresql+psycopg://db.example.org/fl"\n')
    settings = checks(home)
    assert settings["reach"]["found"].endswith("other machines may connect")
    assert settings["dashboard"]["state"] == "warning"
    assert settings["database line"]["hint"] == "add ?sslmode=verify-full to the URL of the database"


def test_without_a_dashboard_there_is_nothing_to_open(home: Path) -> None:
    (home / "server.toml").write_text("web = false\n")
    assert checks(home)["dashboard"]["found"] == "is not served"
