"""``Statement``: an epsilon with everything without which it means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedscale.privacy.accountant import RELATION, accountant, epsilon, epsilon_rdp
from fedscale.privacy.dp import DP
from fedscale.privacy.events import WHOLE, Mechanism, Spend, to_json
from fedscale.privacy.rounds import NODES, Way, way_of

SECRET = "each unit by itself, drawn at the site, in secret and anew for each step (Poisson)"  # noqa: S105 - a sentence
KNOWN = "counts for nothing: whoever draws the sample may be the adversary"
NONE = "none"
ZEROED = "zero out the contribution of one unit"
ANSWERS = "zero the answers of one node"
PICKED = "not counted, for the server picks the nodes"
LOCAL = "by each site in secret"
MAKERS: dict[Way, str] = {
    "dpsgd": "at each site, enough by itself",
    "union": "in shares by all sites, enough in their sum",
    "fedavg": "in shares by all sites, enough in their sum",
    "ftrl": "by the coordinator, whom the sites must trust with it; it hides nodes from all others",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """What is promised about one unit.

    Args:
        unit: whose presence is hidden: record, patient or node.
        relation: which two data sets an observer cannot tell apart.
        sampling: who is in a release, and whether that is counted.
        delta: chance with which the promise may fail.
        epsilon: the reported bound, with amplification by sampling only where the sample is secret.
        without_amplification: the bound were every sample known.
        renyi: the Renyi bound under the same assumptions as ``epsilon``.
        accountant: what computed them, with versions.
        spends: what was released.
    """

    unit: str
    relation: str
    sampling: str
    delta: float
    epsilon: float
    without_amplification: float
    renyi: float
    accountant: str
    spends: tuple[Spend, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON; the spends as in ``events``."""
        names = ("unit", "relation", "sampling", "delta", "epsilon", "without_amplification", "renyi", "accountant")
        return {name: getattr(self, name) for name in names} | {"spends": to_json(self.spends)}


def state(spends: Sequence[Spend], delta: float, unit: str, *, secret: bool = True) -> Statement:
    """The statement about some releases.

    Args:
        spends: the releases.
        delta: chance with which the promise may fail.
        unit: whose presence is hidden.
        secret: whether nobody but the site knows who was sampled; where somebody does, sampling counts for nothing.

    Raises:
        ConfigError: ``delta`` is not between 0 and 1.
    """
    everybody = tuple(map(unamplified, spends))
    counted = tuple(spends) if secret else everybody
    sampling = NONE if counted == everybody == tuple(spends) else SECRET if secret else KNOWN
    relation = ZEROED if any(spend.mechanism == Mechanism.TREE for spend in spends) else RELATION
    quoted, plain = epsilon(counted, delta), epsilon(everybody, delta)
    return Statement(unit, relation, sampling, delta, quoted, plain, epsilon_rdp(counted, delta), accountant(), tuple(spends))


def promised(dp: DP, *, masked: bool) -> dict[str, float | str]:
    """What a plan promises about each unit in all its rounds together, for a run's record: ``epsilon`` is spent at most.

    Args:
        dp: the plan's promise.
        masked: whether the plan turns secure aggregation on.

    Raises:
        PlanError: the plan's privacy cannot be made.
    """
    way = way_of(dp, masked=masked)
    return {
        "epsilon": dp.epsilon,
        "delta": dp.delta,
        "planned": dp.epsilon,
        "unit": dp.unit,
        "mechanism": way,
        "neighbours": ANSWERS if way in NODES else RELATION,
        "sampling": PICKED if way in NODES else LOCAL,
        "noise": MAKERS[way],
    }


def unamplified(spend: Spend) -> Spend:
    """The same release by somebody who shows who was sampled: everybody counts as being in each."""
    return spend if spend.mechanism in WHOLE else replace(spend, sampling_rate=1.0)
