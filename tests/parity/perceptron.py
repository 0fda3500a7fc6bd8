"""A multilayer perceptron on digits, at sites that answer whenever they like; one of them fails in the second round."""

from __future__ import annotations

import random
import time

from torch import nn

from fedscale import App
from fedscale.learner import Phase, Result, Work
from fedscale.torch_learner import as_learner

LONGEST_PAUSE = 0.3
FAILS, AT = 2, 2


def model() -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


class Unpunctual:
    """Answers after a pause that differs from node to node and round to round."""

    def __init__(self, mark: int | None = None) -> None:
        self._learner = as_learner(App(model=model, loss=nn.functional.cross_entropy, metrics=["accuracy"]))
        self._mark = mark

    def run(self, work: Work) -> Result:
        if work.phase is Phase.TRAIN and work.number == AT and work.data.groups[0] == self._mark:
            raise RuntimeError("this site fails in this round")
        time.sleep(random.Random(work.seed).uniform(0.0, LONGEST_PAUSE))
        return self._learner.run(work)


app = Unpunctual()
failing = Unpunctual(FAILS)
