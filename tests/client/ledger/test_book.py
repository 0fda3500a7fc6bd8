"""The ledger's three steps, its cap, and what it says afterwards."""

from __future__ import annotations

import json
import math
import sqlite3
import stat
from pathlib import Path

import pytest

from fedscale.errors import ConfigError, PolicyRefusal
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend, repeated
from fedscale_client.home import NodeHome
from fedscale_client.ledger import admission
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap, Claim
from fedscale_client.ledger.head import Head
from fedscale_client.ledger.state import spends_of
from tests.client.ledger.samples import CLAIM, DELTA, SPEND, WIDE, claim, finish, opened_database, parcel


def standings(ledger: Ledger) -> list[str]:
    return [item.standing for item in ledger.items()]


# ---------------------------------------------------------------------------------------------------------- three steps


def test_a_new_ledger_says_nothing_and_verifies(ledger: Ledger) -> None:
    assert (ledger.items(), ledger.entries(), ledger.verify(), ledger.head().seq) == ((), (), "", 0)


def test_an_answer_goes_through_three_steps(ledger: Ledger) -> None:
    reservation = ledger.reserve(CLAIM, WIDE)
    assert standings(ledger) == ["reserved"]
    assert ledger.release(reservation, parcel("a")) == reservation
    assert standings(ledger) == ["released"]
    ledger.commit(reservation, "accepted", "in time")
    (item,) = ledger.items()
    assert (item.claim, item.standing) == (CLAIM, "committed")
    assert item.release is not None
    assert item.commit is not None
    assert (item.release["size"], item.release["parts"], item.commit["verdict"], item.commit["reason"]) == (8, [["w", [2]]], "accepted", "in time")
    assert [entry.kind for entry in ledger.entries()] == ["reserve", "release", "commit"]
    assert ledger.head() == Head(3, ledger.entries()[-1].digest)


def test_what_counts_is_everything_that_was_not_given_back(ledger: Ledger) -> None:
    reserved, released, refunded = (ledger.reserve(claim(number), None) for number in range(3))
    ledger.release(released, parcel("a"))
    ledger.refund(refunded, "the task never reached a worker")
    finish(ledger, 4)
    counted = [item for item in ledger.items() if item.refund is None]
    assert [item.standing for item in counted] == ["reserved", "released", "committed"]
    assert reserved == counted[0].seq


def steps_of(ledger: Ledger, reservation: int, steps: str) -> None:
    """Take some steps, each by its initial."""
    for step in steps:
        match step:
            case "r":
                ledger.release(reservation, parcel(str(reservation)))
            case "c":
                ledger.commit(reservation, "accepted")
            case "b":
                ledger.refund(reservation, "given back")


@pytest.mark.parametrize(("before", "last"), [("r", "b"), ("rc", "b"), ("b", "r"), ("b", "b")])
def test_no_step_can_undo_another(ledger: Ledger, before: str, last: str) -> None:
    reservation = ledger.reserve(CLAIM, None)
    steps_of(ledger, reservation, before)
    standing = standings(ledger)
    with pytest.raises(ConfigError, match="cannot take this step"):
        steps_of(ledger, reservation, last)
    assert standings(ledger) == standing
    assert ledger.verify() == ""


@pytest.mark.parametrize("before", ["", "b", "rc"])
def test_a_receipt_for_what_is_not_on_its_way_changes_nothing(ledger: Ledger, before: str) -> None:
    reservation = ledger.reserve(CLAIM, None)
    steps_of(ledger, reservation, before)
    head = ledger.head()
    ledger.commit(reservation, "closed")
    assert ledger.head() == head


def test_a_refund_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="cannot take this step") as raised:
        ledger.refund(7, "no such reservation")
    assert raised.value.why == "entry 1: no refund of what is unknown"


def test_the_same_bytes_count_once(ledger: Ledger) -> None:
    first = finish(ledger, 1)
    again = ledger.reserve(CLAIM, None)
    assert ledger.release(again, parcel("1")) == first
    ledger.commit(first, "duplicate")
    assert standings(ledger) == ["committed", "refunded"]


@pytest.mark.parametrize(("changes", "content"), [({}, "2"), ({"number": 2}, "1"), ({"run": "run-2"}, "1"), ({"phase": "evaluate"}, "1")])
def test_other_bytes_or_another_task_count_again(ledger: Ledger, changes: dict[str, object], content: str) -> None:
    finish(ledger, 1)
    again = ledger.reserve(claim(**{"number": 1, **changes}), None)  # type: ignore[arg-type]
    assert ledger.release(again, parcel(content)) == again
    assert standings(ledger) == ["committed", "released"]


def test_a_task_asked_again_before_anything_left_counts_twice(ledger: Ledger) -> None:
    ledger.reserve(CLAIM, None)
    ledger.reserve(CLAIM, None)
    assert len(spends_of(ledger.items())) == 2


# --------------------------------------------------------------------------------------------------------------- the cap


def fitting(cap: Cap, spend: Spend) -> int:
    """How many such spends fit under a cap, found by trying."""
    return next(n for n in range(1000) if epsilon([spend] * (n + 1), cap.delta) > cap.epsilon)


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.0])
def test_the_cap_admits_exactly_what_fits(ledger: Ledger, limit: float) -> None:
    cap = Cap(limit, DELTA, "record")
    fits = fitting(cap, SPEND)
    for number in range(fits):
        ledger.reserve(claim(number), cap)
    for _ in range(2):
        with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
            ledger.reserve(claim(fits), cap)
    assert len(ledger.items()) == fits


def test_the_cap_holds_over_runs_coordinators_apps_and_phases(ledger: Ledger) -> None:
    cap = Cap(2.0, DELTA, "record")
    for number in range(fitting(cap, SPEND)):
        ledger.reserve(
            claim(number, run=f"run-{number}", coordinator=f"land {number}", app=str(number), phase=("train", "evaluate")[number % 2]), cap
        )
    for changes in ({"run": "new"}, {"coordinator": "new"}, {"app": "0" * 64}, {"plan": "0" * 64}, {"delta": 0.1}, {"dataset": "alias"}):
        with pytest.raises(PolicyRefusal):
            ledger.reserve(claim(1, **changes), cap)


def test_the_same_data_under_another_name_share_the_budget(ledger: Ledger) -> None:
    cap = Cap(epsilon([SPEND], DELTA), DELTA, "record")
    ledger.reserve(CLAIM, cap)
    with pytest.raises(PolicyRefusal):
        ledger.reserve(claim(2, dataset="other", population="other"), cap)
    ledger.reserve(claim(2, dataset="other", population="other", data="0" * 64), cap)


def test_a_new_name_takes_over_everything_the_old_one_has_spent(ledger: Ledger) -> None:
    cap = Cap(epsilon([SPEND] * 2, DELTA), DELTA, "record")
    ledger.reserve(claim(1, data="1" * 64), cap)
    ledger.reserve(claim(2, data="2" * 64), cap)
    with pytest.raises(PolicyRefusal):
        ledger.reserve(claim(3, population="alias", data="2" * 64), cap)


def test_data_that_were_not_looked_at_are_not_taken_for_the_same(ledger: Ledger) -> None:
    cap = Cap(epsilon([SPEND], DELTA), DELTA, "record")
    ledger.reserve(claim(1, data=""), cap)
    ledger.reserve(claim(2, data="", population="other"), cap)
    assert len(ledger.items()) == 2


def test_what_was_given_back_may_be_spent_again(ledger: Ledger) -> None:
    cap = Cap(epsilon([SPEND], DELTA), DELTA, "record")
    ledger.refund(ledger.reserve(CLAIM, cap), "the task never reached a worker")
    ledger.reserve(claim(2), cap)
    with pytest.raises(PolicyRefusal):
        ledger.reserve(claim(3), cap)


def test_what_tells_nothing_of_the_data_fits_even_when_all_is_spent(ledger: Ledger) -> None:
    cap = Cap(0.001, DELTA, "record")
    ledger.reserve(claim(1, spends=()), cap)
    assert standings(ledger) == ["reserved"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"spends": None, "unit": ""}, "this site answers with differential privacy only"),
        ({"unit": "node"}, "this site does not count its privacy by the node"),
        ({"spends": (Spend("gaussian", 0.001),)}, "the privacy cap of this site would be passed"),
    ],
)
def test_under_a_cap_nothing_goes_uncounted(ledger: Ledger, changes: dict[str, object], what: str) -> None:
    with pytest.raises(PolicyRefusal) as raised:
        ledger.reserve(claim(1, **changes), WIDE)
    assert raised.value.what == what
    assert ledger.entries() == ()


def test_a_run_begins_only_where_all_of_it_fits(ledger: Ledger) -> None:
    whole = repeated(SPEND, 5)
    cap = Cap(epsilon(whole, DELTA), DELTA, "record")
    for number in range(1, 6):
        ledger.reserve(claim(number), cap, "", repeated(SPEND, 6 - number))
    wide = Cap(epsilon(repeated(SPEND, 9), DELTA), DELTA, "record")
    left = math.floor(100 * (wide.epsilon - cap.epsilon)) / 100
    for spends in ((SPEND,), ()):
        with pytest.raises(PolicyRefusal, match="before its end") as raised:
            ledger.reserve(claim(1, run="run-2", spends=spends), wide, "", whole)
        assert f"of which {left:g} is left, and all rounds of the run need {cap.epsilon:.3g}" in raised.value.why
        assert raised.value.hint.endswith(f"datasets.heart.epsilon={math.ceil(100 * epsilon(repeated(SPEND, 10), DELTA)) / 100:g}")
    ledger.reserve(claim(1, run="run-2"), wide, "", repeated(SPEND, 4))
    assert len(ledger.items()) == 6


def test_a_run_that_has_begun_is_held_to_the_cap_task_by_task(ledger: Ledger) -> None:
    """A round that was lost and is asked for again takes the room of the last one, and not of all."""
    whole = repeated(SPEND, 3)
    cap = Cap(epsilon(whole, DELTA), DELTA, "record")
    for number in (1, 1, 2):
        ledger.reserve(claim(number), cap, "", repeated(SPEND, 4 - number))
    with pytest.raises(PolicyRefusal, match="the privacy cap of this site would be passed"):
        ledger.reserve(claim(3), cap, "", (SPEND,))


def test_a_run_begins_anew_where_all_that_was_set_aside_was_given_back(ledger: Ledger) -> None:
    cap = Cap(epsilon(repeated(SPEND, 3), DELTA), DELTA, "record")
    ledger.refund(ledger.reserve(CLAIM, cap, "", repeated(SPEND, 3)), "nothing left this site")
    with pytest.raises(PolicyRefusal, match="before its end"):
        ledger.reserve(claim(2), cap, "", repeated(SPEND, 4))


def test_a_run_without_a_finite_cost_is_refused_without_a_number_to_allow(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "epsilon", lambda spends, _: math.inf if spends else 0.0)
    with pytest.raises(PolicyRefusal) as raised:
        ledger.reserve(CLAIM, Cap(4.0, DELTA, "record"), "", (SPEND,))
    assert raised.value.hint == "lower privacy.epsilon or leave this site out, or its owner allows more"


def test_a_refusal_names_cap_and_need_and_nobody_elses_spending(ledger: Ledger) -> None:
    cap = Cap(2.0, DELTA, "record")
    alone = epsilon([SPEND], DELTA)
    told = set()
    for others in (4, 1):
        for number in range(others):
            ledger.reserve(claim(number, run=f"secret-{number}"), None)
        with pytest.raises(PolicyRefusal) as raised:
            ledger.reserve(claim(9), cap)
        told.add(str(raised.value))
    (text,) = told
    assert f"the cap is epsilon 2 at delta 1e-05 for each record, this task alone needs {alone:.3g}" in text
    assert "secret" not in text


# ------------------------------------------------------------------------------------------------------------ afterwards


def test_a_ledger_goes_on_where_it_was(site: NodeHome) -> None:
    cap = Cap(epsilon([SPEND] * 3, DELTA), DELTA, "record")
    for number in range(3):
        again = Ledger.open(site)
        reservation = again.reserve(claim(number), cap)
        if number:
            again.release(reservation, parcel(str(number)))
    with pytest.raises(PolicyRefusal):
        Ledger.open(site).reserve(claim(4), cap)
    assert Ledger.open(site).verify() == ""


def test_two_open_ledgers_see_each_other(site: NodeHome) -> None:
    one, two = Ledger.open(site), Ledger.open(site)
    reservation = one.reserve(CLAIM, None)
    two.release(reservation, parcel("a"))
    one.commit(reservation, "accepted")
    assert standings(two) == standings(one) == ["committed"]


@pytest.mark.parametrize(
    "spends",
    [
        (Spend("gaussian", 3.0, 1.0, 7),),
        (Spend("poisson_subsampled_gaussian", 1.1, 0.02, 400),),
        (Spend("poisson_subsampled_gaussian", 0.9, 0.05, 60), Spend("gaussian", 8.0), Spend("laplace", 5.0)),
    ],
)
def test_its_epsilon_is_what_anybody_computes_from_its_export(ledger: Ledger, spends: tuple[Spend, ...]) -> None:
    """The oracle is dp-accounting's own PLD accountant, fed with nothing but the JSON of the entries."""
    from dp_accounting import dp_event, pld

    for number, spend in enumerate(spends):
        finish(ledger, number, spends=(spend,))
    oracle = pld.PLDAccountant(value_discretization_interval=1e-4)
    for entry in ledger.entries():
        for told in json.loads(entry.facts).get("spends") or ():
            noise, rate, steps = told["noise_multiplier"], told["sampling_rate"], told["steps"]
            inner = dp_event.LaplaceDpEvent(noise) if told["mechanism"] == "laplace" else dp_event.GaussianDpEvent(noise)
            oracle.compose(inner if rate == 1 else dp_event.PoissonSampledDpEvent(rate, inner), steps)
    assert math.isclose(epsilon(spends_of(ledger.items()), DELTA), oracle.get_epsilon(DELTA), abs_tol=1e-6)


def test_the_files_are_the_owners_alone(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    files = [path for path in [site.ledger, *site.ledger.iterdir(), *site.path.glob("ledger.head*")] if path.exists()]
    assert {path.name for path in files} >= {"ledger", "ledger.db", "ledger.head"}
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}


def test_the_database_itself_refuses_to_be_changed(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    with sqlite3.connect(site.ledger / "ledger.db") as connection:
        for change in ("UPDATE entry SET facts = '{}'", "DELETE FROM entry"):
            with pytest.raises(sqlite3.IntegrityError, match="only ever added to"):
                connection.execute(change)
    connection.close()
    assert ledger.verify() == ""


def test_a_disk_that_refuses_leaves_no_half_entry(site: NodeHome, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedscale_client.ledger.head.files.write", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.reserve(CLAIM, None)
    assert standings(ledger) == ["reserved"]
    finish(ledger, 2)
    assert Ledger.open(site).verify() == ""


def test_a_busy_ledger_is_waited_for_no_longer_than_it_may(site: NodeHome, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_client.ledger.book.PRAGMAS", ("busy_timeout=50",))
    with opened_database(site) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="cannot be used") as raised:
            ledger.reserve(CLAIM, None)
    assert raised.value.why == "database is locked"


def tree(number: int, length: int = 4, run: str = "run-1") -> Claim:
    return claim(number, spends=(Spend("tree_aggregation", 3.0, 1.0, length),), unit="node", run=run)


def test_a_site_answers_once_in_a_tree_whatever_it_is_asked(ledger: Ledger) -> None:
    first = ledger.reserve(tree(2), None)
    for number in (1, 3, 4):
        with pytest.raises(PolicyRefusal, match="has answered in this tree") as raised:
            ledger.reserve(tree(number), None)
        assert "in round 2, and a tree goes over 4 rounds" in raised.value.why
    assert len({first, ledger.reserve(tree(2), None), ledger.reserve(tree(5), None), ledger.reserve(tree(3, run="run-2"), None)}) == 4


def test_a_turn_that_was_given_back_may_be_taken_later(ledger: Ledger) -> None:
    ledger.refund(ledger.reserve(tree(1), None), "nothing left this site")
    ledger.release(ledger.reserve(tree(3), None), parcel("a"))
    with pytest.raises(PolicyRefusal, match="in this tree"):
        ledger.reserve(tree(4), None)
