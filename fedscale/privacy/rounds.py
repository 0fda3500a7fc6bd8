"""What one round of a private run does and costs at one site: the one place that trainer and ledger both ask.

All of it follows from the plan and from the site's own number of units, so a site needs to take nothing of it from a server.
Sources: Abadi et al. 2016 (DP-SGD); McMahan et al. 2018 (DP-FedAvg); Agarwal et al. 2021 (Skellam noise in shares).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, TypeAlias

from fedscale.errors import PlanError
from fedscale.learner import Phase, Private, Training
from fedscale.privacy.accountant import GRID_STEPS, noise_multiplier
from fedscale.privacy.clip import BIT, AdaptiveClip
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Mechanism, Spend, repeated
from fedscale.privacy.schedule import schedule

Way: TypeAlias = Literal["dpsgd", "union", "fedavg", "ftrl"]
NODES: tuple[Way, ...] = ("fedavg", "ftrl")
# Each site adds a share of the noise, and only the sum has enough.
SHARED: tuple[Way, ...] = ("union", "fedavg")

# How far a clip may move from where it began, up or down.
FARTHEST = 1e6


def way_of(dp: DP, *, masked: bool) -> Way:
    """How a plan's privacy is made; ``masked`` says whether the server sees sums only.

    Raises:
        PlanError: unit and mechanism do not go together, or noise in shares is asked for without secure aggregation.
    """
    node = dp.unit == "node"
    way: Way = dp.mechanism if dp.mechanism != "auto" else "fedavg" if node else "union" if masked else "dpsgd"
    if (way in NODES) != node:
        hint = 'use unit = "node" with mechanism = "fedavg" or "ftrl", and "record" or "patient" with "dpsgd" or "union"'
        raise PlanError(f"mechanism '{way}' does not hide a {dp.unit}", where="privacy.mechanism", hint=hint)
    if way in SHARED and not masked:
        why = "each site adds only its share of the noise, so nobody may see a single answer"
        raise PlanError(f"privacy by '{way}' needs secure aggregation", where="privacy.mechanism", why=why, hint="set secagg.enabled = true")
    return way


def spend_of(dp: DP, training: Training, rounds: int, phase: Phase, units: int, *, masked: bool) -> Spend | None:
    """What a site's answer in one round of that phase costs, or ``None`` where nothing of the protected rows leaves.

    Args:
        dp: the promise.
        training: the plan's local training.
        rounds: all rounds that the run plans.
        phase: of the task.
        units: records or patients in the site's whole dataset, see ``privacy.units``; any number where nodes are hidden.
        masked: whether the plan turns secure aggregation on.

    Raises:
        PlanError: the plan's privacy cannot be made, or no noise keeps its promise.
    """
    way = way_of(dp, masked=masked)
    if phase is not Phase.TRAIN:
        return None
    if way == "dpsgd":
        return _sgd_spend(dp, training, rounds, units)
    if way == "ftrl":
        return Spend(str(Mechanism.TREE), tree_noise(dp, rounds), 1.0, tree_of(dp, rounds))
    rate = dp.sampling_rate if way == "union" else 1.0
    return Spend(str(Mechanism.SKELLAM), _noise(dp.epsilon, dp.delta, rounds, rate), rate, 1)


def spends_over(spend: Spend, rounds: int) -> tuple[Spend, ...]:
    """What so many rounds of one kind cost a unit."""
    return repeated(spend, answers_over(spend, rounds))


def answers_over(spend: Spend, rounds: int) -> int:
    """In how many answers so many rounds of one kind are paid for; each tree goes over as many rounds as it has steps, and is paid for once."""
    return -(-rounds // spend.steps) if spend.mechanism == Mechanism.TREE else rounds


@lru_cache(maxsize=4096)
def _sgd_spend(dp: DP, training: Training, rounds: int, units: int) -> Spend:
    """A round of DP-SGD at a site of so many units; calibrating takes a moment, so it is done once."""
    return schedule(dp, training, rounds, units).spend


@lru_cache(maxsize=64)
def _noise(epsilon: float, delta: float, rounds: int, rate: float) -> float:
    """Noise multiplier of one sum a round."""
    return noise_multiplier(epsilon, delta, sampling_rate=rate, steps=rounds, mechanism=str(Mechanism.SKELLAM))


def tree_of(dp: DP, rounds: int) -> int:
    """Rounds of one tree of ``ftrl``."""
    return min(dp.tree_rounds or rounds, rounds)


@lru_cache(maxsize=64)
def tree_noise(dp: DP, rounds: int) -> float:
    """Noise multiplier of each node of the trees: a unit is in one node of each level of each tree."""
    length = tree_of(dp, rounds)
    return noise_multiplier(dp.epsilon, dp.delta, steps=-(-rounds // length) * length.bit_length(), mechanism=str(Mechanism.GAUSSIAN))


def most_noise(dp: DP, releases: int) -> float:
    """More than the noise multiplier of so many releases can ever be, in closed form (Bun and Steinke 2016).

    Server and nodes lay answers out alike with it and need no accountant for that.
    """
    logs = math.log(1 / dp.delta)
    rho = (math.sqrt(logs + dp.epsilon) - math.sqrt(logs)) ** 2
    return 1.1 * math.sqrt(releases / (2 * rho))


def reach(dp: DP, training: Training) -> float:
    """The most by which one unit moves what a site sends in a round of ``union`` or ``fedavg``: L2 norm, before rounding, its bit included."""
    if dp.unit == "node":
        return dp.clip * (1.0 if dp.clip_quantile is None else math.hypot(1.0, BIT))
    return dp.clip * training.optimizer.lr / training.batch_size


def in_round(dp: DP, clip: float) -> DP:
    """The promise with the clip of one round, where that moves; what it costs is the same.

    The clip comes from a server. It is no secret and no sensitivity that anybody claims: change and noise are both made with it, and
    under secure aggregation all nodes agree on it or none answers.

    Args:
        dp: the promise.
        clip: of the round; 0 for the plan's own.

    Raises:
        PlanError: the plan's clip does not move, or not as far.
    """
    if not clip:
        return dp
    if dp.clip_quantile is None or not dp.clip / FARTHEST <= clip <= dp.clip * FARTHEST:
        raise PlanError("a round has another clip than the plan allows", where="privacy.clip", hint="node and coordinator may run different releases")
    return dp.model_copy(update={"clip": clip})


def adaptive(dp: DP | None) -> AdaptiveClip | None:
    """The moving clip of a promise as ``in_round`` gives it; ``None`` where the clip is fixed."""
    return None if dp is None or dp.clip_quantile is None else AdaptiveClip(dp.clip, dp.clip_quantile)


def moved(dp: DP, clip: float) -> float:
    """A clip of the next round, kept within what ``in_round`` allows."""
    return min(max(clip, dp.clip / FARTHEST), dp.clip * FARTHEST)


def makers(fewest: int, adversarial: float) -> int:
    """How many sites' shares of the noise can be relied on: the fewest that answer, less those that may tell theirs."""
    return max(1, fewest - int(adversarial * fewest))


def room(dp: DP, training: Training, rounds: int, shares: int) -> float:
    """What one site's share of the noise may add to a coordinate: 16 standard deviations of the most noise there can be."""
    return 16 * most_noise(dp, rounds) * reach(dp, training) / math.sqrt(shares)


def private_of(dp: DP, training: Training, rounds: int, units: int, *, masked: bool, key: bytes | None = None) -> Private:
    """What a site tells its learner for one round of training.

    Args:
        key: of all chance, for a simulation that can be repeated; never in a deployment.

    The other arguments are those of ``spend_of``.

    Raises:
        PlanError: as ``spend_of``.
    """
    spend = spend_of(dp, training, rounds, Phase.TRAIN, units, masked=masked)
    if spend is None:
        raise PlanError("training without a spend cannot be private", where="privacy")
    way = way_of(dp, masked=masked)
    return Private(dp.unit, way, dp.clip, spend.noise_multiplier, spend.sampling_rate, spend.steps, float(training.batch_size), key)


def in_shares(private: Private, reached: float, size: int, exponent: int, shares: int) -> float:
    """Standard deviation, on the integer grid of ``exponent``, of one site's share of the noise.

    Rounding ``size`` coordinates to the grid moves the difference of two answers by at most ``sqrt(size)``, which counts as reach.

    Args:
        private: the round's.
        reached: see ``reach``.
        size: coordinates of the model.
        exponent: of the fixed point format.
        shares: see ``makers``.

    Raises:
        PlanError: the grid is so coarse that rounding would cost a quarter of the noise, or discrete noise be unlike Gaussian.
    """
    reached, rounding = reached * 2.0**exponent, math.sqrt(size)
    if rounding > reached / 4 or reached < GRID_STEPS:
        hint = "raise privacy.clip or train.optimizer.lr, or lower aggregate.bound"
        raise PlanError("the ring is too coarse for noise in shares", where="privacy", why=f"rounding {size} coordinates weighs too much", hint=hint)
    return private.noise_multiplier * (reached + rounding) / math.sqrt(shares)


def require(dp: DP, training: Training, *, masked: bool, evaluated: bool, holdout: float) -> Way:
    """Refuse what cannot be kept of a plan's privacy, before anybody trains; how it is made otherwise.

    Args:
        dp: the promise.
        training: the plan's local training.
        masked: whether secure aggregation is on.
        evaluated: whether the run evaluates.
        holdout: share of the rows that is never trained on.

    Raises:
        PlanError: with the setting to change.
    """
    way = way_of(dp, masked=masked)
    if dp.clip_quantile is not None and way == "ftrl":
        why = "a node of a tree hides the sum of many rounds, and they would have been clipped differently"
        raise PlanError("the clip of 'ftrl' cannot move", where="privacy.clip_quantile", why=why, hint="leave it out")
    if dp.clip_quantile is not None and way != "fedavg":
        why = "whether a record's gradient is within the clip would have to be told of each record"
        raise PlanError("only the clip of whole nodes can move", where="privacy.clip_quantile", why=why, hint='leave it out, or set unit = "node"')
    if dp.tree_rounds and way != "ftrl":
        raise PlanError("only ftrl has trees", where="privacy.tree_rounds", hint='leave it out, or set privacy.mechanism = "ftrl"')
    if way not in NODES and training.amp:
        raise PlanError("gradients cannot be clipped one by one in mixed precision", where="train.amp", hint="set train.amp = false")
    if way == "union":
        _require_one_step(training)
    if way in NODES or not evaluated:
        return way
    if not holdout:
        why = "evaluation on rows that are trained on would say more about them than epsilon allows"
        hint = "hold some out, or set evaluate.every = 0"
        raise PlanError("privacy needs rows held out for evaluation", where="evaluate.holdout", why=why, hint=hint)
    if dp.metrics == "pooled" and not masked:
        hint = 'turn secagg on, set evaluate.every = 0, or say metrics = "exact" in [privacy]'
        raise PlanError("without secure aggregation each site's metrics would leave as they are", where="privacy.metrics", hint=hint)
    return way


def _require_one_step(training: Training) -> None:
    """Refuse local training that a single step of all sites together cannot be."""
    optimizer = training.optimizer
    local = {
        "train.epochs": training.epochs > 1,
        "train.max_steps": training.max_steps is not None,
        "train.optimizer.name": optimizer.name != "sgd",
        "train.optimizer.momentum": optimizer.momentum > 0,
        "train.optimizer.weight_decay": optimizer.weight_decay > 0,
    }
    if asked := [setting for setting, given in local.items() if given]:
        why = "with noise in shares a round is one step of all sites together"
        hint = 'leave it out and let the server have the momentum (fedavgm, fedadam), or set privacy.mechanism = "dpsgd"'
        raise PlanError(f"{asked[0]} has no meaning for privacy by 'union'", where=asked[0], why=why, hint=hint)
