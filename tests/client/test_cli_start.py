"""``fedscale node start``: what it writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedscale_client import chronicle, cli_start
from fedscale_client.home import NodeHome


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeHome:
    """A node that has one thing to tell of and then stops."""

    async def run(_: NodeHome, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        on_event({"event": "stopped"})

    made = NodeHome(tmp_path)
    monkeypatch.setattr(cli_start, "opened", lambda _: made)
    monkeypatch.setattr(cli_start, "later", lambda _: run)
    return made


def test_what_happens_is_written_down(home: NodeHome) -> None:
    cli_start.start(home=home.path)
    assert [event["event"] for event in chronicle.read(home)] == ["stopped"]


def test_a_disk_that_refuses_the_chronicle_does_not_stop_the_node(home: NodeHome, capsys: pytest.CaptureFixture[str]) -> None:
    chronicle.file_of(home).parent.write_bytes(b"a file where the folder should be")
    cli_start.start(home=home.path)
    assert "chronicle not written" in capsys.readouterr().err
