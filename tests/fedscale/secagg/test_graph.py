"""The graph against what it promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import PlanError
from fedscale.secagg import graph
from fedscale.secagg.parameters import Parameters


@given(nodes=st.integers(4, 300), half=st.integers(1, 40), seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_a_graph_is_regular_and_mutual(nodes: int, half: int, seed: bytes) -> None:
    degree = 2 * min(half, (nodes - 1) // 2)
    built = graph.build(nodes, Parameters(degree, 2), seed)
    around = [built.neighbours(node) for node in range(nodes)]
    assert all(len(set(near)) == degree and node not in near and list(near) == sorted(near) for node, near in enumerate(around))
    assert all(node in around[other] for node, near in enumerate(around) for other in near)
    assert built.holders(0) == (tuple(range(nodes)) if degree == nodes - 1 else around[0])


def test_the_graph_depends_on_every_input() -> None:
    base = graph.build(20, Parameters(6, 4), b"s" * 32)
    assert base == graph.build(20, Parameters(6, 4), b"s" * 32)
    others = [
        graph.build(20, Parameters(6, 4), b"t" * 32),
        graph.build(20, Parameters(8, 4), b"s" * 32),
        graph.build(20, Parameters(6, 5), b"s" * 32),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 4
    assert base.order != others[0].order


def test_every_pair_is_as_likely_as_any_other() -> None:
    seen = {(a, b): 0 for a in range(7) for b in range(a)}
    for seed in range(700):
        built = graph.build(7, Parameters(2, 2), seed.to_bytes(32, "big"))
        for a, b in seen:
            seen[a, b] += b in built.neighbours(a)
    # 7 of 21 pairs each time: 233 expected, standard deviation 12.5.
    assert all(abs(count - 700 / 3) < 6 * 12.5 for count in seen.values())


def test_complete_means_that_one_holds_a_share_of_oneself() -> None:
    built = graph.build(5, Parameters(4, 3), bytes(32))
    assert built.complete
    assert built.neighbours(2) == (0, 1, 3, 4)
    assert built.holders(2) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("degree", [0, 3, 6, 7])
def test_no_graph_of_an_impossible_degree(degree: int) -> None:
    with pytest.raises(PlanError, match=f"6 nodes of degree {degree}"):
        graph.build(6, Parameters(degree, 2), bytes(32))
