from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedscale.aggregate import Aggregate
from fedscale.errors import PlanError, UpdateRejected
from fedscale.transform import ClipNorm, decode, encode
from fedscale.update import Layout, Update
from fedscale.vector import Vector
from tests.fedscale.world import vector

vectors = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))


@dataclass(frozen=True)
class Affine:
    """``x * factor + shift`` at the node, undone at the server: does not commute with another of its kind."""

    factor: float
    shift: float

    def encode(self, update: Update) -> Update:
        return replace(update, delta=update.delta * np.float32(self.factor) + np.float32(self.shift))

    def decode(self, aggregate: Aggregate) -> Aggregate:
        return replace(aggregate, delta=(aggregate.delta - np.float32(self.shift)) / np.float32(self.factor))


def norm(values: Vector) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


@given(vectors, st.floats(1e-3, 1e6))
def test_clipping_bounds_the_norm_and_keeps_the_direction(delta: Vector, limit: float) -> None:
    clipped = ClipNorm(limit).encode(Update(delta, 3.0, {"loss": np.ones(1)}))
    assert norm(clipped.delta) <= limit * (1 + 1e-5)
    assert (clipped.weight, clipped.metrics, clipped.delta.dtype) == (3.0, {"loss": np.ones(1)}, np.float32)
    factor = min(1.0, limit / norm(delta)) if norm(delta) else 1.0
    assert np.allclose(clipped.delta, delta * factor, rtol=1e-5, atol=1e-30)


def test_what_is_small_enough_stays_as_it_is() -> None:
    update = Update(vector(3, 4), 1.0)
    assert ClipNorm(5.0).encode(update) is update
    assert ClipNorm(1.0).encode(Update(vector(0, 0), 1.0)).delta.tolist() == [0, 0]
    assert ClipNorm(2.5).encode(update).delta.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_huge_change_is_clipped_not_wiped_out(size: float) -> None:
    clipped = ClipNorm(1.0).encode(Update(vector(size, -size), 1.0))
    assert clipped.delta == pytest.approx([2**-0.5, -(2**-0.5)], rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_for_the_ring_to_refuse(value: float) -> None:
    clipped = ClipNorm(1.0).encode(Update(vector(0, value), 1.0))
    with pytest.raises(UpdateRejected, match="^coordinate 1: a value is not finite"):
        Layout(2, (), 1).encode(clipped)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(PlanError, match=f"^a clip norm of {limit} is not positive$"):
        ClipNorm(limit)


def test_a_chain_encodes_left_to_right_and_decodes_right_to_left() -> None:
    chain = (Affine(2.0, 1.0), Affine(4.0, -3.0), ClipNorm(1e9))
    encoded = encode(chain, Update(vector(1, 2), 1.0))
    assert encoded.delta.tolist() == [9.0, 17.0]
    assert decode(chain, Aggregate(encoded.delta, 1.0, 1)).delta.tolist() == [1.0, 2.0]


def test_no_transforms_change_nothing() -> None:
    update, aggregate = Update(vector(1), 1.0), Aggregate(vector(1), 1.0, 1)
    assert encode((), update) is update
    assert decode((), aggregate) is aggregate
    assert ClipNorm(1.0).decode(aggregate) is aggregate
