"""One release as it is deployed: clip, sum at the site, ring, share of the noise, masks, sum, and back; or with a known bug in it."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.privacy.audit.canaries import Matrix
from fedscale.privacy.clip import contribution, norm_of
from fedscale.privacy.noise import skellam
from fedscale.ring import WORD, Words, add
from fedscale.secagg.keys import KEY
from fedscale.secagg.simulate import population, run
from fedscale.secagg.terms import Terms
from fedscale.update import Layout, Update
from fedscale.vector import Vector

Bytes: TypeAlias = npt.NDArray[np.uint8]

ROOM = 64.0
WEIGHT = 4.0
SEED_BYTES = 4


class Fault(StrEnum):
    """A bug that deployed systems have had."""

    HALF_NOISE = "half noise"
    NO_NOISE = "no noise"
    WEIGHT = "weight 4x"
    CLIP_SIGN = "wrong clip sign"
    RESTART = "restart without privacy"
    LATE_NOISE = "noise after the update"
    NAN = "NaN through the clip"
    PRG = "28-bit PRG"


@dataclass(frozen=True)
class Pipeline:
    """A cohort and what it promises.

    Args:
        nodes: how many; at least 3.
        size: coordinates of the model.
        clip: largest norm of one unit's contribution.
        noise_multiplier: of the noise on the sum.
        fault: a bug to plant; ``None`` for the pipeline as it is.
    """

    nodes: int
    size: int
    clip: float
    noise_multiplier: float
    fault: Fault | None = None

    @cached_property
    def names(self) -> list[str]:
        """The nodes."""
        return [f"site-{at:03}" for at in range(self.nodes)]

    @cached_property
    def layout(self) -> Layout:
        """How answers are laid out in the ring."""
        return Layout(self.size, (), self.nodes, bound=ROOM * self.clip, weight_cap=1.0)

    def released(self, rows: Sequence[Matrix], number: int = 1) -> Vector:
        """The sum that the server learns in round ``number``.

        Args:
            rows: each node's units, shape ``(units, size)`` each, not clipped yet.
            number: the round; after the first one, ``Fault.RESTART`` has struck the first node.
        """
        answers = {name: self.answer(own, at, number) for at, (name, own) in enumerate(zip(self.names, rows, strict=True))}
        return self.layout.format.decode(self._summed(answers, number)[: self.size])

    def answer(self, own: Matrix, node: int, number: int) -> Words:
        """What a node lays into the ring, its share of the noise included."""
        restarted = self.fault is Fault.RESTART and number > 1 and node == 0
        clipped = [row if restarted else self._clipped(row) for row in own]
        total = np.zeros(self.size, np.float32)
        for row in clipped:
            total += row
        if self.fault is Fault.WEIGHT and node == 0:
            total *= np.float32(WEIGHT)
        words = self.layout.encode(Update(np.nan_to_num(total), 1.0))
        # A quantiser that looks no closer than such a clip takes what is no number for the largest that it knows.
        words[: self.size][np.isnan(total)] = self.layout.format.limit(self.layout.bound)
        if not restarted:
            add(words[: self.size], self._noise())
        return words

    def seeds(self, count: int) -> Bytes:
        """Seeds of masks as a node draws them, shape ``(count, KEY)``."""
        drawn = np.frombuffer(secrets.token_bytes(count * KEY), np.uint8).reshape(count, KEY)
        if self.fault is not Fault.PRG:
            return drawn
        folded = np.zeros_like(drawn)
        folded[:, :SEED_BYTES] = drawn[:, :SEED_BYTES]
        folded[:, SEED_BYTES - 1] &= 0x0F
        return folded

    def _clipped(self, row: Vector) -> Vector:
        if not np.isfinite(row).all():
            # A comparison with NaN is false, so that a clip which asks whether the norm is too large lets it through.
            return row if self.fault is Fault.NAN else np.zeros_like(row)
        if self.fault is Fault.CLIP_SIGN:
            return row * np.float32(max(1.0, self.clip / norm_of(row)))
        return contribution(row, self.clip)

    def _noise(self) -> Words:
        """A node's share: the nodes' shares together have the promised variance."""
        factor = {Fault.HALF_NOISE: 0.5, Fault.NO_NOISE: 0.0, Fault.LATE_NOISE: 0.0}.get(self.fault, 1.0) if self.fault else 1.0
        if not factor:
            # Noise that a site adds to its own model once the answer has left is no noise to the server.
            return np.zeros(self.size, WORD)
        sigma = factor * self.noise_multiplier * self.clip * 2.0**self.layout.format.exponent / math.sqrt(self.nodes)
        return skellam(self.size, sigma).astype(WORD)

    def _summed(self, answers: dict[str, Words], number: int) -> Words:
        """The sum by the real protocol."""
        sites = population(self.names)
        roster = next(iter(sites.values())).roster.digest
        limit = ((1 << 31) - 1) // self.nodes
        plan, model = (hashlib.sha256(f"{part}/{number}".encode()).digest() for part in ("plan", "model"))
        terms = Terms("audit", number, plan, model, roster, length=self.layout.length, limit=limit, adversarial=0.0, dropout=0.1)
        return run(terms, sites, answers).words
