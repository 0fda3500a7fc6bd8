"""Whatever the order, the same bits; whatever happens, an end."""

from __future__ import annotations

import random

from tests.chaos import drill


def test_a_thousand_orders_of_arrival_give_the_same_bits() -> None:
    assert drill.any_order_gives_the_same_bits(1_000, random.Random())


def test_every_round_closes_however_late_its_timers_are() -> None:
    chance = random.Random()
    for _ in range(100):
        assert drill.every_round_closes(chance)


def test_lost_nodes_hold_up_a_round_no_longer_than_they_may() -> None:
    assert drill.lost_nodes_are_waited_for_no_longer_than_they_may()


def test_the_journal_and_the_checkpoints_give_the_same_state_after_every_event() -> None:
    assert drill.a_crash_forgets_nothing()
