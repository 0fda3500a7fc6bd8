"""Sites and a learner without torch, for tests of the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedscale.learner import Phase, Result, Work
from fedscale.plan import Plan
from fedscale.run import Run
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Alone
from fedscale_simulations.engines.sequential import Sequential

Place: TypeAlias = tuple[str, Phase, int]


@dataclass(frozen=True)
class Site:
    """A client whose data are one number, so many times."""

    name: str
    target: float
    rows: int = 20


def sites(count: int = 4) -> dict[str, Site]:
    """Clients with different targets and sizes."""
    return {f"site-{at}": Site(f"site-{at}", 0.25 * at, 10 + 5 * at) for at in range(count)}


class Mean:
    """Moves a model of three equal coordinates half the way to a site's target.

    Args:
        faults: what to raise, by site, phase and round.
        answers: what to return instead.
    """

    def __init__(self, faults: Mapping[Place, BaseException] | None = None, answers: Mapping[Place, Any] | None = None) -> None:
        self.faults, self.answers = dict(faults or {}), dict(answers or {})
        self.calls: list[Place] = []

    def run(self, work: Work) -> Result:
        site: Site = work.data
        place = (site.name, work.phase, work.number)
        self.calls.append(place)
        if place in self.faults:
            raise self.faults[place]
        if place in self.answers:
            answer: Result = self.answers[place]
            return answer
        if work.arrays is None:
            return Result({"w": np.zeros(3, np.float32)}, 0)
        model = work.arrays["w"]
        loss = np.array([float(np.square(model - np.float32(site.target)).mean()) * site.rows])
        if work.phase is Phase.EVALUATE:
            return Result(None, site.rows, dict.fromkeys(work.metrics, loss))
        return Result({"w": model + np.float32(0.5) * (np.float32(site.target) - model)}, site.rows, {"loss": loss})

    def worked(self, phase: Phase, number: int) -> list[str]:
        """Who did this, sorted."""
        return sorted(name for name, of, at in self.calls if (of, at) == (phase, number))


def plan_of(**tables: Any) -> Plan:
    """A plan with these tables."""
    return Plan.model_validate({"job": {"name": "test", "seed": 3}, **tables})


def engine_of(run: Run, learner: Mean, data: Mapping[str, Site]) -> Sequential:
    """The engine of a run."""
    desk = Desk(run.plan, run.strategy, learner, data)
    return Sequential(desk, Alone(desk))


def always(name: str, phase: Phase, error: BaseException, rounds: Iterable[int] = range(20)) -> dict[Place, BaseException]:
    """A client that fails in every round."""
    return {(name, phase, number): error for number in rounds}
