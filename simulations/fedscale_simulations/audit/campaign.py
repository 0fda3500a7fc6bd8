"""An audit: releases with canaries in them, judged, and attacks on what a server holds, with and without protection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedscale.privacy.accountant import epsilon
from fedscale.privacy.audit.attacks import Records, inverted, likeness, membership
from fedscale.privacy.audit.canaries import CERTIFICATE, CONFIDENCE, Estimate, Matrix, canaries, estimate, guesses, lower_bound, scores
from fedscale.privacy.events import Mechanism, Spend
from fedscale.secagg.keys import KEY
from fedscale.secagg.prg import Mask, masked
from fedscale.vector import Vector
from fedscale_simulations.audit.pipeline import Fault, Pipeline

ROUNDS = 2
CORRECT = "the correct mechanism"
# Canaries come this many clips long, so that a clip which does not clip is seen.
LENGTH = 10.0
RECORDS, TRIES = 400, 5
# So many seeds of masks are all different, unless they have far fewer bits than they should: of 28 bits, 32 would be there twice.
SEEDS, MASKS = 1 << 17, "masks"
# From where on an attack has worked; likeness up to which inversion has failed; chance deviations of an area under the curve.
SUCCESS, UNLIKE, SLACK = 0.9, 0.3, 0.08


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found.

    Args:
        claimed: the epsilon of one release, by its noise multiplier.
        estimates: of each round with all canaries in.
        certificate: the epsilon below which the release cannot be, with ``CONFIDENCE``.
        flags: what is wrong; empty where nothing is.
    """

    claimed: float
    estimates: tuple[Estimate, ...]
    certificate: float
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        rounds = [each.to_json() for each in self.estimates]
        return {"claimed": self.claimed, "rounds": rounds, "certificate": self.certificate, "confidence": CONFIDENCE, "flags": list(self.flags)}


def audit(pipeline: Pipeline, count: int, delta: float, seed: int) -> Verdict:
    """Send canaries through a pipeline and judge what comes out.

    Args:
        pipeline: what is audited.
        count: canaries in a release.
        delta: at which epsilon is told.
        seed: of canaries and coins; the noise is the pipeline's own.
    """
    chance = np.random.default_rng(seed)
    claimed = epsilon([Spend(str(Mechanism.SKELLAM), pipeline.noise_multiplier)], delta)
    found = []
    for number in range(1, ROUNDS + 1):
        planted = canaries(count, pipeline.size, chance)
        released = pipeline.released(_dealt(planted, pipeline), number)
        found.append(estimate(scores(released, planted, pipeline.clip), pipeline.noise_multiplier, delta))
    certificate = _certified(pipeline, count, delta, chance)
    flags = {flag for each in found for flag in each.flags} | ({CERTIFICATE} if certificate > claimed else set())
    flags |= {MASKS} if len(np.unique(pipeline.seeds(SEEDS).view(f"V{KEY}"))) < SEEDS else set()
    return Verdict(claimed, tuple(found), certificate, tuple(sorted(flags)))


def _dealt(planted: Matrix, pipeline: Pipeline) -> list[Matrix]:
    """Canaries dealt to the nodes, each much longer than the clip, and to the first node one unit more that is no number at all."""
    long = planted * np.float32(LENGTH * pipeline.clip)
    dealt = [long[at :: pipeline.nodes] for at in range(pipeline.nodes)]
    return [np.vstack([dealt[0], np.full((1, pipeline.size), np.nan, np.float32)]), *dealt[1:]]


def _certified(pipeline: Pipeline, count: int, delta: float, chance: np.random.Generator) -> float:
    """The lower bound of one release in which each canary is by the toss of a coin."""
    planted = canaries(count, pipeline.size, chance)
    inside = chance.integers(0, 2, count).astype(bool)
    released = pipeline.released(_dealt(planted[inside], pipeline), ROUNDS)
    taken = max(1, count // 16)
    right = guesses(scores(released, planted, pipeline.clip), inside, taken)
    return lower_bound(right, 2 * taken, count, delta)


@dataclass(frozen=True, slots=True)
class Attacked:
    """How far two attacks get on what a server holds.

    Args:
        held: one of ``VIEWS``.
        membership: area under the curve; 0.5 is a guess.
        inversion: likeness of the guessed record to the true one, mean of several tries; 1 is the record itself.
    """

    held: str
    membership: float
    inversion: float


def attack(pipeline: Pipeline, seed: int) -> list[Attacked]:
    """Membership inference and gradient inversion on each of ``VIEWS`` of the same made-up training."""
    chance = np.random.default_rng(seed)
    members, others = (Records.made_up(RECORDS, pipeline.size - 1, chance) for _ in range(2))
    single = [Records.made_up(pipeline.nodes, pipeline.size - 1, chance) for _ in range(TRIES)]
    found = []
    for name, view in VIEWS.items():
        known = members if view in SUMS else members.part(slice(0, None, pipeline.nodes))
        drawn = membership(view(pipeline, _shared(members, pipeline.nodes)), known, others)
        alike = [_alike(view(pipeline, _shared(each, pipeline.nodes)), each if view in SUMS else each.part(slice(1))) for each in single]
        found.append(Attacked(name, drawn, float(np.mean(alike))))
    return found


def allowed(noise_multiplier: float) -> float:
    """The area under the curve beyond which membership inference on one noisy sum would contradict the noise, with room for chance."""
    return 0.5 * (1 + math.erf(1 / (2 * noise_multiplier))) + SLACK


def protected(found: Sequence[Attacked], noise_multiplier: float) -> tuple[bool, bool]:
    """Whether the attacks work on plain answers, so that they mean something, and whether they fail on all that is protected."""
    by_name, most = {each.held: each for each in found}, allowed(noise_multiplier)
    power = by_name[PLAIN].membership >= SUCCESS and by_name[PLAIN].inversion >= SUCCESS
    fail = all(by_name[name].membership <= most and by_name[name].inversion <= UNLIKE for name in (MASKED, NOISY))
    return power, fail


@dataclass(frozen=True, slots=True)
class Finding:
    """How often an audit raised its alarm about a pipeline with a known bug, or without one."""

    fault: str
    flagged: int
    runs: int
    wanted: int

    @property
    def passed(self) -> bool:
        """Whether each bug was found each time, and none where there was none."""
        return self.flagged == self.wanted


def self_test(bench: Pipeline, count: int, delta: float, seed: int, runs: int) -> list[Finding]:
    """Audit a pipeline with each known bug ``runs`` times, and twice as often without any."""
    found = []
    for fault in (None, *Fault):
        times = runs if fault else 2 * runs
        pipeline = replace(bench, fault=fault)
        flagged = sum(bool(audit(pipeline, count, delta, seed + at).flags) for at in range(times))
        found.append(Finding(str(fault or CORRECT), flagged, times, times if fault else 0))
    return found


def _shared(records: Records, nodes: int) -> list[Matrix]:
    """The gradients of records dealt to nodes."""
    return [records.part(slice(at, None, nodes)).gradients() for at in range(nodes)]


def _alike(held: Vector, records: Records) -> float:
    """The likeness of what inversion gives to the record it is most like."""
    guess = inverted(held)
    return max(abs(likeness(guess, row)) for row in records.features)


def _plain(pipeline: Pipeline, rows: list[Matrix]) -> Vector:
    """One node's answer without noise and masks: what plain federated averaging sends."""
    silent = replace(pipeline, fault=Fault.NO_NOISE)
    return silent.layout.format.decode(silent.answer(rows[0], 0, 1)[: silent.size])


def _masked(pipeline: Pipeline, rows: list[Matrix]) -> Vector:
    """One node's answer without noise under a mask, as it travels."""
    silent = replace(pipeline, fault=Fault.NO_NOISE)
    words = masked(silent.answer(rows[0], 0, 1), [Mask(pipeline.seeds(1).tobytes())])
    return silent.layout.format.decode(words[: silent.size])


def _sum(pipeline: Pipeline, rows: list[Matrix]) -> Vector:
    """The sum of all answers without noise: what secure aggregation alone gives away."""
    return replace(pipeline, fault=Fault.NO_NOISE).released(rows)


def _noisy(pipeline: Pipeline, rows: list[Matrix]) -> Vector:
    """The sum of all answers with noise."""
    return pipeline.released(rows)


PLAIN, MASKED, SUM, NOISY = "one answer in the clear", "one masked answer", "the sum", "the sum with noise"
VIEWS: dict[str, Callable[[Pipeline, list[Matrix]], Vector]] = {PLAIN: _plain, MASKED: _masked, SUM: _sum, NOISY: _noisy}
SUMS = (_sum, _noisy)
