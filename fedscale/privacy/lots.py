"""Who is in a step: Poisson sampling from a secret key, and keys for everything else that must be drawn in secret."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def secret(key: bytes | None = None) -> bytes:
    """Thirty-two bytes from which all chance of one piece of work comes: from a key, or from the machine where there is none."""
    return os.urandom(32) if key is None else derived(key, "work", 0)


def derived(key: bytes, use: str, number: int) -> bytes:
    """A key of 32 bytes for one use of a secret."""
    return hashlib.blake2b(f"{use}/{number}".encode(), key=key[:64], digest_size=32, person=b"fedscale dp").digest()


def chosen(units: int, rate: float, key: bytes) -> npt.NDArray[np.int64]:
    """The units, ascending, that a step takes, each with chance ``rate`` and independently of all others: Poisson sampling.

    Args:
        units: how many there are.
        rate: above 0, at most 1; 1 takes everybody.
        key: of 32 bytes, for this step alone; the draws are the keystream of AES-256.
    """
    if rate >= 1:
        return np.arange(units)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * units))
    return np.flatnonzero(np.frombuffer(stream, "<u8") < np.uint64(rate * 2.0**64))
