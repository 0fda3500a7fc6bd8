"""What the pages show, derived from records alone: how far a run is, what needs attention, which failures were met. No clock, no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedscale.advice import next_step
from fedscale.cli.rounds import fraction
from fedscale.errors import Failure
from fedscale.record import RunRecord, finals, participants
from fedscale.report.units import ranges
from fedscale_server.answers import RunInfo, Site, Status

RECENT_ROUNDS = 5
QUIET_SECONDS = 86_400.0
OVER = ("completed", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:
        info: the run.
        fraction: how much of it is done, in [0, 1].
        eta_seconds: how long it will go on if its next rounds take as long as the last; None while nothing is known, and once it is over.
        since: number of the journal line from which on to watch for a picture of the last rounds.
    """

    info: RunInfo
    fraction: float
    eta_seconds: float | None
    since: int


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a person should look at, how bad it is, and what to do."""

    level: str
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """One failure, however many rounds it met at a site."""

    site: str
    phase: str
    rounds: str
    last: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Share:
    """What a site contributed to a run; ``metrics`` are its newest, where the plan shows them."""

    site: str
    answered: int
    failed: int
    metrics: Mapping[tuple[str, str], float]


def progress(info: RunInfo, record: RunRecord, since: int) -> Progress:
    """How far a run is, and for how long it will go on."""
    if info.status in OVER:
        return Progress(info, 1.0 if info.status == "completed" else fraction(info.number, info.rounds, info.phase, 0.0), None, since)
    done = fraction(info.number, info.rounds, info.phase, 0.0)
    seconds: dict[int, float] = defaultdict(float)
    for row in record.rounds:
        if row.number < info.number:
            seconds[row.number] += row.seconds
    recent = [seconds[number] for number in sorted(seconds)[-RECENT_ROUNDS:]]
    eta = sum(recent) / len(recent) * info.rounds * (1 - done) if recent and info.status == "running" else None
    return Progress(info, done, eta, since)


def attention(status: Status, records: Mapping[str, RunRecord], now: float, curves: Mapping[str, tuple[int, int]] | None = None) -> list[Remark]:
    """What a coordinator should look at, the worst first.

    Args:
        status: the server at a glance.
        records: those of the runs that go on, by id.
        now: seconds since the epoch.
        curves: of each sink of curves, how many phases it was too slow for and how many runs it gets no more of.
    """
    of_runs = (remark for info in status.runs for remark in _of_run(info, records.get(info.run), status.nodes))
    found = [*_of_sites(status, now), *_of_curves(curves or {}), *of_runs]
    return sorted(found, key=lambda remark: ("bad", "warn", "info").index(remark.level))


def _of_sites(status: Status, now: float) -> Iterator[Remark]:
    members = [site for site in status.nodes if not site.revoked]
    for site in members:
        away = now - site.last_seen
        if not site.last_seen:
            yield Remark("info", f"{site.name} has joined and never connected", "at the site: fedscale node start")
        elif not site.connected and away > QUIET_SECONDS:
            yield Remark("warn", f"{site.name} has been away for {away // QUIET_SECONDS:.0f} days", "at the site: fedscale node doctor")
    others = [f"{site.name} ({site.version})" for site in members if site.connected and site.version != status.version]
    if others:
        yield Remark("info", f"other releases than the coordinator's {status.version}: {', '.join(others)}", "bring all to the same release")


def _of_curves(curves: Mapping[str, tuple[int, int]]) -> Iterator[Remark]:
    for sink, (dropped, failed) in curves.items():
        if failed:
            yield Remark("warn", f"{sink} gets no curves of {failed} runs any more; the runs go on", "see the coordinator's log")
        if dropped:
            yield Remark("info", f"{sink} is too slow: {dropped} phases of rounds wait until their runs are over", "see: /metrics")


def _of_run(info: RunInfo, record: RunRecord | None, sites: Sequence[Site]) -> Iterator[Remark]:
    if info.status == "paused":
        yield Remark("warn", f"run {info.run} is paused", f"go on: fedscale run resume {info.run}")
    elif not info.number:
        there = sum(site.connected and site.project == info.project for site in sites)
        yield Remark("info", f"run {info.run} waits to begin; {there} sites of {info.project} are connected", f"see: fedscale run watch {info.run}")
    last = record.rounds[-1] if record and record.rounds else None
    for site, failure in last.failures.items() if last else ():
        yield Remark("bad", f"{site} failed in round {last.number if last else 0} of {info.run}: {failure.cause}: {failure.what}", failure.hint)


def troubles(record: RunRecord) -> list[Trouble]:
    """Each failure of each site with the rounds it met, the newest first."""
    met: dict[tuple[str, str, Failure], list[int]] = defaultdict(list)
    for row in record.rounds:
        for site, failure in row.failures.items():
            met[site, row.phase, failure].append(row.number)
    found = [Trouble(site, phase, ranges(rounds), max(rounds), advised(failure)) for (site, phase, failure), rounds in met.items()]
    return sorted(found, key=lambda trouble: -trouble.last)


def advised(failure: Failure) -> Failure:
    """A failure with a next step, whoever has forgotten to name one."""
    return failure if failure.hint else replace(failure, hint=next_step(failure.cause))


def shares(record: RunRecord) -> list[Share]:
    """What each site contributed, in the order in which the run knew them."""
    answered, failed = defaultdict[str, int](int), defaultdict[str, int](int)
    newest: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in record.rounds:
        for site in row.answered:
            answered[site] += 1
        for site in row.failures:
            failed[site] += 1
        for site, metrics in row.sites.items():
            newest[site].update({(row.phase, name): value for name, value in metrics.items()})
    wanted = finals(record)
    return [Share(s, answered[s], failed[s], {key: newest[s][key] for key in wanted if key in newest[s]}) for s in participants(record)]


def differences(plans: Iterable[tuple[str, Mapping[str, object]]]) -> list[tuple[str, list[str]]]:
    """The settings in which plans differ, each with its value in every plan.

    Args:
        plans: names and settings as nested mappings.
    """
    flat = [dict(_flat(plan)) for _, plan in plans]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "") for settings in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
