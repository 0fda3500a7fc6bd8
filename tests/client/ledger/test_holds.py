"""Room that a run keeps under a cap from its admission to its end: what was let in may go on, whoever else comes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from fedscale.clock import ManualClock
from fedscale.errors import ConfigError, PolicyRefusal
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend, repeated
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap, Claim
from fedscale_client.ledger.lines import Kind
from fedscale_client.ledger.state import holds, spends_of
from tests.client.ledger.samples import DELTA, SPEND, claim, opened_database, parcel

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOURS = 24


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def ledger(site: NodeHome, clock: ManualClock) -> Ledger:
    return Ledger.open(site, clock.now)


def cap_for(answers: int) -> Cap:
    """A cap under which so many answers fit, and no more."""
    return Cap(epsilon(repeated(SPEND, answers), DELTA), DELTA, "record")


def task(run: str, number: int, rounds: int, **changes: Any) -> Claim:
    left = rounds - number + 1
    return claim(number, run=run, answers=left, until=(START + timedelta(hours=HOURS)).isoformat(), **changes)


def ask(ledger: Ledger, run: str, number: int, rounds: int, cap: Cap | None, **changes: Any) -> int:
    """A task of a run as the gate asks for it, with all that comes after it."""
    asked = task(run, number, rounds, **changes)
    return ledger.reserve(asked, cap, "", tuple(more for spend in asked.spends or () for more in repeated(spend, rounds - number + 1)))


def kept(ledger: Ledger) -> dict[str, int]:
    return {hold.run: hold.answers for hold in ledger.holds()}


def test_two_runs_that_fit_one_by_one_and_not_together_are_not_both_let_in(ledger: Ledger) -> None:
    """The second is refused before anything of it counts, and the first comes to its end."""
    cap = cap_for(7)
    ask(ledger, "one", 1, 4, cap)
    for asked in (task("two", 1, 4), claim(0, run="two", phase="init", spends=())):
        with pytest.raises(PolicyRefusal, match="before its end") as raised:
            ledger.reserve(asked, cap, "", repeated(SPEND, 4))
        assert "is left beside what runs under way may yet spend, and all rounds of the run need" in raised.value.why
        assert raised.value.hint.startswith("try again when other runs are over, lower privacy.epsilon")
    for number in (2, 3, 4):
        ask(ledger, "one", number, 4, cap)
    assert {item.claim.run for item in ledger.items()} == {"one"}
    assert kept(ledger) == {}
    ask(ledger, "two", 2, 4, cap)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_let_in_comes_to_its_end(site: NodeHome, clock: ManualClock, seed: int) -> None:
    """Runs of all sizes whose tasks come in any order: none that began is refused, and no two ledgers open at once see different room."""
    random, cap = Random(seed), cap_for(20)
    ledgers = [Ledger.open(site, clock.now) for _ in range(2)]
    runs = {f"run-{number}": [1, random.randrange(1, 9)] for number in range(8)}
    refused = set()
    while runs:
        run = random.choice(sorted(runs))
        number, rounds = runs[run]
        try:
            ask(random.choice(ledgers), run, number, rounds, cap)
        except PolicyRefusal:
            assert number == 1
            refused.add(run)
            del runs[run]
        else:
            runs[run][0] += 1
            if number == rounds:
                del runs[run]
    assert refused
    assert epsilon(spends_of(ledgers[0].items()), DELTA) <= cap.epsilon
    assert kept(ledgers[1]) == {}


def test_room_is_kept_where_there_is_no_cap_yet(ledger: Ledger) -> None:
    """The owner may set one while a run goes on."""
    ask(ledger, "one", 1, 4, None)
    with pytest.raises(PolicyRefusal, match="before its end"):
        ask(ledger, "two", 1, 2, cap_for(5))
    ask(ledger, "two", 1, 2, cap_for(6))


def test_a_round_that_is_repeated_takes_its_runs_own_room_and_nobody_elses(ledger: Ledger) -> None:
    cap = cap_for(6)
    ask(ledger, "one", 1, 3, cap)
    ask(ledger, "two", 1, 3, cap)
    for number in (1, 2):
        ask(ledger, "one", number, 3, cap)
    with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
        ask(ledger, "one", 3, 3, cap)
    for number in (2, 3):
        ask(ledger, "two", number, 3, cap)


def test_under_a_lowered_cap_runs_go_on_until_it_is_reached(ledger: Ledger) -> None:
    """Neither is held up by room that the other one keeps and that is not there any more."""
    for run in ("one", "two"):
        ask(ledger, run, 1, 4, cap_for(8))
    lower = cap_for(4)
    for run in ("one", "two"):
        ask(ledger, run, 2, 4, lower)
    for run in ("one", "two"):
        with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
            ask(ledger, run, 3, 4, lower)


def test_a_task_of_which_nothing_left_gives_its_turn_back_and_the_run_keeps_its_room(ledger: Ledger) -> None:
    cap = cap_for(3)
    ledger.refund(ask(ledger, "one", 1, 3, cap), "nothing left this site")
    assert kept(ledger) == {"one": 3}
    with pytest.raises(PolicyRefusal, match="before its end"):
        ask(ledger, "two", 1, 1, cap)
    for number in (1, 2, 3):
        ask(ledger, "one", number, 3, cap)
    assert [item.claim.answers for item in ledger.items()] == [3, 0, 0, 0]


def test_room_that_was_let_go_of_is_anybodys(site: NodeHome, ledger: Ledger) -> None:
    cap = cap_for(6)
    first = ask(ledger, "one", 1, 4, cap)
    hold = Ledger.open(site, lambda: START).free("one", "the run is over")
    assert hold is not None
    assert (hold.item.seq, hold.answers, hold.spends) == (first, 3, repeated(SPEND, 3))
    assert (ledger.free("one", "again"), ledger.free("two", "never was"), kept(ledger)) == (None, None, {})
    ask(ledger, "two", 1, 5, cap)
    assert [(entry.kind, entry.reservation) for entry in ledger.entries()] == [("reserve", 1), ("free", 1), ("reserve", 3)]
    assert ledger.verify() == ""
    assert [item.seq for item in reading.items(site)] == [1, 3]
    with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
        ask(ledger, "one", 2, 4, cap)


def test_a_run_whose_room_was_let_go_of_before_it_cost_anything_is_asked_for_all_of_it_again(ledger: Ledger) -> None:
    cap = cap_for(4)
    ledger.refund(ask(ledger, "one", 1, 4, cap), "nothing left this site")
    assert ledger.free("one", "let go by the site's owner")
    ask(ledger, "two", 1, 2, cap)
    with pytest.raises(PolicyRefusal, match="before its end"):
        ask(ledger, "one", 2, 4, cap)
    ask(ledger, "one", 3, 4, cap)
    assert kept(ledger) == {"two": 1, "one": 1}


def test_room_is_anybodys_when_its_time_is_over_and_the_run_goes_on_in_what_is_left(ledger: Ledger, clock: ManualClock) -> None:
    cap = cap_for(6)
    ask(ledger, "one", 1, 4, cap)
    clock.advance(HOURS * 3600 - 1)
    with pytest.raises(PolicyRefusal, match="before its end"):
        ask(ledger, "two", 1, 3, cap)
    clock.advance(1)
    assert kept(ledger) == {}
    ledger.reserve(replace(task("two", 1, 3), until=(START + timedelta(days=9)).isoformat()), cap, "", repeated(SPEND, 3))
    for number in (2, 3):
        ask(ledger, "one", number, 4, cap)
    with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
        ask(ledger, "one", 4, 4, cap)
    assert kept(ledger) == {"two": 2}


@pytest.mark.parametrize("seconds", [-(10**8), 10**8])
def test_a_clock_that_jumps_and_comes_back_never_lets_the_cap_be_passed(ledger: Ledger, clock: ManualClock, seconds: float) -> None:
    """At worst one of two runs that were let in ends early: room is kept beside the cap, and never instead of it."""
    cap = cap_for(6)
    ask(ledger, "one", 1, 4, cap)
    clock.advance(seconds)
    if seconds > 0:
        ask(ledger, "two", 1, 4, cap)
    else:
        with pytest.raises(PolicyRefusal, match="before its end"):
            ask(ledger, "two", 1, 4, cap)
    clock.advance(-seconds)
    for run in ("one", "two"):
        for number in (2, 3, 4):
            try:
                ask(ledger, run, number, 4, cap)
            except PolicyRefusal:
                break
    assert epsilon(spends_of(ledger.items()), DELTA) <= cap.epsilon
    assert sum(item.claim.run == "one" for item in ledger.items()) == 4


def test_room_is_for_the_people_whose_data_it_is_by_whatever_name(ledger: Ledger) -> None:
    cap = cap_for(3)
    ask(ledger, "one", 1, 3, cap)
    with pytest.raises(PolicyRefusal):
        ask(ledger, "two", 1, 3, cap, dataset="alias", population="alias")
    ask(ledger, "two", 1, 3, cap, dataset="others", population="others", data="0" * 64)
    ask(ledger, "three", 1, 3, Cap(cap.epsilon, DELTA, "patient"), unit="patient")
    assert kept(ledger) == {"one": 2, "two": 2, "three": 2}


def test_a_tree_of_noise_takes_one_answer_of_the_room(ledger: Ledger) -> None:
    tree = Spend("tree_aggregation", 3.0, 1.0, 4)
    asked = claim(1, spends=(tree,), unit="node", answers=3, until=(START + timedelta(hours=HOURS)).isoformat())
    ledger.reserve(asked, None, "", repeated(tree, 3))
    (hold,) = ledger.holds()
    assert hold.spends == (tree, tree)


@pytest.mark.parametrize("before", ["nothing", "a task that keeps no room", "let go of already"])
def test_only_what_keeps_room_can_be_let_go_of(ledger: Ledger, before: str) -> None:
    if before != "nothing":
        ledger.reserve(claim(1) if "no room" in before else task("one", 1, 3), None)
    if before == "let go of already":
        ledger.free("one", "the run is over")
    with pytest.raises(ConfigError, match="cannot take this step"):
        ledger._add(lambda _: (Kind.FREE, 1, {"reason": "again"}))
    assert ledger.verify() == ""


def test_a_line_that_lets_go_cannot_be_taken_out_or_put_in(site: NodeHome, ledger: Ledger) -> None:
    ask(ledger, "one", 1, 3, None)
    ledger.free("one", "the run is over")
    with opened_database(site) as connection:
        connection.execute("UPDATE entry SET reservation = 2 WHERE kind = 'free'")
    assert Ledger.open(site).verify() == "entry 2 was edited"


def test_a_ledger_of_an_earlier_release_keeps_no_room_and_goes_on(site: NodeHome, ledger: Ledger) -> None:
    """Its claims say nothing of answers to come."""
    told = {name: value for name, value in claim(1).to_json().items() if name not in ("answers", "until")}
    assert Claim.from_json(told) == claim(1)
    ledger._add(lambda _: (Kind.RESERVE, 0, told))
    ledger.release(1, parcel("a"))
    assert holds(reading.items(site), START) == ()
    ask(Ledger.open(site, lambda: START), "run-1", 2, 4, cap_for(2))
