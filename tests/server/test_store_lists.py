"""Lists of runs, which read neither records nor journals, however long those are; on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm.exc import DetachedInstanceError

from fedscale.errors import NotFound
from fedscale_server.store.store import Store
from tests.server.samples import add_run, later

RECORD = {"rounds": [1, 2], "reason": "héart \N{SNOWMAN}"}


def _closed(store: Store, run: str, *phases: tuple[int, str]) -> None:
    """Checkpoints of a run behind as many lines of its journal."""
    for seq, (number, phase) in enumerate(phases, 1):
        store.append(run, "answered", {"phase": phase, "number": number}, later(seq))
        store.checkpoint(run, seq, number, phase, {}, "m", {}, None, later(seq))


def test_a_run_without_its_record_is_the_same_in_all_else(store: Store) -> None:
    add_run(store)
    store.finish("sepsis-0a1b2c", "completed", "", RECORD, later(5))
    whole = store.run("sepsis-0a1b2c").model_dump(exclude={"record"})
    for row in (store.run("sepsis-0a1b2c", record=False), store.run("seps", record=False), *store.runs(), *store.runs("ward")):
        assert {name: getattr(row, name) for name in whole} == whole
        with pytest.raises(DetachedInstanceError):
            _ = row.record
    with pytest.raises(NotFound):
        store.run("lungs", record=False)


def test_a_list_of_runs_asks_for_no_record(store: Store) -> None:
    asked: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: asked.append(statement))
    add_run(store)
    store.finish("sepsis-0a1b2c", "completed", "", RECORD, later(5))
    asked.clear()
    store.runs()
    store.ends()
    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 2
    assert [statement for statement in asked if "record" in statement] == []


def test_a_record_is_the_text_that_was_stored(store: Store) -> None:
    add_run(store)
    assert store.record("sepsis-0a1b2c") == store.record("nowhere") == ""
    store.finish("sepsis-0a1b2c", "completed", "", RECORD, later(5))
    assert json.loads(store.record("sepsis-0a1b2c")) == RECORD


@pytest.mark.parametrize(
    ("phases", "end"),
    [
        ([(0, "init"), (1, "train"), (1, "evaluate"), (2, "train")], ("train", 2)),
        ([(0, "init"), (10, "evaluate")], ("evaluate", 10)),
        ([(0, "init")], None),
        ([], None),
    ],
)
def test_a_run_ended_at_the_last_round_that_was_closed(store: Store, phases: list[tuple[int, str]], end: Any) -> None:
    for run in ("one", "two"):
        add_run(store, run, key=run)
        _closed(store, run, *phases)
    assert store.ends() == {}, "none has"
    store.append("one", "note.finished", {"phase": "train", "number": 0}, later(8))
    store.finish("one", "stopped", "", {}, later(9))
    assert store.ends() == store.ends("ward") == store.ends(run="one") == ({"one": end} if end else {})
    assert store.ends("lungs") == store.ends(run="two") == {}


def test_a_led_run_has_no_checkpoints_and_ended_where_its_journal_says(store: Store) -> None:
    add_run(store)
    for number in (1, 2, 3):
        store.append("sepsis-0a1b2c", "posted", {"phase": "query", "number": number}, later(number))
    store.finish("sepsis-0a1b2c", "completed", "", {}, later(9))
    assert store.ends() == {"sepsis-0a1b2c": ("query", 3)}
