from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.aggregate import Aggregator, Mean, Partial
from fedscale.errors import RunFailed
from fedscale.metrics import Metric
from fedscale.ring import Words
from fedscale.update import Layout, Update

LAYOUT = Layout(6, (Metric("loss"), Metric("accuracy")), 16, bound=4.0, weight_cap=1000.0)
AGGREGATORS: list[Aggregator] = [Mean()]
every_aggregator = pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda a: type(a).__name__)


def answer(seed: int) -> tuple[Update, Words]:
    rng = np.random.default_rng(seed)
    update = Update(rng.uniform(-4, 4, 6).astype(np.float32), float(rng.integers(1, 1001)), {"loss": rng.normal(size=1), "accuracy": rng.random(1)})
    return update, LAYOUT.encode(update)


def total(aggregator: Aggregator, seeds: list[int]) -> Partial:
    partial = aggregator.zero(LAYOUT)
    for seed in seeds:
        aggregator.add(partial, answer(seed)[1])
    return partial


def bits(partial: Partial) -> tuple[bytes, int]:
    return partial.words.tobytes(), partial.count


def merged(aggregator: Aggregator, left: Partial, right: Partial) -> Partial:
    result = Partial(left.words.copy(), left.count)
    aggregator.merge(result, right)
    return result


seeds = st.lists(st.integers(0, 10_000), max_size=6)
# Any tree of partial sums: a leaf is a handful of answers, a node merges its children from left to right.
trees: st.SearchStrategy[Any] = st.recursive(seeds, lambda children: st.lists(children, max_size=4).map(tuple), max_leaves=8)


def leaves(tree: Any) -> list[int]:
    return list(tree) if isinstance(tree, list) else [seed for child in tree for seed in leaves(child)]


def climb(aggregator: Aggregator, tree: Any) -> Partial:
    if isinstance(tree, list):
        return total(aggregator, tree)
    partial = aggregator.zero(LAYOUT)
    for child in tree:
        aggregator.merge(partial, climb(aggregator, child))
    return partial


@every_aggregator
@given(a=seeds, b=seeds, c=seeds)
def test_merging_is_associative_and_commutative_with_an_identity(aggregator: Aggregator, a: list[int], b: list[int], c: list[int]) -> None:
    x, y, z = (total(aggregator, part) for part in (a, b, c))
    assert bits(merged(aggregator, merged(aggregator, x, y), z)) == bits(merged(aggregator, x, merged(aggregator, y, z)))
    assert bits(merged(aggregator, x, y)) == bits(merged(aggregator, y, x))
    assert bits(merged(aggregator, x, aggregator.zero(LAYOUT))) == bits(x) == bits(merged(aggregator, aggregator.zero(LAYOUT), x))


@every_aggregator
@given(tree=trees, random=st.randoms())
def test_any_tree_and_any_order_give_the_same_bits(aggregator: Aggregator, tree: Any, random: Any) -> None:
    flat = leaves(tree)
    shuffled = random.sample(flat, len(flat))
    assert bits(climb(aggregator, tree)) == bits(total(aggregator, flat)) == bits(total(aggregator, shuffled))


@every_aggregator
@given(part=st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
def test_the_report_of_a_split_is_the_report_of_the_whole(aggregator: Aggregator, part: list[int]) -> None:
    whole = aggregator.report(total(aggregator, part), LAYOUT)
    split = aggregator.report(merged(aggregator, total(aggregator, part[::2]), total(aggregator, part[1::2])), LAYOUT)
    assert whole.delta.tobytes() == split.delta.tobytes()
    assert (whole.weight, whole.count) == (split.weight, split.count) == (sum(answer(seed)[0].weight for seed in part), len(part))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=16))
def test_the_mean_is_the_weighted_mean(part: list[int]) -> None:
    updates = [answer(seed)[0] for seed in part]
    report = Mean().report(total(Mean(), part), LAYOUT)
    weight = sum(u.weight for u in updates)
    exact = sum(u.delta.astype(np.float64) * u.weight for u in updates) / weight
    step = len(part) * 2.0**-LAYOUT.format.exponent * LAYOUT.weight_cap / weight
    assert np.abs(report.delta - exact).max() <= step + 1e-6
    assert report.metrics["loss"][0] == pytest.approx(sum(u.metrics["loss"][0] for u in updates), abs=1e-5)


def test_the_mean_of_one_heavy_and_one_light_node() -> None:
    partial = Mean().zero(LAYOUT)
    for value, weight in ((4.0, 999.0), (-4.0, 1.0)):
        plain = {"loss": np.zeros(1), "accuracy": np.zeros(1)}
        Mean().add(partial, LAYOUT.encode(Update(np.full(6, value, np.float32), weight, plain)))
    assert Mean().report(partial, LAYOUT).delta == pytest.approx([3.992] * 6, abs=1e-5)


def test_the_mean_is_linear_and_needs_an_answer() -> None:
    assert Mean.linear
    with pytest.raises(RunFailed, match="^a round without answers has no mean$"):
        Mean().report(Mean().zero(LAYOUT), LAYOUT)


def test_the_mean_takes_the_place_of_the_sum_bit_for_bit() -> None:
    partial = total(Mean(), [3, 1, 4, 1, 5])
    weight, _ = LAYOUT.tail(partial.words)
    apart = LAYOUT.mean(partial.words, weight)
    report = Mean().report(partial, LAYOUT)
    assert np.shares_memory(report.delta, partial.words)
    assert report.delta.tobytes() == apart.tobytes()
