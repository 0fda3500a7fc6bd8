"""Shamir's secret sharing of 32-byte secrets over the prime 2^256 - 189: one secret, one field element.

Source: Shamir, How to share a secret, CACM 1979. The Lagrange coefficients of a set of points are kept, because on the
complete graph the same holders answer for everybody.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul
from typing import TypeAlias

from fedscale.errors import ProtocolError

PRIME = (1 << 256) - 189
SIZE = 32

Entropy: TypeAlias = Callable[[int], bytes]


def draw(entropy: Entropy = secrets.token_bytes) -> bytes:
    """A uniformly random field element as 32 bytes, fit to be shared."""
    while True:
        value = entropy(SIZE)
        if int.from_bytes(value, "big") < PRIME:
            return value


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Entropy = secrets.token_bytes) -> list[bytes]:
    """One 32-byte share for each of the ``points``; any ``threshold`` of them give the secret, fewer say nothing about it.

    Raises:
        ProtocolError: the secret is no field element, a point is zero or doubled, or the threshold does not fit.
    """
    if len(secret) != SIZE or int.from_bytes(secret, "big") >= PRIME:
        raise ProtocolError("a secret is no element of the field of its shares")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or not all(0 < point < PRIME for point in points):
        raise ProtocolError(f"{len(points)} points cannot share a secret with threshold {threshold}")
    # Highest power first, for Horner's rule.
    polynomial = [*(int.from_bytes(draw(entropy), "big") for _ in range(threshold - 1)), int.from_bytes(secret, "big")]
    return [_value(polynomial, point).to_bytes(SIZE, "big") for point in points]


def _value(polynomial: Sequence[int], point: int) -> int:
    """A polynomial at a point, by Horner's rule; points are small, so that reducing once costs less than reducing at each step."""
    value = 0
    for coefficient in polynomial:
        value = value * point + coefficient
    return value % PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind ``threshold`` or more shares, by their points; the first ``threshold`` are used.

    Raises:
        ProtocolError: too few shares, or one that is no field element.
    """
    if len(shares) < threshold:
        raise ProtocolError(f"{len(shares)} shares are too few", why=f"the threshold is {threshold}")
    points = tuple(shares)[:threshold]
    values = [int.from_bytes(shares[point], "big") for point in points]
    if any(len(shares[point]) != SIZE for point in points) or max(values) >= PRIME:
        raise ProtocolError("a share is no element of the field")
    total: int = sum(map(mul, lagrange(points), values))
    return (total % PRIME).to_bytes(SIZE, "big")


@lru_cache(maxsize=4096)
def lagrange(points: tuple[int, ...]) -> tuple[int, ...]:
    """What each point's value weighs in the value at zero."""
    # Points are small, so their products are worked out before they are reduced.
    top = prod(points) % PRIME
    bottoms = [point * prod(other - point for other in points if other != point) % PRIME for point in points]
    return tuple(top * inverse % PRIME for inverse in _inverses(bottoms))


def _inverses(values: Sequence[int]) -> list[int]:
    """All inverses for the price of one (Montgomery 1987)."""
    before = list(accumulate(values, lambda product, value: product * value % PRIME, initial=1))
    inverse, found = pow(before[-1], -1, PRIME), []
    for product, value in zip(reversed(before[:-1]), reversed(values), strict=True):
        found.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return found[::-1]
