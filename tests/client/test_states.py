"""What apps remember from message to message: nothing counts twice, and runs that are long over are forgotten."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedscale.errors import AppError
from fedscale_client import states
from fedscale_client.states import States


def test_each_message_begins_with_what_the_one_before_it_left(tmp_path: Path) -> None:
    kept = States(tmp_path / "run")
    assert kept.before(1) == b""
    for number in range(1, 5):
        kept.keep(number, b"after %d" % number)
        assert kept.before(number + 1) == b"after %d" % number


def test_a_message_that_is_answered_again_begins_where_it_began(tmp_path: Path) -> None:
    """Its worker died after it had kept the state and before the answer was there."""
    kept = States(tmp_path / "run")
    kept.keep(1, b"one")
    kept.keep(2, b"two, lost with its answer")
    assert States(tmp_path / "run").before(2) == b"one"
    kept.keep(2, b"two")
    assert kept.before(3) == b"two"


def test_a_message_that_fails_leaves_what_there_was(tmp_path: Path) -> None:
    kept = States(tmp_path / "run")
    kept.keep(1, b"one")
    assert kept.before(5) == b"one"


def test_only_what_may_be_needed_is_kept_and_for_the_owner_alone(tmp_path: Path) -> None:
    kept = States(tmp_path / "run")
    for number in range(1, 12):
        kept.keep(number, b"x")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["10", "11"]
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "11").stat().st_mode & 0o777 == 0o600


def test_runs_that_were_at_work_longest_ago_are_forgotten(tmp_path: Path) -> None:
    for number in range(states.MOST_RUNS + 3):
        States(tmp_path / f"run-{number:03}").keep(1, b"x")
        at = time.time() - 3600 + number
        os.utime(tmp_path / f"run-{number:03}", (at, at))
    States(tmp_path / "newest").keep(1, b"x")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == states.MOST_RUNS
    assert {"newest", f"run-{states.MOST_RUNS + 2:03}"} <= left
    assert "run-000" not in left


def test_of_a_run_that_is_over_nothing_is_left(tmp_path: Path) -> None:
    for run in ("../one", "two"):
        States(states.folder_of(tmp_path, run)).keep(1, b"x")
    assert len(list((tmp_path / states.FOLDER).iterdir())) == 2
    states.forget(tmp_path, "../one")
    states.forget(tmp_path, "never heard of")
    assert [States(states.folder_of(tmp_path, run)).before(2) for run in ("../one", "two")] == [b"", b"x"]
    assert [path.name for path in tmp_path.iterdir()] == [states.FOLDER]


def test_a_run_of_whose_end_nobody_told_is_forgotten_in_the_end(tmp_path: Path) -> None:
    states.trim(tmp_path / "none yet")
    for name, days in (("long ago", 91), ("lately", 89)):
        States(tmp_path / name).keep(1, b"x")
        at = time.time() - days * 86_400
        os.utime(tmp_path / name, (at, at))
    states.trim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lately"]


def test_a_run_that_ends_while_another_begins_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end in the node's process, and begin in those of its workers."""
    listed = Path.iterdir

    def ending(folder: Path) -> Iterator[Path]:
        for path in list(listed(folder)):
            if path.name == "over":
                shutil.rmtree(path)
            yield path

    States(tmp_path / "over").keep(1, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", ending)
        States(tmp_path / "begun").keep(1, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


def test_an_app_that_wants_to_remember_too_much_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "LETTER", 8)
    kept = States(tmp_path / "run")
    kept.keep(1, b"12345678")
    with pytest.raises(AppError, match="wants to remember 9 bytes"):
        kept.keep(2, b"123456789")
    assert kept.before(3) == b"12345678"
