"""What a ledger comes to: epsilon of each population and unit, a statement for a run, and a receipt for each answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedscale.cli.lazy import later
from fedscale.errors import NotFound
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import to_json
from fedscale_client.ledger.claims import Cap
from fedscale_client.ledger.state import Hold, Item, counting, holds, kin, spends_of


@dataclass(frozen=True, slots=True)
class Account:
    """One population and unit.

    Args:
        population: whose data.
        unit: whose presence is hidden; empty for what left without protection.
        items: all reservations that were not given back.
        holds: the room that runs under way keep.
        cap: the site's limit, if there is one.
        delta: at which epsilon is told.
    """

    population: str
    unit: str
    items: tuple[Item, ...]
    holds: tuple[Hold, ...]
    cap: Cap | None
    delta: float

    @property
    def epsilon(self) -> float:
        """What all of it costs together."""
        return epsilon(spends_of(self.items), self.delta)

    @property
    def promised(self) -> float:
        """What it will have cost when all runs under way have come to their end."""
        return epsilon((*spends_of(self.items), *(spend for hold in self.holds for spend in hold.spends)), self.delta)

    def to_json(self) -> dict[str, Any]:
        """Plain values; an epsilon that is not finite is null."""
        told: dict[str, Any] = {"population": self.population, "unit": self.unit, "epsilon": finite(self.epsilon), "delta": self.delta}
        told |= {"promised": finite(self.promised), "holds": [hold.to_json() for hold in self.holds]}
        counts = {"answers": len(self.items), "runs": len({item.claim.run for item in self.items})}
        return told | {"cap": None if self.cap is None else self.cap.epsilon} | counts | {"spends": to_json(spends_of(self.items))}


def accounts(items: Sequence[Item], caps: dict[str, Cap], now: datetime, delta: float | None = None) -> list[Account]:
    """The accounts of a ledger, by population and unit.

    Args:
        items: all reservations.
        caps: the site's limits by population.
        now: the moment, for the room that runs keep.
        delta: at which epsilon is told; by default the cap's, else the smallest that a plan asked for.
    """
    kept = holds(items, now)
    begun = [hold.item for hold in kept if hold.item.refund is not None]
    counted = [*(item for item in counting(items) if item.claim.spends), *begun]
    made = []
    for population, unit in sorted({(item.claim.population, item.claim.unit) for item in counted}):
        names = kin(counted, population, {item.claim.data for item in counted if item.claim.population == population})
        own = [item for item in counted if item.claim.unit == unit and item.claim.population in names]
        cap = caps.get(population)
        cap = cap if cap and cap.unit == unit else None
        smallest = min(item.claim.delta for item in own)
        room = tuple(hold for hold in kept if hold.item in own)
        made.append(Account(population, unit, tuple(counting(own)), room, cap, delta or (cap.delta if cap else smallest)))
    return made


def uncovered(items: Iterable[Item]) -> list[Item]:
    """Answers that left, or may have, and that no epsilon covers."""
    return [item for item in items if item.refund is None and item.claim.spends is None]


def statement(items: Iterable[Item], run: str, site: str) -> dict[str, Any]:
    """What this site guarantees about its part in a run.

    Raises:
        NotFound: the ledger knows no such run.
    """
    own = [item for item in items if item.claim.run == run and item.refund is None]
    if not own:
        raise NotFound(f"this site has answered nothing in run '{run}'", hint="see: fedscale privacy ledger")
    claims = [item.claim for item in own]
    told: dict[str, Any] = {"run": run, "site": site, "dataset": claims[0].dataset, "population": claims[0].population, "plan": claims[0].plan}
    told |= {"answers": len(own), "not_covered": [f"{claim.phase} {claim.number}" for claim in claims if claim.spends is None]}
    covered = [claim for claim in claims if claim.spends]
    if not covered:
        return told
    said = later("fedscale.privacy.statement:state")(spends_of(own), min(claim.delta for claim in covered), covered[0].unit).to_json()
    return told | {name: finite(value) if isinstance(value, float) else value for name, value in said.items()}


def receipt(item: Item) -> dict[str, Any]:
    """What left with one answer, and what became of it."""
    claim, release, commit = item.claim, item.release or {}, item.commit or {}
    cost = None if claim.spends is None else finite(epsilon(claim.spends, claim.delta)) if claim.spends else 0.0
    return {
        "run": claim.run,
        "phase": claim.phase,
        "round": claim.number,
        "at": release.get("at", item.at),
        "bytes": release.get("size"),
        "sha256": release.get("digest"),
        "parts": [{"name": name, "shape": shape} for name, shape in release.get("parts", ())],
        "masked": release.get("masked"),
        "epsilon": cost,
        "delta": claim.delta or None,
        "dataset": claim.dataset,
        "app": claim.app,
        "plan": claim.plan,
        "coordinator": claim.coordinator,
        "verdict": commit.get("verdict"),
        "reason": commit.get("reason"),
    }


def finite(value: float) -> float | None:
    """A number as JSON knows it; ``None`` for one beyond all bounds."""
    return value if math.isfinite(value) else None
