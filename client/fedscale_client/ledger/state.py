"""What the entries of a ledger come to: a fold that takes each entry once and refuses one that cannot have happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fedscale.errors import FedscaleError
from fedscale.privacy.events import Spend, repeated
from fedscale_client.ledger.claims import Claim
from fedscale_client.ledger.lines import Kind, Said

BEFORE = {Kind.RELEASE: "reserved", Kind.COMMIT: "released", Kind.REFUND: "reserved"}


@dataclass(slots=True)
class Item:
    """A reservation and what became of it.

    Args:
        seq: number of the entry that made it.
        claim: what was asked.
        at: when.
        release: what left and when, once it left.
        commit: what the coordinator said of it.
        refund: why nothing left, if nothing did.
        free: why its run needs no room any more, if that was said.
    """

    seq: int
    claim: Claim
    at: str
    release: dict[str, Any] | None = None
    commit: dict[str, Any] | None = None
    refund: dict[str, Any] | None = None
    free: dict[str, Any] | None = None

    @property
    def standing(self) -> str:
        """``refunded``, ``committed``, ``released`` or ``reserved``."""
        steps = {"refunded": self.refund, "committed": self.commit, "released": self.release}
        return next((name for name, facts in steps.items() if facts is not None), "reserved")


@dataclass(frozen=True, slots=True)
class Hold:
    """Room under a cap that a run keeps for what it will yet ask. It lets nothing pass that the cap refuses: it only keeps others out.

    Args:
        item: the reservation that the run began with.
        answers: how many more it is for.
    """

    item: Item
    answers: int

    @property
    def run(self) -> str:
        """Whose room it is."""
        return self.item.claim.run

    @property
    def spends(self) -> tuple[Spend, ...]:
        """What it is for."""
        return tuple(more for spend in self.item.claim.spends or () for more in repeated(spend, self.answers))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"run": self.run, "answers": self.answers, "until": self.item.claim.until}


@dataclass(slots=True)
class State:
    """The ledger up to its entry ``last``, number and hash."""

    last: tuple[int, str]
    items: dict[int, Item] = field(default_factory=dict)

    def objection(self, entry: Said) -> str:
        """Why an entry cannot come next; empty when it can."""
        if entry.kind == Kind.RESERVE:
            return "" if entry.reservation == entry.seq else f"entry {entry.seq} reserves for another"
        item = self.items.get(entry.reservation)
        if entry.kind == Kind.FREE:
            return "" if item and item.claim.answers and item.free is None else f"entry {entry.seq}: no {entry.kind} of what keeps no room"
        standing = item.standing if item else "unknown"
        return "" if standing == BEFORE[Kind(entry.kind)] else f"entry {entry.seq}: no {entry.kind} of what is {standing}"

    def take(self, entry: Said) -> str:
        """Take the next entry; why that cannot be, empty when it can."""
        try:
            if problem := self.objection(entry):
                return problem
            facts = json.loads(entry.facts)
            if entry.kind == Kind.RESERVE:
                self.items[entry.seq] = Item(entry.seq, Claim.from_json(facts), entry.at)
            else:
                setattr(self.items[entry.reservation], entry.kind, {**facts, "at": entry.at})
        except (FedscaleError, ValueError, TypeError, KeyError):
            return f"entry {entry.seq} makes no sense"
        self.last = (entry.seq, entry.digest)
        return ""

    def about(self, population: str, unit: str, data: str = "") -> tuple[Item, ...]:
        """The reservations of a population and unit, also under other names of the same data."""
        names = kin(self.items.values(), population, {data})
        return tuple(item for item in self.items.values() if item.claim.unit == unit and item.claim.population in names)

    def sent(self, key: tuple[str, str, int], digest: str) -> Item | None:
        """The reservation under which the same bytes have left for the same task."""
        return next((item for item in self.items.values() if item.release and item.claim.key == key and item.release["digest"] == digest), None)


def kin(items: Iterable[Item], population: str, data: Collection[str]) -> frozenset[str]:
    """The population and all others that were seen with some of the same data, by their SHA-256: a new name gives nobody a new budget."""
    return frozenset({population} | {item.claim.population for item in items if item.claim.data and item.claim.data in data})


def counting(items: Iterable[Item]) -> list[Item]:
    """What counts: everything that was not given back."""
    return [item for item in items if item.refund is None]


def holds(items: Iterable[Item], now: datetime) -> tuple[Hold, ...]:
    """The room that runs keep at a moment; each answer takes from that of its run."""
    begun: dict[str, Item] = {}
    given: Counter[str] = Counter()
    for item in items:
        run = item.claim.run
        if item.claim.answers:
            begun[run], given[run] = item, 0
        given[run] += item.refund is None and bool(item.claim.spends)
    kept = (Hold(item, item.claim.answers - given[run]) for run, item in begun.items())
    return tuple(hold for hold in kept if hold.answers > 0 and hold.item.free is None and now < datetime.fromisoformat(hold.item.claim.until))


def spends_of(items: Iterable[Item]) -> tuple[Spend, ...]:
    """All spends of reservations, in their order."""
    return tuple(spend for item in items for spend in item.claim.spends or ())
