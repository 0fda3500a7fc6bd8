"""Led runs as a pure state: what a leader may ask, what nodes owe, and that the journal's order is all there is to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import Cause, Conflict, Failure
from fedscale.letters import Correspondence, Letter, Reply

NODES = ("ada", "bob")


def letter(node: str = "ada", number: int = 1, content: str = "c" * 64) -> Letter:
    return Letter(node, number, '{"id": "x"}', content, 8, 60.0, "train", number)


def opened(*letters: Letter) -> Correspondence:
    """A run to which these were posted."""
    run = Correspondence(members=NODES)
    for each in run.fresh(letters):
        run.post(each)
    return run


def test_a_letter_is_posted_once_however_often_it_is_sent() -> None:
    run = opened(letter(), letter())
    assert run.fresh([letter(), letter(number=2), letter(number=2)]) == [letter(number=2)]
    assert list(run.letters) == [("ada", 1)]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (letter(content="d" * 64), "letter 1 to 'ada' differs from the one in the journal"),
        (replace(letter(), envelope="{}"), "letter 1 to 'ada' differs from the one in the journal"),
        (replace(letter(), seconds=61.0), "letter 1 to 'ada' differs from the one in the journal"),
        (letter("eve"), "'eve' takes no part in this run"),
        (letter(number=3), "letter 3 to 'ada' comes before an earlier one"),
        (letter("bob", number=2), "letter 2 to 'bob' comes before an earlier one"),
    ],
)
def test_a_leader_that_asks_something_else_than_before_is_refused(asked: Letter, told: str) -> None:
    with pytest.raises(Conflict, match="^[^$]+$") as caught:
        opened(letter()).fresh([asked])
    assert told in str(caught.value)


def test_a_node_works_on_one_letter_at_a_time_in_their_order() -> None:
    run = opened(letter(), letter(number=2), letter("bob"))
    assert (run.due("ada"), run.due("bob"), run.due("eve")) == (letter(), letter("bob"), None)
    assert run.owes(("ada", 1))
    assert not run.owes(("ada", 2))
    run.settle(Reply(7, "ada", 1, "r" * 64))
    assert (run.due("ada"), run.owes(("ada", 1)), run.owes(("ada", 2))) == (letter(number=2), False, True)


def test_nothing_is_handed_out_while_a_run_is_paused_or_over() -> None:
    run = opened(letter())
    run.paused = True
    assert (run.due("ada"), run.owes(("ada", 1))) == (None, True), "whoever is at work may answer"
    run.paused, run.status = False, "stopped"
    assert not run.owes(("ada", 1))


def test_the_first_thing_that_becomes_of_a_letter_counts() -> None:
    run = opened(letter())
    run.settle(Reply(7, "ada", 1, failure=Failure(Cause.LOST, "gone")))
    run.settle(Reply(8, "ada", 1, "r" * 64))
    assert [(reply.sequence, reply.digest) for reply in run.after(0)] == [(7, "")]


def test_a_content_is_needed_until_its_last_letter_is_settled() -> None:
    run = opened(letter(), letter("bob"), letter(number=2, content="d" * 64))
    run.settle(Reply(1, "ada", 1, "r" * 64))
    assert (run.needs("c" * 64), run.needs("d" * 64)) == (True, True)
    run.settle(Reply(2, "bob", 1, "r" * 64))
    assert (run.needs("c" * 64), run.needs("d" * 64)) == (False, True)


def test_a_run_is_where_its_newest_letter_is() -> None:
    assert (Correspondence().phase, Correspondence().number) == ("init", 0)
    run = opened(letter(), replace(letter("bob"), phase="query", round=4))
    assert (run.phase, run.number) == ("query", 4)


@given(st.permutations([(node, number) for node in NODES for number in (1, 2, 3)]), st.integers(0, 7))
def test_replies_come_in_the_order_of_the_journal_from_anywhere_on(order: list[tuple[str, int]], after: int) -> None:
    run = opened(*(letter(node, number) for node in NODES for number in (1, 2, 3)))
    for sequence, (node, number) in enumerate(order, 1):
        run.settle(Reply(sequence, node, number, "r" * 64))
    assert [reply.place for reply in run.after(after)] == order[after:]
    assert all(run.due(node) is None for node in NODES)
