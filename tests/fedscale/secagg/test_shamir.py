"""Secret sharing: every threshold of shares gives the secret, fewer give nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import ProtocolError
from fedscale.secagg import shamir

ELEMENTS = st.integers(0, shamir.PRIME - 1).map(lambda value: value.to_bytes(32, "big"))


def test_the_field_is_a_field() -> None:
    """Fermat's test to many bases; 2^256 - 189 is the largest prime below 2^256."""
    assert shamir.PRIME == (1 << 256) - 189
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in range(2, 60))


def scripted(*values: int) -> Callable[[int], bytes]:
    """Randomness that a test chose."""
    left = iter(values)
    return lambda size: next(left).to_bytes(size, "big")


def test_a_polynomial_worked_by_hand() -> None:
    """7 + 3 x + 2 x^2 at 1, 2 and 5."""
    shares = shamir.split((7).to_bytes(32, "big"), 3, [1, 2, 5], scripted(2, 3))
    assert [int.from_bytes(share, "big") for share in shares] == [12, 21, 72]
    assert shamir.lagrange((1, 2)) == (2, shamir.PRIME - 1)


@settings(max_examples=30, deadline=None)
@given(secret=ELEMENTS, size=st.integers(1, 7), data=st.data())
def test_every_threshold_of_shares_gives_the_secret(secret: bytes, size: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, size))
    points = data.draw(st.lists(st.integers(1, 1 << 32), min_size=size, max_size=size, unique=True))
    shares = dict(zip(points, shamir.split(secret, threshold, points), strict=True))
    for chosen in combinations(points, threshold):
        assert shamir.combine({point: shares[point] for point in chosen}, threshold) == secret
    assert shamir.combine(shares, threshold) == secret


@settings(max_examples=30, deadline=None)
@given(secret=ELEMENTS, guess=ELEMENTS, size=st.integers(2, 6))
def test_one_share_too_few_fits_every_secret(secret: bytes, guess: bytes, size: int) -> None:
    """For any guess there is a polynomial through the guess and the shares that an adversary holds."""
    points = list(range(1, size + 1))
    held = dict(zip(points, shamir.split(secret, size, points), strict=True))
    del held[size]
    # What the last share would have to be for the guess to be the secret.
    weights = dict(zip(points, shamir.lagrange(tuple(points)), strict=True))
    known = sum(weights[point] * int.from_bytes(share, "big") for point, share in held.items())
    last = (int.from_bytes(guess, "big") - known) * pow(weights[size], -1, shamir.PRIME) % shamir.PRIME
    assert shamir.combine(held | {size: last.to_bytes(32, "big")}, size) == guess


def test_drawing_skips_what_is_no_element() -> None:
    assert shamir.draw(scripted(shamir.PRIME, (1 << 256) - 1, 5)) == (5).to_bytes(32, "big")
    assert shamir.draw() != shamir.draw()


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (b"short", 2, [1, 2, 3]),
        (b"\xff" * 32, 2, [1, 2, 3]),
        (bytes(32), 0, [1, 2, 3]),
        (bytes(32), 4, [1, 2, 3]),
        (bytes(32), 2, [0, 1, 2]),
        (bytes(32), 2, [1, 1, 2]),
        (bytes(32), 2, [1, 2, shamir.PRIME]),
    ],
)
def test_bad_input_is_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ProtocolError):
        shamir.split(secret, threshold, points)


def test_bad_shares_are_refused() -> None:
    with pytest.raises(ProtocolError, match="1 shares are too few"):
        shamir.combine({1: bytes(32)}, 2)
    for bad in (b"\xff" * 32, bytes(31)):
        with pytest.raises(ProtocolError, match="no element"):
            shamir.combine({1: bytes(32), 2: bad}, 2)


def test_coefficients_are_kept() -> None:
    numbers = count(1)
    points = tuple(next(numbers) for _ in range(40))
    assert shamir.lagrange(points) is shamir.lagrange(points)
    assert sum(shamir.lagrange(points)) % shamir.PRIME == 1
