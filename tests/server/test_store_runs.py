"""Runs, their journals and checkpoints, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedscale.errors import Conflict, NotFound
from fedscale.events import Answered, Failed, from_row, to_row
from fedscale_server.store.store import Store
from tests.server.samples import NOW, add_run, later

WRITER = """
import sys
from datetime import UTC, datetime
from fedscale_server.store.store import Store
store = Store.open(sys.argv[1])
while True:
    print(store.append("crash", "answered", {"node": "alpha"}, datetime.now(UTC)), flush=True)
"""


# ----------------------------------------------------------------------------------------------------------------- runs


def test_a_run_comes_back_as_it_was_made(store: Store) -> None:
    made = add_run(store, plan="[job]\nname = 'sepsis'\n", key="k1")
    assert made.model_dump() == {
        "id": "sepsis-0a1b2c",
        "project": "ward",
        "name": "sepsis",
        "plan": "[job]\nname = 'sepsis'\n",
        "plan_hash": "aa",
        "bundle": "bb",
        "key": "k1",
        "status": "running",
        "reason": "",
        "created": NOW,
        "finished": None,
        "record": None,
    }
    assert store.run("sepsis-0a1b2c") == made


def test_the_same_key_finds_the_same_run(store: Store) -> None:
    first = add_run(store, "one", key="k1")
    again = add_run(store, "two", key="k1", now=later(9))
    assert again == first
    assert [row.id for row in store.runs()] == ["one"]


def test_the_same_key_finds_a_run_that_is_over(store: Store) -> None:
    add_run(store, "one", key="k1")
    store.finish("one", "completed", "", {}, later(1))
    assert add_run(store, "two", key="k1").status == "completed"


@pytest.mark.parametrize("change", [{"plan_hash": "zz"}, {"bundle": "zz"}, {"project": "clinic"}])
def test_a_key_does_not_stand_for_two_submissions(store: Store, change: dict[str, str]) -> None:
    store.create_project("clinic", NOW)
    add_run(store, "one", key="k1")
    with pytest.raises(Conflict, match="run one: the key was used for another submission"):
        add_run(store, "two", key="k1", **change)


def test_without_a_key_each_submission_is_a_run(store: Store) -> None:
    add_run(store, "one")
    add_run(store, "two")
    assert {row.id for row in store.runs()} == {"one", "two"}


def test_many_submissions_with_one_key_begin_one_run(store: Store) -> None:
    start = Barrier(16)

    def submit(number: int) -> str:
        start.wait(30)
        return add_run(store, f"run-{number}", key="k1").id

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(submit, range(16)))) == 1
    assert len(store.runs()) == 1


def test_processes_that_submit_at_once_wait_for_each_other(store: Store, url: str, opened: Callable[[str], Store]) -> None:
    """What a transaction has read before it writes stays true until it has written."""
    stores = [store, *(opened(url) for _ in range(3))]
    start = Barrier(len(stores))

    def submit(number: int) -> None:
        start.wait(30)
        for run in range(10):
            add_run(stores[number], f"run-{number}-{run}", key=f"k-{number}-{run}")

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(submit, range(len(stores))))
    assert len(store.runs()) == 40


def test_a_run_needs_its_project_and_an_id_of_its_own(store: Store) -> None:
    with pytest.raises(NotFound, match="no project 'warde'; did you mean 'ward'"):
        add_run(store, project="warde")
    add_run(store, "one")
    with pytest.raises(Conflict, match="run 'one' exists already"):
        add_run(store, "one")


def test_the_beginning_of_an_id_is_enough(store: Store) -> None:
    for run in ("sepsis-0a1b2c", "sepsis-ff0000", "stroke-0a1b2c", "seps"):
        add_run(store, run)
    assert store.run("stro").id == "stroke-0a1b2c"
    assert store.run("sepsis-f").id == "sepsis-ff0000"
    assert store.run("seps").id == "seps", "an exact id wins over longer ones"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("sepsis-", "several runs begin with 'sepsis-' (sepsis-0a1b2c, sepsis-0b0000); give more of the id"),
        ("str", "no run 'str'; see: fedscale run list"),
        ("sepsis-1a1b2c", "no run 'sepsis-1a1b2c'; did you mean 'sepsis-0a1b2c'?"),
        ("%epsis", "no run '%epsis'; see: fedscale run list"),
        ("", "no run ''; see: fedscale run list"),
    ],
)
def test_a_run_that_is_not_found(store: Store, asked: str, message: str) -> None:
    for run in ("sepsis-0a1b2c", "sepsis-0b0000", "stroke-000000"):
        add_run(store, run)
    with pytest.raises(NotFound) as caught:
        store.run(asked)
    assert str(caught.value).startswith(message)


def test_runs_are_listed_newest_first_and_resumed_oldest_first(store: Store) -> None:
    store.create_project("clinic", NOW)
    for seconds, run, project in ((2, "b", "ward"), (1, "a", "ward"), (3, "c", "clinic"), (4, "d", "ward")):
        add_run(store, run, project=project, now=later(seconds))
    store.finish("b", "failed", "", {}, later(9))
    assert [row.id for row in store.runs()] == ["d", "c", "b", "a"]
    assert [row.id for row in store.runs("ward")] == ["d", "b", "a"]
    assert [row.id for row in store.unfinished()] == ["a", "c", "d"]


def test_a_run_can_be_paused_and_go_on(store: Store) -> None:
    add_run(store)
    store.set_status("sepsis-0a1b2c", "paused", "by night\0")
    row = store.run("sepsis-0a1b2c")
    assert (row.status, row.reason, row.finished) == ("paused", "by night\N{REPLACEMENT CHARACTER}", None)
    store.set_status("sepsis-0a1b2c", "running")
    assert (store.run("sepsis-0a1b2c").status, store.run("sepsis-0a1b2c").reason) == ("running", "")


def test_the_first_end_of_a_run_counts(store: Store) -> None:
    add_run(store)
    store.finish("sepsis-0a1b2c", "completed", "", {"rounds": [1, 2]}, later(5))
    ended = store.run("sepsis-0a1b2c")
    assert (ended.status, ended.finished, ended.record) == ("completed", later(5), {"rounds": [1, 2]})
    store.finish("sepsis-0a1b2c", "failed", "again", {}, later(6))
    store.set_status("sepsis-0a1b2c", "running")
    assert store.run("sepsis-0a1b2c") == ended


def test_changing_a_run_that_is_not_there(store: Store) -> None:
    add_run(store)
    for change in (lambda: store.set_status("sepsis-0", "paused"), lambda: store.finish("sepsis-0", "failed", "", {}, NOW)):
        with pytest.raises(NotFound, match="no run 'sepsis-0'; did you mean 'sepsis-0a1b2c'"):
            change()
    assert store.run("sepsis-0a1b2c").status == "running"


# -------------------------------------------------------------------------------------------------------------- journal


def test_lines_are_numbered_from_one_in_each_run(store: Store) -> None:
    add_run(store, "one")
    add_run(store, "two")
    assert [store.append(run, "lost", {}, NOW) for run in ("one", "one", "two", "one")] == [1, 2, 1, 3]


def test_a_line_comes_back_as_it_was_written(store: Store) -> None:
    add_run(store)
    payload: dict[str, Any] = {"z": 1, "a": [0.1, -0.0, 1e-310], "text": 'ü \0 "', "none": None, "deep": {"b": True}}
    store.append("sepsis-0a1b2c", "answered", payload, NOW, "train/1/alpha")
    (line,) = store.journal("sepsis-0a1b2c")
    assert (line.run, line.seq, line.kind, line.at, line.unique_key) == ("sepsis-0a1b2c", 1, "answered", NOW, "train/1/alpha")
    assert line.payload == payload
    assert list(line.payload) == ["z", "a", "text", "none", "deep"], "the order of keys is kept"
    assert [struct.pack("<d", x) for x in line.payload["a"]] == [struct.pack("<d", x) for x in payload["a"]]


def test_a_line_may_hold_numbers_that_are_not_finite(store: Store) -> None:
    add_run(store)
    store.append("sepsis-0a1b2c", "closed", {"auc": math.nan, "loss": math.inf}, NOW)
    (line,) = store.journal("sepsis-0a1b2c")
    assert math.isnan(line.payload["auc"])
    assert line.payload["loss"] == math.inf


def test_events_of_a_run_survive_the_journal(store: Store) -> None:
    add_run(store)
    event = Answered("alpha", "0" * 64)
    kind, row = to_row(event)
    store.append("sepsis-0a1b2c", kind, row, NOW)
    (line,) = store.journal("sepsis-0a1b2c")
    assert from_row(line.kind, line.payload) == event
    assert not isinstance(from_row(line.kind, line.payload), Failed)


def test_a_unique_line_is_written_once_in_a_run(store: Store) -> None:
    add_run(store, "one")
    add_run(store, "two")
    assert store.append("one", "answered", {"n": 1}, NOW, "u") == 1
    assert store.append("one", "answered", {"n": 2}, NOW, "u") is None
    assert store.append("two", "answered", {"n": 3}, NOW, "u") == 1
    assert store.append("one", "lost", {}, NOW) == 2, "a refused line uses no number"
    assert [(line.seq, line.payload) for line in store.journal("one")] == [(1, {"n": 1}), (2, {})]


def test_a_journal_needs_its_run(store: Store) -> None:
    with pytest.raises(NotFound, match="no run 'ghost' to write a journal for"):
        store.append("ghost", "lost", {}, NOW)
    assert store.journal("ghost") == []


def test_a_journal_is_read_in_pages(store: Store) -> None:
    add_run(store)
    for number in range(1, 8):
        store.append("sepsis-0a1b2c", "lost", {"n": number}, NOW)
    pages = [store.journal("sepsis-0a1b2c", after, 3) for after in (0, 3, 6, 7)]
    assert [[line.seq for line in page] for page in pages] == [[1, 2, 3], [4, 5, 6], [7], []]
    assert [line.seq for line in store.journal("sepsis-0a1b2c", after=5)] == [6, 7]


def test_writers_in_many_threads_leave_no_gap(store: Store) -> None:
    runs = ("one", "two")
    for run in runs:
        add_run(store, run)

    def write(number: int) -> tuple[str, int | None]:
        return runs[number % 2], store.append(runs[number % 2], "lost", {"n": number}, NOW, f"u{number // 4}")

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(write, range(120)))
    for run in runs:
        written = sorted(number for name, number in numbers if name == run and number is not None)
        assert written == list(range(1, 31)), "two of each four share a run and a unique name"
        assert [line.seq for line in store.journal(run)] == written


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.none() | st.sampled_from("xyz")), max_size=12))
def test_the_journal_is_a_list_with_unique_names(store: Store, steps: list[tuple[bool, str | None]]) -> None:
    """Any sequence of lines, against the simplest thing that could be right."""
    pair = [add_run(store, f"run-{len(store.runs())}").id for _ in range(2)]
    expected: dict[str, list[str | None]] = {run: [] for run in pair}
    for which, unique in steps:
        lines = expected[pair[which]]
        taken = unique is not None and unique in lines
        assert store.append(pair[which], "lost", {}, NOW, unique) == (None if taken else len(lines) + 1)
        if not taken:
            lines.append(unique)
    for run in pair:
        assert [line.unique_key for line in store.journal(run)] == expected[run]


def test_a_line_is_there_after_its_writer_was_killed(store: Store, url: str, opened: Callable[[str], Store]) -> None:
    add_run(store, "crash")
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        promised = [int(next(writer.stdout)) for _ in range(20)]
        writer.kill()
        promised += [int(line) for line in writer.stdout.read().split()]
    found = [line.seq for line in opened(url).journal("crash")]
    assert found[: len(promised)] == promised == list(range(1, len(promised) + 1))
    assert len(found) - len(promised) <= 1, "at most the line that was not promised yet"


def test_everything_is_there_when_the_store_is_opened_again(store: Store, url: str, opened: Callable[[str], Store]) -> None:
    add_run(store)
    store.append("sepsis-0a1b2c", "lost", {"node": "alpha"}, NOW, "u")
    before = (store.run("sepsis-0a1b2c"), store.journal("sepsis-0a1b2c"), store.projects())
    store.close()
    again = opened(url)
    assert (again.run("sepsis-0a1b2c"), again.journal("sepsis-0a1b2c"), again.projects()) == before
    assert again.append("sepsis-0a1b2c", "lost", {}, NOW, "u") is None
    assert again.append("sepsis-0a1b2c", "lost", {}, NOW) == 2


# ---------------------------------------------------------------------------------------------------------- checkpoints


def commit(store: Store, seq: int, outcome: dict[str, Any] | None = None, model: str = "m", run: str = "sepsis-0a1b2c") -> None:
    store.checkpoint(run, seq, seq, "train", {"number": seq}, model, {"momentum": "s"}, outcome, later(seq))


def test_the_newest_checkpoint_is_the_one_that_counts(store: Store) -> None:
    add_run(store)
    assert store.last_checkpoint("sepsis-0a1b2c") is None
    for seq in (3, 12, 7):
        commit(store, seq, {"auc": 0.5})
    newest = store.last_checkpoint("sepsis-0a1b2c")
    assert newest is not None
    assert newest.model_dump() == {
        "run": "sepsis-0a1b2c",
        "seq": 12,
        "number": 12,
        "phase": "train",
        "facts": {"number": 12},
        "model": "m",
        "slots": {"momentum": "s"},
        "outcome": {"auc": 0.5},
        "at": later(12),
    }


def test_a_checkpoint_that_is_repeated_takes_its_own_place(store: Store) -> None:
    add_run(store)
    commit(store, 3, {"auc": 0.5}, "before the crash")
    commit(store, 3, {"auc": 0.5}, "after the crash")
    newest = store.last_checkpoint("sepsis-0a1b2c")
    assert newest is not None
    assert newest.model == "after the crash"
    assert store.outcomes("sepsis-0a1b2c") == [{"auc": 0.5}]


def test_outcomes_are_those_of_closed_rounds_in_order(store: Store) -> None:
    add_run(store)
    add_run(store, "other")
    commit(store, 9, {"n": 2})
    commit(store, 1)
    commit(store, 4, {"n": 1, "auc": math.nan})
    commit(store, 5, {"n": 7}, run="other")
    outcomes = store.outcomes("sepsis-0a1b2c")
    assert [outcome["n"] for outcome in outcomes] == [1, 2]
    assert math.isnan(outcomes[0]["auc"])
    assert store.outcomes("ghost") == []


def test_a_checkpoint_needs_its_run(store: Store) -> None:
    with pytest.raises(NotFound, match="no run 'ghost' to write a checkpoint for"):
        commit(store, 1, run="ghost")
