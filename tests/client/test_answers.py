"""Answers that outlive the node: found again for exactly the task they answer, bounded, and never half of one."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.task import Task, layout_for
from fedscale.wire.convert import Key
from fedscale_client import answers as answers_module
from fedscale_client.answers import Answer, Answers, drop
from fedscale_client.connection import Assignment
from tests.client.coordinator import SCHEMA, digest, plan_text

BODY = b"words of an answer"


def assignment(number: int = 1, run: str = "run-1") -> Assignment:
    plan = Plan.from_toml(plan_text())
    task = Task("mercy", Phase.TRAIN, number, layout_for(plan, Phase.TRAIN, SCHEMA.size, 2), SCHEMA, "d" * 64)
    key: Key = (run, Phase.TRAIN, number)
    return Assignment(key, plan, plan_text(), task, 2, "b" * 64, 60.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "answers"


def finished(answers: Answers, asked: Assignment, body: bytes = BODY) -> Answer:
    answer = Answer(answers.place(asked.key), digest(body), len(body), "")
    answer.path.write_bytes(body)
    answers.finish(asked, answer)
    return answer


def names(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_an_answer_is_found_by_the_next_life(folder: Path) -> None:
    answer = finished(Answers(folder, 1000), assignment())
    again = Answers(folder, 1000)
    assert again.found(assignment(), again.place(assignment().key)) == answer
    assert answer.path.read_bytes() == BODY
    assert all(path.stat().st_mode & 0o077 == 0 or folder.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        lambda asked: replace(asked, bundle="c" * 64),
        lambda asked: replace(asked, terms=3),
        lambda asked: replace(asked, plan_toml=asked.plan_toml + "\n"),
        lambda asked: replace(asked, task=replace(asked.task, model="e" * 64)),
    ],
    ids=["app", "terms", "plan", "model"],
)
def test_another_task_under_the_same_key_is_not_answered_by_it(folder: Path, other: object) -> None:
    assert callable(other)
    answers = Answers(folder, 1000)
    answer = finished(answers, assignment())
    assert answers.found(other(assignment()), answer.path) is None


@pytest.mark.parametrize("facts", ["", "[]", "null", '{"task": 1}', '{"digest": "d", "size": "18", "schema": "", "task": "x"}'])
def test_facts_that_make_no_sense_are_no_answer(folder: Path, facts: str) -> None:
    answers = Answers(folder, 1000)
    answer = finished(answers, assignment())
    answer.path.with_suffix(".json").write_text(facts)
    assert answers.found(assignment(), answer.path) is None


def test_an_answer_of_another_size_than_noted_is_none(folder: Path) -> None:
    answers = Answers(folder, 1000)
    answer = finished(answers, assignment())
    answer.path.write_bytes(BODY[:-1])
    assert answers.found(assignment(), answer.path) is None
    facts = json.loads(answer.path.with_suffix(".json").read_text())
    assert facts["size"] == len(BODY)


def test_an_answer_that_cannot_be_read_at_the_moment_is_not_taken_for_none(folder: Path) -> None:
    """Another one would cost the site's privacy again."""
    answers, (soft, hard) = Answers(folder, 1000), resource.getrlimit(resource.RLIMIT_NOFILE)
    answer = finished(answers, assignment())
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            answers.found(assignment(), answer.path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers.found(assignment(), answer.path) == answer


def test_what_was_never_finished_does_not_outlive_the_node(folder: Path) -> None:
    answers = Answers(folder, 1000)
    kept = finished(answers, assignment(run="run-2"))
    answers.place(assignment().key).write_bytes(b"torn")
    (folder / "orphan.json").write_text("{}")
    (folder / ".draft-1").write_text("{}")
    Answers(folder, 1000)
    assert sorted(folder.iterdir()) == sorted([kept.path, kept.path.with_suffix(".json")])


def test_the_next_task_of_a_run_drops_what_lies_idle_of_it_and_nothing_else(folder: Path) -> None:
    answers = Answers(folder, 1000)
    idle, under_way, other = (finished(answers, assignment(number, run)) for number, run in ((1, "a"), (2, "a"), (1, "b")))
    answers.keep(idle)
    answers.keep(other)
    answers.settle(idle)
    assert idle.path.exists()
    answers.place(assignment(3, "a").key)
    assert [answer.path.exists() for answer in (idle, under_way, other)] == [False, True, True]
    answers.settle(under_way)
    assert names(folder) == 2


def test_an_answer_that_is_asked_for_again_is_not_idle_any_more(folder: Path) -> None:
    answers = Answers(folder, 1000)
    answer = finished(answers, assignment())
    answers.keep(answer)
    assert answers.found(assignment(), answers.place(assignment().key)) == answer
    answers.settle(answer)
    assert names(folder) == 0


def test_idle_answers_are_bounded_in_bytes_and_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(folder, 3 * len(BODY))
    for number in range(5):
        answer = finished(answers, assignment(1, f"run-{number}"))
        os.utime(answer.path, (number, number))
        answers.keep(answer)
    assert names(folder) == 6
    monkeypatch.setattr(answers_module, "MOST_IDLE", 2)
    again = Answers(folder, 1000)
    assert names(folder) == 4
    assert again.found(assignment(1, "run-4"), again.place(("run-4", Phase.TRAIN, 1))) is not None


def test_dropping_twice_is_fine(folder: Path) -> None:
    answer = finished(Answers(folder, 1000), assignment())
    for _ in range(2):
        drop(answer.path)
        answer.forget()
    assert names(folder) == 0
