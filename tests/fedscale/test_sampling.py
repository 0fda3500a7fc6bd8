from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import PlanError
from fedscale.sampling import Shuffle, cohort, derived_seed

names = st.sets(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=20)
seeds = st.integers(0, 2**63 - 1)


@given(names, seeds, st.integers(0, 10_000), st.data())
def test_a_cohort_is_a_sorted_choice_of_the_right_size(nodes: set[str], seed: int, number: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(nodes)))
    chosen = cohort(seed, number, nodes, size)
    assert len(chosen) == size
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= nodes


@given(names, seeds, st.integers(0, 10_000))
def test_order_and_repetition_do_not_matter(nodes: set[str], seed: int, number: int) -> None:
    ordered = sorted(nodes)
    size = (len(ordered) + 1) // 2
    assert cohort(seed, number, ordered, size) == cohort(seed, number, [*ordered[::-1], *ordered], size)


def test_it_is_the_same_choice_for_ever() -> None:
    nodes = [f"site-{n}" for n in range(10)]
    assert cohort(7, 1, nodes, 3) == ("site-1", "site-3", "site-9")
    assert cohort(7, 2, nodes, 3) == ("site-6", "site-7", "site-8")
    assert cohort(2**63 - 1, 3, nodes, 3) == ("site-3", "site-7", "site-9")


def test_seed_and_round_change_the_choice() -> None:
    nodes = [f"site-{n}" for n in range(30)]
    assert len({cohort(seed, number, nodes, 5) for seed in range(10) for number in range(10)}) == 100


def test_every_group_is_as_likely() -> None:
    """3,000 rounds of 2 of 4: each pair is due 500 times; six standard deviations are 122."""
    counts = Counter(cohort(1, number, "abcd", 2) for number in range(3000))
    assert set(counts) == set(combinations("abcd", 2))
    assert all(abs(count - 500) < 122 for count in counts.values())


@pytest.mark.parametrize("size", [0, -1, 4])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(PlanError, match=f"^cannot choose {size} of 3 nodes$"):
        cohort(0, 1, ["a", "b", "c", "c"], size)


@given(seeds, st.integers(0, 2**31), st.text(max_size=30))
def test_a_derived_seed_fits_63_bits_and_is_stable(seed: int, number: int, name: str) -> None:
    assert 0 <= derived_seed(seed, number, name) < 2**63
    assert derived_seed(seed, number, name) == derived_seed(seed, number, name)


def test_derived_seeds_differ_by_seed_round_and_name() -> None:
    names = ["a", "b", "ab", "ba", "a\0", "a\0\0", "", "zoé", "client-0001"]
    seen = {derived_seed(seed, number, name) for seed in (0, 1, 2**62) for number in (0, 1, 2) for name in names}
    assert len(seen) == 3 * 3 * len(names)
    assert derived_seed(1, 2, "client-0001") == 1140865031957329788


@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(1, 50))
def test_shuffles_are_one_stream_a_seed(seed: int, first: int, second: int) -> None:
    shuffle, bits = Shuffle(), np.random.Philox(key=seed)
    for _ in range(2):
        shuffle.seed(seed)
        shuffle.draw(first)
    shuffle.seed(seed)
    drawn = [shuffle.draw(first), shuffle.draw(second)]
    expected = [np.argsort(bits.random_raw(rows), kind="stable") for rows in (first, second)]
    assert [order.tolist() for order in drawn] == [order.tolist() for order in expected]
