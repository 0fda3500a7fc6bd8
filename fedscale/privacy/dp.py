"""``DP``: the privacy a plan asks for, in a plan's ``[privacy]`` table and as ``privacy=fs.DP(...)`` in Python."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedscale.tables import Section

# What each site holds against its own cap, which it tells nobody before it is asked.
CAPS = "a site whose cap has less room refuses before its first round, and nothing of it is spent"


class DP(Section):
    """Differential privacy of a run: at most ``epsilon`` at ``delta`` for all its planned rounds together.

    ``unit`` is whose presence is hidden: a ``record`` (a row), a ``patient`` (all rows of one group) or a whole ``node``. ``clip`` bounds the
    L2 norm of what one unit contributes. ``mechanism`` ``auto`` takes DP-SGD at each site for records and patients, or noise shared by
    all sites where secure aggregation is on, and clipped updates with noise for nodes. ``sampling_rate`` is the chance of each record or
    patient to be in a step where the noise is shared; DP-SGD's follows from the batch size.

    Where nodes are hidden, the clip may find its size: with ``clip_quantile`` it begins at ``clip`` and moves, round by round, to the norm
    within which that share of the nodes' changes stays. That is no part of what is secret, and its cost is within ``epsilon``.
    ``mechanism`` ``ftrl`` hides nodes without secure aggregation: the coordinator adds noise that goes together over trees of
    ``tree_rounds`` rounds (0: all rounds), to each of which a node answers at most once.

    Rows held out for evaluation are never trained on, and ``epsilon`` says nothing about them: ``metrics`` lets their exact sums leave
    inside secure aggregation only (``pooled``) or from each site in the clear (``exact``). The same holds for a node's held-out rows.
    """

    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float = Field(gt=0, lt=1)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    unit: Literal["record", "patient", "node"] = "record"
    mechanism: Literal["auto", "dpsgd", "union", "fedavg", "ftrl"] = "auto"
    clip_quantile: float | None = Field(None, gt=0, lt=1)
    tree_rounds: int = Field(0, ge=0, le=1_000_000)
    sampling_rate: float = Field(1.0, gt=0, le=1)
    metrics: Literal["pooled", "exact"] = "pooled"

    @property
    def need(self) -> str:
        """What a run asks of each of its sites, in words."""
        return f"epsilon {self.epsilon:g} at delta {self.delta:g} for each {self.unit}"
