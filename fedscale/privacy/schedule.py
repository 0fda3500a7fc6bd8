"""``Schedule``: how much noise and how many steps DP-SGD takes at one site, so that all planned rounds together keep the promise.

A site computes its own schedule from the plan, its own policy and its own number of units; nothing of it is taken from a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedscale.errors import PlanError
from fedscale.learner import Training
from fedscale.privacy.accountant import noise_multiplier
from fedscale.privacy.dp import DP
from fedscale.privacy.events import Mechanism, Spend


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one round of a private run does.

    Args:
        noise_multiplier: standard deviation of the noise on the sum of clipped contributions, over the clip.
        sampling_rate: chance of each unit to be in a step, drawn at the site and in secret; 1 where everybody is.
        steps: noisy steps a round.
        clip: largest L2 norm of what one unit contributes to a step.
        unit: whose presence is hidden.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip: float
    unit: Literal["record", "patient", "node"]

    @property
    def spend(self) -> Spend:
        """What one round costs."""
        return Spend(str(Mechanism.SAMPLED_GAUSSIAN), self.noise_multiplier, self.sampling_rate, self.steps)


def schedule(dp: DP, training: Training, rounds: int, units: int) -> Schedule:
    """DP-SGD at one site.

    Args:
        dp: the promise.
        training: epochs and batch size, which become a sampling rate and a number of steps.
        rounds: all rounds that the run plans.
        units: records or patients of the site that may be sampled.

    Raises:
        PlanError: no rounds or no units.
    """
    if rounds < 1:
        raise PlanError("a private run needs at least one round", where="strategy.rounds")
    if units < 1:
        raise PlanError("there is nothing to sample from", where="train.batch_size", why=f"{units} units of privacy")
    batch = training.batch_size
    rate = min(1.0, batch / units)
    steps = -(-training.epochs * max(units, batch) // batch)  # epochs / rate, rounded up in whole numbers
    steps = steps if training.max_steps is None else min(steps, training.max_steps)
    noise = noise_multiplier(dp.epsilon, dp.delta, sampling_rate=rate, steps=rounds * steps)
    return Schedule(noise, rate, steps, dp.clip, dp.unit)
