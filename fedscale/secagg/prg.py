"""Masks: the keystream of AES-256 in counter mode as 32-bit words, added to or taken from a vector tile by tile.

A tile stays in the cache while all its masks are applied. The keystream is CTR's from the counter block ``0^96 || 2``,
which is what GCM produces under a nonce of zeros; where the processor runs GCM faster, that code computes the very same
bits. Each key is used for one mask of one round, so the fixed nonce never repeats under a key.
Source: NIST SP 800-38A section 6.5 and SP 800-38D section 7.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from fedscale.errors import UpdateRejected
from fedscale.ring import WORD, Words

TILE = 1 << 16
TILE_BYTES = TILE * WORD.itemsize
SPARE = 16
COUNTER = bytes(15) + b"\x02"
ZEROS = bytes(TILE_BYTES)
PACKED_BITS, PACKED_BYTES = 24, 3


class Core(StrEnum):
    """Which code computes the keystream; both give the same bits."""

    CTR = "ctr"
    GCM = "gcm"


@dataclass(frozen=True, slots=True)
class Mask:
    """A keystream, by its 32-byte key, to be added or taken away."""

    key: bytes = field(repr=False)
    negative: bool = False


def keystream(key: bytes, core: Core) -> CipherContext:
    """What turns zeros into the keystream of a 32-byte key."""
    mode = modes.GCM(bytes(12)) if core is Core.GCM else modes.CTR(COUNTER)
    return Cipher(algorithms.AES256(key), mode).encryptor()


class Veil:
    """Masks at work: their keystreams go along with a vector, tile by tile.

    Args:
        masks: what is added and taken away.
        core: what computes the keystreams.
        longest: words of the longest tile.
    """

    def __init__(self, masks: Sequence[Mask], core: Core = Core.GCM, longest: int = TILE) -> None:
        self._streams = [(keystream(mask.key, core), np.subtract if mask.negative else np.add) for mask in masks]
        self._scratch = bytearray(longest * WORD.itemsize + SPARE)
        self._words = np.frombuffer(self._scratch, WORD, longest)

    def lay(self, source: Words, target: Words) -> None:
        """``source`` plus the next words of all keystreams modulo 2^32, in ``target``, which may be ``source`` itself."""
        zeros = ZEROS if len(source) == TILE else ZEROS[: source.nbytes]
        stream_words = self._words[: len(source)]
        for stream, combine in self._streams:
            stream.update_into(zeros, self._scratch)
            combine(source, stream_words, out=target)
            source = target
        if source is not target:
            target[:] = source


def masked(words: Words, masks: Sequence[Mask], core: Core = Core.GCM, out: Words | None = None) -> Words:
    """``words`` plus all ``masks`` modulo 2^32, in a new vector or in ``out``, which may be ``words`` itself."""
    result = np.empty_like(words) if out is None else out
    veil = Veil(masks, core, min(TILE, len(words)))
    for start in range(0, len(words), TILE):
        veil.lay(words[start : start + TILE], result[start : start + TILE])
    return result


def choose(clock: Callable[[], float], tries: int = 3) -> Core:
    """The faster core on this machine, found in about a millisecond; ``clock`` gives seconds.

    Should the cores ever disagree, the one that is counter mode by definition is taken.
    """
    taken = {}
    for core in Core:
        outputs, best = bytearray(TILE_BYTES + SPARE), float("inf")
        stream = keystream(bytes(32), core)
        for _ in range(tries):
            began = clock()
            stream.update_into(ZEROS, outputs)
            best = min(best, clock() - began)
        taken[core] = (best, bytes(outputs))
    agree = taken[Core.CTR][1] == taken[Core.GCM][1]
    return Core.GCM if agree and taken[Core.GCM][0] <= taken[Core.CTR][0] else Core.CTR


def pack(words: Words) -> bytes:
    """The low 24 bits of each word, three bytes a word, least significant first: four words become three."""
    quads = np.zeros((-(-len(words) // 4), 4), WORD)
    quads.reshape(-1)[: len(words)] = words
    quads &= np.uint32((1 << PACKED_BITS) - 1)
    triples = np.empty((len(quads), 3), WORD)
    triples[:, 0] = quads[:, 0] | quads[:, 1] << np.uint32(24)
    triples[:, 1] = quads[:, 1] >> np.uint32(8) | quads[:, 2] << np.uint32(16)
    triples[:, 2] = quads[:, 2] >> np.uint32(16) | quads[:, 3] << np.uint32(8)
    return triples.tobytes()[: PACKED_BYTES * len(words)]


def unpack(data: bytes, length: int) -> Words:
    """What ``pack`` packed, as ``length`` words below 2^24.

    Raises:
        UpdateRejected: not ``3 * length`` bytes.
    """
    if len(data) != PACKED_BYTES * length:
        raise UpdateRejected(f"a packed vector of {len(data)} bytes", why=f"{length} words of 24 bits take {PACKED_BYTES * length}")
    triples = np.frombuffer(bytes(data) + bytes(-len(data) % 12), WORD).reshape(-1, 3)
    quads = np.empty((len(triples), 4), WORD)
    quads[:, 0] = triples[:, 0]
    quads[:, 1] = triples[:, 0] >> np.uint32(24) | triples[:, 1] << np.uint32(8)
    quads[:, 2] = triples[:, 1] >> np.uint32(16) | triples[:, 2] << np.uint32(16)
    quads[:, 3] = triples[:, 2] >> np.uint32(8)
    quads &= np.uint32((1 << PACKED_BITS) - 1)
    return quads.reshape(-1)[:length]


def signed(words: Words, bits: int) -> Words:
    """Words modulo ``2**bits`` as words modulo 2^32 that mean the same signed number."""
    if bits == WORD.itemsize * 8:
        return words
    shift = np.int32(WORD.itemsize * 8 - bits)
    return (words.view(np.int32) << shift >> shift).view(WORD)
