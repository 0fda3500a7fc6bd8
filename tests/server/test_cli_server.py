"""``fedscale server init`` and ``start``: a home, and the real process in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedscale_server.profile import Profile
from fedscale_server.settings import load
from tests.command import fedscale

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FEDSCALE_PROFILE", "FEDSCALE_SERVER_HOME", "FEDSCALE_DATABASE"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def started(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The real process, from its readiness on."""
    command = [sys.executable, "-m", "fedscale", "server", "start", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=os.environ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["data"]
        finally:
            process.kill()


def test_init_makes_a_home_and_a_profile(tmp_path: Path) -> None:
    words = ["--federation", "cardio", "--hosts", "hub.example.org", "--hosts", "10.0.0.1", "--port", "9000", "--enrolment-port", "9001"]
    done = fedscale("server", "init", *words, "--json")
    assert done.data == {
        "home": "fedscale-server",
        "profile": "fedscale-server/admin",
        "federation": "cardio",
        "address": "hub.example.org:9000",
        "enrolment": "hub.example.org:9001",
        "dry_run": False,
    }
    assert "fedscale server start --home fedscale-server" in done.err
    settings = load(tmp_path / "fedscale-server")
    assert (settings.hosts, settings.port, settings.federation, settings.host) == (("hub.example.org", "10.0.0.1"), 9000, "cardio", "127.0.0.1")
    assert Profile.load().address == "hub.example.org:9000"


def test_init_can_be_tried_first_and_is_done_once(tmp_path: Path) -> None:
    assert fedscale("server", "init", "--dry-run").out == "would make a coordinator in fedscale-server\n"
    assert list(tmp_path.iterdir()) == []
    assert fedscale("server", "init").code == 0
    before = (tmp_path / "fedscale-server/ca/key.pem").read_bytes()
    for words in (["--dry-run"], []):
        assert fedscale("server", "init", *words, "--json").error["exit_code"] == 6
    assert (tmp_path / "fedscale-server/ca/key.pem").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "'port' is not valid"),
        (["--port", "8471"], "are the same"),
        (["--federation", "No Name"], "is not a valid name"),
        (["--hosts", "no host"], "is not a host name"),
    ],
)
def test_init_with_wrong_settings(words: list[str], told: str) -> None:
    done = fedscale("server", "init", *words)
    assert done.code == 2
    assert told in done.err


def test_start_without_a_home_names_the_next_step() -> None:
    done = fedscale("server", "start")
    assert done.code == 2
    assert "fedscale server init" in done.err


def test_a_started_coordinator_answers_refuses_a_taken_port_and_stops_when_told(tmp_path: Path) -> None:
    fedscale("server", "init", "--port", "0", "--enrolment-port", "0", "--web-port", "0")
    with started(tmp_path) as (process, ready):
        assert ready["pid"] == process.pid
        assert ready["address"].startswith("localhost:")
        assert fedscale("server", "status", "--json").data["address"] == ready["address"]
        assert fedscale("project", "create", "heart").code == 0
        ticket = fedscale("project", "invite", "heart", "--name", "north", "--json").data["ticket"]
        assert fedscale("node", "join", ticket, "--home", "north").code == 0
        assert [site["name"] for site in fedscale("project", "nodes", "heart", "--json").data] == ["north"]
        port = ready["address"].rpartition(":")[2]
        fedscale("server", "init", "--home", "other")
        for home, code, words in (("fedscale-server", 6, "a server is running in this home already"), ("other", 2, "cannot listen")):
            ports = ("--port", port, "--enrolment-port", "0", "--web-port", "0")
            line = [sys.executable, "-m", "fedscale", "server", "start", "--home", home, *ports]
            second = subprocess.run(line, capture_output=True, text=True, check=False)
            assert (second.returncode, words in second.stderr) == (code, True), second.stderr
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, "")
        assert "the coordinator has stopped" in err
    assert fedscale("server", "status").code == 3


def test_what_was_made_is_there_after_a_restart(tmp_path: Path) -> None:
    fedscale("server", "init", "--port", "0", "--enrolment-port", "0", "--web-port", "0")
    for expected in (0, 6):
        with started(tmp_path, "--log", "json") as (process, _):
            assert fedscale("project", "create", "heart").code == expected
            process.send_signal(signal.SIGINT)
            ends = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.02)
            assert process.returncode == 0
