"""Processes of a demonstration: started, heard, and ended however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from fedscale.errors import ConfigError, NotFound, RunFailed, Unreachable
from fedscale_simulations import cast as module
from fedscale_simulations.cast import Cast, environment, program

PATIENCE = 60.0
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {DEAF!r}]); print(child.pid, flush=True); " + DEAF


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a command are Python's, so that it does what a test needs."""
    monkeypatch.setattr(module, "program", lambda: [sys.executable])


@pytest.fixture
def cast() -> Iterator[Cast]:
    with Cast(tell=lambda _: None) as opened:
        yield opened


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is looked at
        return False


def said(log: Path) -> str:
    return log.with_suffix(".out").read_text()


def test_the_program_is_the_script_or_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert program() == [str(tmp_path / "python"), "-m", "fedscale"]
    (tmp_path / "fedscale").touch()
    assert program() == [str(tmp_path / "fedscale")]


def test_processes_share_the_machine_and_inherit_no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSCALE_PROFILE", "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    given = environment()
    assert (given["OMP_NUM_THREADS"], given["NO_PROXY"], "FEDSCALE_PROFILE" in given) == ("1", "127.0.0.1,localhost", False)


def test_a_call_returns_data_or_raises_what_the_command_said(cast: Cast, tmp_path: Path) -> None:
    told: list[str] = []
    cast.tell = told.append
    made = cast.call("init", tmp_path / "my job", "--template", "image")
    assert made["template"] == "image"
    with pytest.raises(ConfigError, match="there is no command") as caught:
        cast.call("int", show=False)
    assert caught.value.hint == "did you mean 'fedscale init'?"
    assert told == [f"$ fedscale init '{tmp_path}/my job' --template image"]


def test_a_call_that_says_nothing_has_broken_off(cast: Cast, python: None) -> None:
    with pytest.raises(RunFailed, match="broke off") as caught:
        cast.call("-c", "import sys; sys.exit(9)")
    assert caught.value.why == "exit code 9"


@pytest.mark.parametrize(("kind", "raised"), [("NotFound", NotFound), ("SystemExit", RunFailed), ("Interrupted", RunFailed)])
def test_errors_of_unknown_kinds_are_failures(kind: str, raised: type[Exception]) -> None:
    assert type(module._error({"type": kind, "what": "x", "where": "", "why": "", "hint": ""})) is raised


def test_a_background_process_is_heard_when_it_is_ready(cast: Cast, python: None, tmp_path: Path) -> None:
    script = "import sys, time; print('{\"ok\": true, \"data\": 7}', flush=True); print('log', file=sys.stderr); time.sleep(600)"
    cast.start("server", "-c", script, log=tmp_path / "logs/server.log")
    assert cast.ready("server", tmp_path / "logs/server.log") == 7
    assert cast.alive() == ["server"]


def test_one_that_ends_early_is_reported_with_its_last_words(cast: Cast, python: None, tmp_path: Path) -> None:
    cast.start("server", "-c", "raise SystemExit('the port is taken')", log=tmp_path / "server.log")
    with pytest.raises(RunFailed, match="ended before it was ready") as caught:
        cast.ready("server", tmp_path / "server.log")
    assert caught.value.why == "the port is taken"


def test_one_that_is_silent_is_given_up(cast: Cast, python: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.2)
    cast.start("server", "-c", "import time; time.sleep(600)", log=tmp_path / "server.log")
    with pytest.raises(Unreachable, match="not ready after"):
        cast.ready("server", tmp_path / "server.log")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ConfigError])
def test_nothing_survives_the_block(python: None, tmp_path: Path, error: type[BaseException] | None) -> None:
    cast = Cast(tell=lambda _: None)

    def play() -> None:
        with cast:
            for name in ("a", "b"):
                cast.start(name, "-c", SLEEPER, log=tmp_path / f"{name}.log")
            wait_for(lambda: said(tmp_path / "a.log") and said(tmp_path / "b.log"))
            assert cast.alive() == ["a", "b"]
            if error is not None:
                raise error("stop")

    with nullcontext() if error is None else pytest.raises(error):
        play()
    assert cast.alive() == []


def test_the_deaf_are_killed_with_their_children(python: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    with Cast(tell=lambda _: None) as cast:
        cast.start("node", "-c", PARENT, log=tmp_path / "node.log")
        wait_for(lambda: said(tmp_path / "node.log").count("\n") == 3)
        child = next(int(line) for line in said(tmp_path / "node.log").split() if line.isdigit())
        assert is_alive(child)
    assert cast.alive() == []
    wait_for(lambda: not is_alive(child))


def test_dismissed_processes_end_meanwhile(cast: Cast, python: None, tmp_path: Path) -> None:
    cast.start("a", "-c", SLEEPER, log=tmp_path / "a.log")
    wait_for(lambda: said(tmp_path / "a.log"))
    cast.dismiss()
    wait_for(lambda: not cast.alive())
    with pytest.raises(RunFailed, match="b was not started"):
        cast.start("b", "-c", SLEEPER, log=tmp_path / "b.log")


def test_sigterm_unwinds_like_ctrl_c_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def play() -> None:
        with Cast(tell=lambda _: None):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        play()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cast_may_be_opened_beside_the_main_thread() -> None:
    script = (
        "import threading\nfrom fedscale_simulations.cast import Cast\ndef run():\n    with Cast(): print('fine')\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "fine\n"
