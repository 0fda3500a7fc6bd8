"""Which round a message belongs to, whatever an app says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fedscale.flower import touches
from fedscale.flower.rounds import Rounds

pytestmark = pytest.mark.requires("flower")


def counted(messages: Any, asked: Sequence[tuple[str, str, str]]) -> list[int]:
    """The rounds of messages of these kinds, to these nodes, in these groups."""
    touches.identify(1)
    rounds = Rounds()
    return [rounds.of(node, messages.Message(messages.RecordDict(), 2, kind, group_id=group))[1] for kind, node, group in asked]


@pytest.mark.parametrize(
    ("asked", "rounds"),
    [
        # An app that says so, and one that counts from zero.
        ([("train", "a", "1"), ("train", "b", "1"), ("evaluate", "a", "1"), ("train", "a", "2")], [1, 1, 1, 2]),
        ([("train", "a", "0"), ("train", "b", "0"), ("query", "a", "0"), ("train", "a", "1"), ("evaluate", "a", "1")], [1, 1, 1, 2, 2]),
        # One that evaluates what it begins with, and then counts as Flower's strategies do.
        ([("evaluate", "a", "0"), ("train", "a", "1"), ("evaluate", "a", "1"), ("train", "a", "2")], [1, 1, 1, 2]),
        ([("evaluate", "a", "0"), ("train", "a", "0"), ("evaluate", "a", "1"), ("train", "a", "1")], [1, 1, 2, 2]),
        ([("evaluate", "a", "0"), ("evaluate", "a", "1"), ("evaluate", "a", "2")], [1, 2, 3]),
        # A legacy server asks for the first parameters in group 0; its rounds begin with 1.
        ([("get_parameters", "a", "0"), ("train", "a", "1"), ("train", "b", "1")], [1, 1, 1]),
        # An app that does not say, or says what is no round.
        ([("train", "a", ""), ("train", "b", ""), ("evaluate", "a", ""), ("evaluate", "b", ""), ("train", "b", "")], [1, 1, 1, 1, 2]),
        ([("train", "a", "1763676000"), ("train", "a", "1763676001"), ("train", "a", "third")], [1, 2, 3]),
        ([("train", "a", "0"), ("train", "a", "1000000")], [1, 2]),
        ([("train.grow", "a", ""), ("train.prune", "a", ""), ("train.grow", "b", "")], [1, 2, 2]),
        # Queries count for themselves: neither those before the first round nor those between begin one.
        ([("query", "a", ""), ("train", "a", ""), ("query.x", "a", ""), ("query", "a", ""), ("train", "b", "")], [1, 1, 2, 3, 1]),
    ],
)
def test_the_round_of_a_message(messages: Any, asked: list[tuple[str, str, str]], rounds: list[int]) -> None:
    assert counted(messages, asked) == rounds
