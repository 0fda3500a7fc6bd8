"""What stays of a demonstration when it is asked to stay: a long run, and the way to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedscale_simulations import demo
from fedscale_simulations.cast import Cast
from fedscale_simulations.demo import Stage, into_dashboard, linger


class Written(Cast):
    """Processes that end when they have been looked at three times; commands are only noted."""

    def __init__(self, *, interrupted: bool = False) -> None:
        super().__init__(tell=lambda text: None)
        self.commands: list[str] = []
        self.looks, self.interrupted = 3, interrupted

    def call(self, *words: object, show: bool = True, live: bool = False) -> Any:
        self.commands.append(" ".join(map(str, words)))
        return {"link": "http://127.0.0.1:8472/login#token", "run": "demo-1"}

    def alive(self) -> list[str]:
        self.looks -= 1
        if self.interrupted:
            raise KeyboardInterrupt
        return ["coordinator"] * (self.looks > 0)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_long_run_goes_on_until_the_processes_end_or_somebody_ends_it(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "LOOK_SECONDS", 0.0)
    written, stage = Written(interrupted=interrupted), Stage(tmp_path)
    linger(written, stage)
    submitted, opened = written.commands
    assert submitted.startswith(f"run submit {stage.job} --project demo")
    assert submitted.endswith(f"--set strategy.rounds={demo.LONG_ROUNDS}")
    assert opened == f"server open --home {tmp_path / 'coordinator'}"
    said = capsys.readouterr().err
    assert "http://127.0.0.1:8472/login#token" in said
    assert ("the demonstration is over" in said) is interrupted


def test_the_link_is_that_of_the_demonstrations_own_coordinator(tmp_path: Path) -> None:
    written = Written()
    assert into_dashboard(written, Stage(tmp_path)) == "http://127.0.0.1:8472/login#token"
    assert written.commands == [f"server open --home {tmp_path / 'coordinator'}"]
