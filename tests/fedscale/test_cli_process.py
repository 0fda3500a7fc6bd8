"""The process of a command: it says everything, runs every exit handler, and ends with the command's exit code."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from fedscale.cli import process

HEAD = "import atexit, gc, os, sys, threading, time\nfrom fedscale.cli import process\n"


def ended(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    around = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_PLUGINS"))} | variables
    return subprocess.run([sys.executable, "-c", HEAD + program], capture_output=True, text=True, timeout=60, check=False, env=around)


@pytest.mark.parametrize("code", [0, 3, 130])
def test_the_exit_code_is_the_commands(code: int) -> None:
    done = ended(f"sys.exit(process.whole(lambda: print('said') or {code}))")
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\n", "")


def test_everything_said_arrives_and_every_handler_runs_first() -> None:
    program = """
def command():
    atexit.register(lambda: print("handler", gc.get_threshold()[0]))
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    sys.stdout.write("x" * 100_000 + "\\n")
    sys.stderr.write("note")
    return 4

atexit.register(print, "older handler")
sys.exit(process.whole(command))
"""
    done = ended(program)
    said = done.stdout.splitlines()
    assert (done.returncode, said[0], said[1:3], done.stderr) == (4, "x" * 100_000, ["thread", f"handler {process.RARELY}"], "note")


def test_a_command_that_breaks_off_ends_as_python_ends() -> None:
    done = ended("process.whole(lambda: 1 / 0)")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_a_reader_who_has_left_is_not_complained_about() -> None:
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -m fedscale --help | true"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["explain --json", "explain nonsense --json"])
def test_an_envelope_that_finds_no_room_ends_in_words(words: str) -> None:
    command = f"'{sys.executable}' -m fedscale {words} >/dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    first, *others = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert [line for line in others if not line.startswith("  ")] == []
    assert done.returncode == (6 if "nonsense" in words else 2)


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_closed_streams_are_taken_before_a_file_can_get_their_number(closed: str) -> None:
    program = "process.whole(lambda: print('said') or print('noted', file=sys.stderr) or len(sys.stdin.read()) + os.open('/', os.O_RDONLY))"
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, f"{HEAD}sys.exit({program})"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode >= 3
    assert (done.stdout, done.stderr) == ("" if ">&-" in closed.split() else "said\n", "" if "2>&-" in closed else "noted\n")


@pytest.mark.parametrize(
    ("variables", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "4"}, "None"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")], ids=["none", "omp", "openblas"]
)
def test_linear_algebra_gets_one_thread_unless_somebody_says_otherwise(variables: dict[str, str], threads: str) -> None:
    done = ended('process.whole(lambda: print(os.environ.get("OPENBLAS_NUM_THREADS")) or 0)', **variables)
    assert (done.returncode, done.stdout) == (0, f"{threads}\n")


@pytest.mark.parametrize(("variables", "left_out"), [({}, "__all__"), ({"PYDANTIC_DISABLE_PLUGINS": "other"}, "other")], ids=["none", "own"])
def test_pydantic_looks_for_no_plugins_unless_somebody_says_otherwise(variables: dict[str, str], left_out: str) -> None:
    done = ended('process.whole(lambda: print(os.environ.get("PYDANTIC_DISABLE_PLUGINS")) or 0)', **variables)
    assert (done.returncode, done.stdout) == (0, f"{left_out}\n")


def test_nothing_of_it_happens_to_whoever_calls_a_command_in_a_process_of_his_own() -> None:
    assert gc.get_threshold()[0] != process.RARELY
