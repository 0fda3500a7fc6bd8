"""The command itself: what ends it before its modules are there ends it in words."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest

from fedscale import __main__, cli, console
from tests.command import fedscale

SLOW = """
import os, signal, sys
from importlib.abc import MetaPathFinder

meant = sys.argv[1]

class Interrupted(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == meant:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupted())
from fedscale.__main__ import main
sys.argv = ["fedscale", "simulate", "job.toml"]
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["fedscale.cli", "typer", "rich.table", "fedscale.cli.lazy", "fedscale_simulations.cli", "fedscale.plan"])
def test_ctrl_c_during_imports_leaves_no_traceback(module: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SLOW, module], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_its_exit_code_is_that_of_other_interrupts() -> None:
    assert __main__.INTERRUPTED == console.INTERRUPTED


def test_ctrl_c_between_words_and_command_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise click.Abort

    monkeypatch.setattr(cli.Root, "invoke", stop)
    done = fedscale("doctor")
    assert (done.code, done.err) == (130, "interrupted\n")
    assert fedscale("doctor", "--json").error["type"] == "Interrupted"


def test_the_script_is_this_module(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    place, _, name = scripts["fedscale"].partition(":")
    assert getattr(import_module(place), name) is __main__.main


def test_the_module_gives_the_commands_exit_code(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedscale", "simulate", "none.toml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 2
    assert "give the path of a job.toml" in done.stderr
