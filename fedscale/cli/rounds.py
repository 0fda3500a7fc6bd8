"""Rounds, failures and results as lines and tables, the same for deployed and simulated runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fedscale import console
from fedscale.record import RunRecord, closed_rounds, finals, participants
from fedscale.report.units import data_size, duration, number

TRAINING_SHARE = 0.75
ALL_SITES = "all sites"
SITES_SHOWN = 60


def fraction(number: int, rounds: int, phase: str, within: float) -> float:
    """How much of a run is done, in [0, 1], ``within`` a phase of a round; training counts three times the evaluation."""
    if not number:
        return 0.0
    part = TRAINING_SHARE + within * (1 - TRAINING_SHARE) if phase == "evaluate" else within * TRAINING_SHARE
    return min((number - 1 + part) / max(rounds, 1), 1.0)


def failure(detail: Mapping[str, Any]) -> str:
    """``cause: where: what; hint`` of a failure in its JSON form."""
    place = f"{detail['where']}: " if detail.get("where") else ""
    hint = f"; {detail['hint']}" if detail.get("hint") else ""
    return f"{detail.get('cause', 'unknown')}: {place}{detail.get('what', '')}{hint}"


def round_line(place: str, detail: Mapping[str, Any]) -> str:
    """A closed round in one line: who answered, the pooled metrics, time and bytes.

    Args:
        place: phase and number.
        detail: the round's record in its JSON form.
    """
    answered, asked = len(detail.get("answered", ())), len(detail.get("answered", ())) + len(detail.get("failures", ()))
    values = "  ".join(f"{name} {number(value)}" for name, value in detail.get("metrics", {}).items())
    moved = data_size(detail.get("bytes_up", 0) + detail.get("bytes_down", 0))
    return f"{place:<15} {answered} of {asked} nodes  {values}  {duration(detail.get('seconds', 0.0))}  {moved}"


def results(record: RunRecord) -> Table:
    """The last metrics of all sites together and of each where the plan shows them, with how often it answered and failed."""
    last = finals(record)
    answered = Counter(node for row in record.rounds for node in row.answered)
    failed = Counter(node for row in record.rounds for node in row.failures)
    single = {(row.phase, site, name): value for row in record.rounds for site, values in row.sites.items() for name, value in values.items()}
    rows: list[Sequence[object]] = [(ALL_SITES, "", "", *map(number, last.values()))]
    sites = participants(record)
    for site in sites[:SITES_SHOWN]:
        values = (single.get((phase, site, name)) for phase, name in last)
        rows.append((site, answered[site], failed[site], *("" if value is None else number(value) for value in values)))
    if len(sites) > SITES_SHOWN:
        rows.append((f"and {len(sites) - SITES_SHOWN} more", "", "", *("" for _ in last)))
    names = (f">{name} ({'held out' if phase == 'evaluate' else 'training'})" for phase, name in last)
    return console.table(("site", ">answers", ">failures", *names), rows)


def totals(record: RunRecord) -> str:
    """Status, rounds, time and bytes in one line."""
    rounds = closed_rounds(record)
    moved = f"{data_size(record.bytes_up)} from the nodes, {data_size(record.bytes_down)} to them"
    return f"run {record.run} {record.status} after {rounds} round{'' if rounds == 1 else 's'} in {duration(record.seconds)}; {moved}"
