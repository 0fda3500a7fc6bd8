"""Noise from a cryptographic source: Gaussian, Laplace, and on the integers discrete Gaussian and Skellam.

All chance is the keystream of AES-256 in counter mode under a key that is fresh and secret, or given where a test or a simulation must be
repeated; a key serves one call. Draws on the integers are exact but for float64: the distribution is that of the definition, cut off where
less than 1e-22 is left. They have no low bits that would betray what they were added to, as sums of floating point numbers do.

Sources: Box and Muller 1958; Canonne, Kamath, Steinke 2020 (discrete Gaussian); Agarwal, Kairouz, Liu 2021 (Skellam); Mironov 2012.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedscale.errors import ConfigError

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Bits: TypeAlias = npt.NDArray[np.uint64]

KEY_BYTES = 32
BLOCK = 1 << 13
ZEROS = bytes(8 * BLOCK)
REACH = 10.0
# Below this standard deviation integers come from a table, above it from rounded Gaussian draws of which some are refused.
TABLE = 256.0
MOST = 2.0**40
CELL_BITS = 16
HALF_TURN = math.pi * 2.0**-64


class _Stream:
    """Uniform 64-bit words from a key."""

    def __init__(self, key: bytes | None) -> None:
        key = secrets.token_bytes(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise ConfigError(f"a key of {len(key)} bytes", where="key", why=f"noise takes {KEY_BYTES}")
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._buffer = bytearray(8 * BLOCK + 16)

    def words(self, count: int) -> Bits:
        """The next words, at most ``BLOCK``, shape ``(count,)``; the array is good until the next call."""
        self._encryptor.update_into(ZEROS[: 8 * count], self._buffer)
        return np.frombuffer(self._buffer, "<u8", count)

    def unit(self, count: int) -> Floats:
        """Numbers in (0, 1], multiples of 2^-64, rounded to float64."""
        numbers = self.words(count).astype(np.float64)
        numbers += 0.5
        numbers *= 2.0**-64
        return numbers

    def normal(self, count: int) -> Floats:
        """Standard Gaussian draws, at most ``BLOCK``, within 9.5 of 0."""
        half = (count + 1) // 2
        radius = self.unit(half)
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        # Sine and cosine of a random angle from the tangent of its half, which costs less than either.
        tangent = self.words(half).view(np.int64) * HALF_TURN
        np.tan(tangent, out=tangent)
        square = tangent * tangent
        radius /= 1.0 + square
        draws = np.empty(2 * half)
        np.multiply(radius, 1.0 - square, out=draws[:half])
        np.multiply(2.0 * radius, tangent, out=draws[half:])
        return draws[:count]


def gaussian(size: int, sigma: float, key: bytes | None = None) -> Floats:
    """Gaussian draws of standard deviation ``sigma``, shape ``(size,)``.

    Raises:
        ConfigError: the standard deviation is not positive and finite, or the key has another length than 32 bytes.
    """
    _require_scale(sigma)
    stream, draws = _Stream(key), np.empty(size)
    for start in range(0, size, BLOCK):
        np.multiply(stream.normal(min(BLOCK, size - start)), sigma, out=draws[start : start + BLOCK])
    return draws


def laplace(size: int, scale: float, key: bytes | None = None) -> Floats:
    """Laplace draws of parameter ``scale``, standard deviation ``scale * sqrt(2)``, shape ``(size,)``.

    Raises:
        ConfigError: as ``gaussian``.
    """
    _require_scale(scale)
    stream, draws = _Stream(key), np.empty(size)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        magnitude = np.log(stream.unit(count))
        draws[start : start + count] = np.where(stream.words(count) >> np.uint64(63), scale, -scale) * magnitude
    return draws


def discrete_gaussian(size: int, sigma: float, key: bytes | None = None) -> Integers:
    """Integers of probability in proportion to ``exp(-n^2 / (2 sigma^2))``, shape ``(size,)``.

    Raises:
        ConfigError: as ``gaussian``, or ``sigma`` above 2^40.
    """
    _require_scale(sigma, MOST)
    if sigma < TABLE:
        return _from_table(size, _table(_discrete_gaussian_masses(sigma)), key)
    return _from_rounding(size, sigma, lambda _: 0.0, key)


def skellam(size: int, sigma: float, key: bytes | None = None) -> Integers:
    """Differences of two Poisson draws of mean ``sigma^2 / 2`` each: standard deviation ``sigma``, shape ``(size,)``.

    Sums of them are Skellam again and their variances add up, which makes them noise that many sites can share.

    Raises:
        ConfigError: as ``discrete_gaussian``.
    """
    _require_scale(sigma, MOST)
    if sigma < TABLE:
        return _from_table(size, _table(_skellam_masses(sigma)), key)
    variance = sigma**2

    def tilt(squares: Floats) -> Any:
        # log of exp(-v) I_n(v) less that of the discrete Gaussian, by the uniform expansion of I_n; s is (n / v)^2.
        s = squares / variance**2
        return squares * s / (24 * variance) - squares * s**2 / (80 * variance) - s / 4 - s * 6.5 / (24 * variance)

    return _from_rounding(size, sigma, tilt, key)


def _require_scale(scale: float, most: float = math.inf) -> None:
    if not (0 < scale < math.inf and scale <= most):
        raise ConfigError("the scale of noise must be positive and finite", where="sigma", why=f"at most {most:g}")


def _from_rounding(size: int, sigma: float, tilt: Callable[[Floats], Any], key: bytes | None) -> Integers:
    """Rounded Gaussian draws, each kept with the chance that makes the whole numbers exact.

    A draw x rounded to n is kept in proportion to ``exp((x^2 - n^2) / (2 sigma^2) + tilt(n^2))``. All those chances are close to 1.
    """
    stream, draws, done = _Stream(key), np.empty(size, np.int64), 0
    most = (REACH * sigma + 0.25) / (2 * sigma**2) + REACH**4 / (24 * sigma**2)
    surely = np.uint64(2.0**64 * math.exp(-2 * most) * (1 - 1e-9))
    while done < size:
        exact = stream.normal(min(BLOCK, size - done)) * sigma
        whole = np.rint(exact)
        lots = stream.words(len(whole))
        # Only where the lot is above the least chance does the very chance matter.
        unsure = np.flatnonzero(lots >= surely)
        squares = whole[unsure] ** 2
        chances = np.exp((exact[unsure] ** 2 - squares) / (2 * sigma**2) + tilt(squares) - most)
        refused = unsure[(lots[unsure] * 2.0**-64 >= chances) | (squares > (REACH * sigma) ** 2)]
        kept = np.delete(whole, refused) if len(refused) else whole
        draws[done : done + len(kept)] = kept
        done += len(kept)
    return draws


def _table(masses: Floats) -> tuple[Bits, npt.NDArray[np.int64]]:
    """Thresholds of 64-bit words for integers ``-n..n``, and where each of 2^16 equal cells of words begins among them."""
    upto = np.minimum(np.cumsum(masses / masses.sum())[:-1] * 2.0**64, 2.0**64 - 2048).astype(np.uint64)
    cells = np.arange(1 << CELL_BITS, dtype=np.uint64) << np.uint64(64 - CELL_BITS)
    return upto, np.append(np.searchsorted(upto, cells, side="right"), len(upto))


def _from_table(size: int, table: tuple[Bits, npt.NDArray[np.int64]], key: bytes | None) -> Integers:
    """Integers by inversion: most words lie in a cell without a threshold, and for those a look is enough."""
    (upto, cells), stream = table, _Stream(key)
    draws = np.empty(size, np.int64)
    for start in range(0, size, BLOCK):
        words = stream.words(min(BLOCK, size - start))
        at = (words >> np.uint64(64 - CELL_BITS)).astype(np.intp)
        found = cells[at]
        unsure = np.flatnonzero(cells[at + 1] != found)
        found[unsure] = np.searchsorted(upto, words[unsure], side="right")
        draws[start : start + len(words)] = found
    return draws - len(upto) // 2


@lru_cache(maxsize=16)
def _discrete_gaussian_masses(sigma: float) -> Floats:
    reach = math.ceil(REACH * sigma)
    masses: Floats = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return masses


@lru_cache(maxsize=16)
def _skellam_masses(sigma: float) -> Floats:
    """The Poisson distribution convolved with its mirror image."""
    mean = sigma**2 / 2
    reach = math.ceil(REACH * sigma) + 40
    first = max(0, math.floor(mean - reach))
    counts = range(first, math.ceil(mean + reach) + 1)
    poisson = np.exp([count * math.log(mean) - mean - math.lgamma(count + 1) for count in counts])
    return np.convolve(poisson, poisson[::-1])
