from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.names import Names, Numbered
from fedscale.partition import client_names
from fedscale.sampling import cohort

MILLION = Numbered(1_000_000)


def test_numbered_names_sort_in_order() -> None:
    assert list(Numbered(3)) == ["client-0000", "client-0001", "client-0002"] == client_names(3)
    assert (MILLION[0], MILLION[-1], len(MILLION)) == ("client-000000", "client-999999", 1_000_000)
    assert MILLION[5:8] == [MILLION[5], MILLION[6], MILLION[7]]
    assert list(Numbered(12_000)) == sorted(Numbered(12_000))


@pytest.mark.parametrize(
    "name", ["client-00001", "client-1000000", "client--00001", "client-00000a", "client-\u0660\u0660\u0660\u0660\u0660\u0661", "ada", "", 7, None]
)
def test_a_name_that_is_none_of_them(name: object) -> None:
    assert name not in MILLION
    with pytest.raises(ValueError, match="no such name"):
        MILLION.index(name)


@pytest.mark.parametrize("at", [5, -6])
def test_a_position_beyond_the_end(at: int) -> None:
    with pytest.raises(IndexError):
        Numbered(5)[at]


@given(st.sets(st.integers(0, 400), min_size=1))
def test_a_subset_is_a_sequence_of_its_names(chosen: set[int]) -> None:
    at = np.array(sorted(chosen))
    for base in (Names(Numbered(401)), Names.of(client_names(401))):
        some = base.subset(at)
        assert list(some) == [base[int(each)] for each in at] == some[:]
        assert [some.index(name) for name in some] == list(range(len(chosen)))
        assert [name for name in base if name in some] == list(some)
        assert some.picked(np.arange(len(some))[::-1]) == tuple(some)[::-1]
        again = some.subset(np.arange(len(some))[::2])
        assert list(again) == list(some)[::2]


def test_names_are_sorted_once() -> None:
    names = Names.of(["b", "a", "b", "c"])
    assert list(names) == ["a", "b", "c"]
    assert Names.of(names) is names
    assert names == ("a", "b", "c") == tuple(names)
    assert names != ("a", "b")
    assert names != ("a", "b", "d")
    assert names != 3
    assert hash(names) == hash(Names.of(("c", "b", "a")))
    assert repr(names) == "Names(3: a, c)"
    assert "bb" not in names
    assert "z" not in names


@pytest.mark.parametrize("make", [list, tuple, Names.of, lambda names: Names(Numbered(len(names)))])
def test_a_cohort_is_the_same_however_the_names_come(make: Callable[[Sequence[str]], Sequence[str]]) -> None:
    names = client_names(300)
    for number in range(1, 5):
        assert cohort(7, number, make(names), 40) == cohort(7, number, names[::-1], 40)
    assert cohort(7, 1, make(names), 300) == tuple(names)


def test_a_cohort_of_a_million_looks_at_its_own_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(_: Numbered, at: int) -> str:
        made.append(at)
        return f"n{at:06d}"

    monkeypatch.setattr(Numbered, "_name", make)
    chosen = cohort(1, 1, Names(MILLION), 20)
    assert len(chosen) == len(set(chosen)) == 20 == len(made)
    assert list(chosen) == sorted(chosen)
