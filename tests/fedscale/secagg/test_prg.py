"""Masks: the standard's keystream, whatever computes it, added and taken away exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import UpdateRejected
from fedscale.ring import WORD, Words
from fedscale.secagg import prg
from fedscale.secagg.prg import Core, Mask

LENGTHS = [1, 3, 4, 15, 1000, prg.TILE - 1, prg.TILE, prg.TILE + 1, 3 * prg.TILE + 7]


def reference(key: bytes, length: int) -> Words:
    """AES-256 of one counter block after another, by the definition of counter mode."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the definition of counter mode needs it
    stream = b"".join(block.update((2 + at).to_bytes(16, "big")) for at in range(-(-length // 4)))
    return np.frombuffer(stream, WORD)[:length]


def test_aes_256_counter_mode_of_the_standard() -> None:
    """NIST SP 800-38A, F.5.5."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    text = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    known = "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    assert Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update(text).hex() == known


def test_the_keystream_under_a_key_of_zeros() -> None:
    """The Galois/Counter Mode specification's test case 14: plaintext and nonce of zeros."""
    words = prg.masked(np.zeros(4, WORD), [Mask(bytes(32))])
    assert words.tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"


@pytest.mark.parametrize("core", Core)
@pytest.mark.parametrize("length", [1, 4, 5, 1000])
def test_both_cores_are_counter_mode(core: Core, length: int) -> None:
    key = bytes(range(32))
    assert np.array_equal(prg.masked(np.zeros(length, WORD), [Mask(key)], core), reference(key, length))


@pytest.mark.parametrize("length", LENGTHS)
def test_both_cores_give_the_same_bits(length: int) -> None:
    words = np.arange(length, dtype=WORD)
    masks = [Mask(bytes([i]) * 32, negative=i % 2 == 1) for i in range(5)]
    assert np.array_equal(prg.masked(words, masks, Core.CTR), prg.masked(words, masks, Core.GCM))


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 300), keys=st.lists(st.binary(min_size=32, max_size=32), max_size=6), core=st.sampled_from(Core))
def test_masks_cancel(length: int, keys: list[bytes], core: Core) -> None:
    words = np.arange(length, dtype=WORD) * np.uint32(2654435761)
    hidden = prg.masked(words, [Mask(key) for key in keys], core)
    assert np.array_equal(prg.masked(hidden, [Mask(key, negative=True) for key in reversed(keys)], core), words)
    expected = words + sum((reference(key, length) for key in keys), np.zeros(length, WORD))
    assert np.array_equal(hidden, expected)


def test_the_vector_itself_stays_as_it_is() -> None:
    words = np.ones(10, WORD)
    hidden = prg.masked(words, [Mask(bytes(32))])
    assert (words == 1).all()
    assert not np.shares_memory(words, hidden)
    prg.masked(words, [Mask(bytes(32))], out=words)
    assert np.array_equal(words, hidden)
    copy = prg.masked(words, [])
    assert (copy == words).all()
    assert not np.shares_memory(words, copy)


def ticking(*steps: float) -> Iterator[float]:
    """A clock on which the two cores take the given times, each try alike."""
    now = 0.0
    for step in steps:
        for _ in range(3):
            yield now
            now += step
            yield now


@pytest.mark.parametrize(("ctr", "gcm", "taken"), [(1.0, 2.0, Core.CTR), (2.0, 1.0, Core.GCM)])
def test_the_faster_core_is_chosen(ctr: float, gcm: float, taken: Core) -> None:
    clock = ticking(ctr, gcm)
    assert prg.choose(lambda: next(clock)) is taken


def test_cores_that_disagree_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = prg.keystream
    monkeypatch.setattr(prg, "keystream", lambda key, core: real(key if core is Core.CTR else b"x" * 32, core))
    clock = ticking(2.0, 1.0)
    assert prg.choose(lambda: next(clock)) is Core.CTR


@given(words=st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_packing_keeps_the_low_24_bits(words: list[int]) -> None:
    vector = np.array(words, WORD)
    packed = prg.pack(vector)
    assert len(packed) == 3 * len(words)
    assert packed == b"".join((word & 0xFFFFFF).to_bytes(3, "little") for word in words)
    assert np.array_equal(prg.unpack(packed, len(words)), vector & np.uint32(0xFFFFFF))


def test_a_packed_vector_of_another_length_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="6 bytes"):
        prg.unpack(bytes(6), 3)


@given(value=st.integers(-(2**23), 2**23 - 1))
def test_24_bits_are_read_as_a_signed_number(value: int) -> None:
    low = np.array([value & 0xFFFFFF], WORD)
    assert prg.signed(low, 24).view(np.int32)[0] == value
    assert prg.signed(low, 32) is low
