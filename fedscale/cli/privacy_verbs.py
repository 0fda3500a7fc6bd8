"""``fedscale privacy``: what releases cost, how much noise keeps a promise, and what a plan would cost before anybody trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group

from fedscale import console
from fedscale.cli.options import Json, Settings
from fedscale.cli.privacy_plot import write_plot
from fedscale.errors import ConfigError, PlanError
from fedscale.plan import Plan
from fedscale.privacy.accountant import noise_multiplier
from fedscale.privacy.dp import CAPS, DP
from fedscale.privacy.events import Mechanism, Spend, read
from fedscale.privacy.outlook import Prospect, Trade, prospects, trades
from fedscale.privacy.statement import Statement, state

PROMISED: Literal["record"] = "record"
Delta = Annotated[float, typer.Option(help="Chance with which the promise may fail.")]
Unit = Annotated[Literal["record", "patient", "node"], typer.Option(help="Whose presence is hidden; part of the statement.")]


def epsilon(
    events: Annotated[Path, typer.Argument(help="JSON: a list of {mechanism, noise_multiplier, sampling_rate, steps}.")],
    *,
    delta: Delta,
    unit: Unit = PROMISED,
    json: Json = False,
) -> None:
    """Compose a list of releases."""
    said = state(_events(events), delta, unit)
    data = {"pld": said.epsilon, "rdp": said.renyi, "delta": delta, "statement": said.to_json()}
    console.emit(data, console.facts(_told(said)), as_json=json)


def noise(
    *,
    epsilon: Annotated[float, typer.Option(help="The most that all releases together may cost.")],
    delta: Delta,
    sampling_rate: Annotated[float, typer.Option(help="Chance of each unit to be in a release, drawn in secret; 1 for everybody.")] = 1.0,
    steps: Annotated[int, typer.Option(help="How many releases.")] = 1,
    mechanism: Annotated[Mechanism, typer.Option(help="How they are made private.")] = Mechanism.SAMPLED_GAUSSIAN,
    spent: Annotated[Path | None, typer.Option(help="Events that were released before, as JSON, and count too.")] = None,
    unit: Unit = PROMISED,
    json: Json = False,
) -> None:
    """Find the least noise that keeps a promise."""
    before = () if spent is None else _events(spent)
    found = noise_multiplier(epsilon, delta, sampling_rate=sampling_rate, steps=steps, mechanism=str(mechanism), spent=before)
    said = state([*before, Spend(str(mechanism), found, sampling_rate, steps)], delta, unit)
    data = {"noise_multiplier": found, "pld": said.epsilon, "rdp": said.renyi, "delta": delta, "statement": said.to_json()}
    console.emit(data, console.facts({"noise multiplier": f"{found:.6g}", **_told(said)}), as_json=json)


def plan(
    job: Annotated[Path, typer.Argument(help="A job.toml, or the folder that holds it.")],
    *,
    units: Annotated[list[int] | None, typer.Option(help="Records or patients at a site; once for each site, or once for all.")] = None,
    sites: Annotated[int | None, typer.Option(help="How many sites, where --units is given once; as many as a round needs.")] = None,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option(help="A page to write with noise against epsilon.")] = None,
    json: Json = False,
) -> None:
    """Show what a job's privacy costs and what noise it takes, before anybody trains."""
    asked = Plan.load(job / "job.toml" if job.is_dir() else job, settings or ())
    if asked.privacy is None:
        raise PlanError("the plan asks for no privacy", where=str(job), hint="add a [privacy] table with epsilon, delta and clip")
    counts = _counts(units, sites, asked)
    found = prospects(asked.privacy, asked.train, asked.strategy.rounds, counts, masked=asked.secagg.enabled)
    traded = [trade for prospect in found for trade in trades(prospect, asked.privacy.delta)]
    if plot is not None:
        write_plot(asked.job.name, found, traded, plot)
    data = {"rounds": asked.strategy.rounds, "units": counts, "mechanisms": [prospect.to_json() for prospect in found]}
    data |= {"each_site_needs": {"epsilon": asked.privacy.epsilon, "delta": asked.privacy.delta, "unit": asked.privacy.unit}}
    data |= {"tradeoff": [asdict(trade) for trade in traded], "plot": None if plot is None else str(plot)}
    console.emit(data, _shown(asked.privacy, found, traded), as_json=json)


def _events(path: Path) -> tuple[Spend, ...]:
    """The events in a file.

    Raises:
        ConfigError: unreadable or malformed, with the file and the event in ``where``.
    """
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the events", where=str(path), why=getattr(error, "strerror", "") or "it is not UTF-8 text") from None
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{path}{error.where}", why=error.why, hint=error.hint) from None


def _counts(units: Sequence[int] | None, sites: int | None, asked: Plan) -> list[int]:
    """Units of each site; those that a plan cannot know must be given."""
    if not units:
        if asked.privacy is not None and asked.privacy.unit != "node":
            raise ConfigError("how many units a site has is not in the plan", where="--units", hint="add --units N, once or for each site")
        units = [1]
    if len(units) > 1 and sites not in (None, len(units)):
        raise ConfigError(f"{len(units)} sizes for {sites} sites", where="--sites", hint="leave --sites out")
    if len(units) > 1:
        return list(units)
    select = asked.clients.select
    found = sites or max(asked.clients.min_per_round, select if isinstance(select, int) else 1)
    return list(units) * found


def _told(said: Statement) -> dict[str, object]:
    """A statement for a person."""
    return {
        "epsilon (PLD)": f"{said.epsilon:.6g}",
        "epsilon (RDP)": f"{said.renyi:.6g}",
        "without amplification": f"{said.without_amplification:.6g}",
        "delta": f"{said.delta:g}",
        "unit": said.unit,
        "neighbours": said.relation,
        "sampling": said.sampling,
        "accountant": said.accountant,
    }


NOTE = "* the plan's own; noise: its standard deviation on a coordinate of a step's mean over sites; sample known: epsilon without amplification"


def _shown(dp: DP, found: Sequence[Prospect], traded: Sequence[Trade]) -> Group:
    """Mechanisms, what other noise would give, what sites are asked for, and the assumptions."""
    numbers = (">units", ">noise multiplier", ">rate", ">steps", ">noise in clips", ">epsilon a round", ">epsilon", ">sample known")
    # Of the sites one is enough for a look: the smallest, which needs the most noise.
    smallest = {each.mechanism: min(one.units for one in found if one.mechanism == each.mechanism) for each in found}
    other = [
        (trade.mechanism, trade.units, f"{trade.noise_multiplier:.4g}", f"{trade.noise:.3g}", f"{trade.epsilon:.4g}")
        for trade in traded
        if trade.units == smallest[trade.mechanism]
    ]
    chosen = next((each for each in found if each.chosen), found[0]).statement
    needs = f"{dp.need}; {CAPS}"
    told = {
        "each site needs": needs,
        "delta": f"{chosen.delta:g}",
        "neighbours": chosen.relation,
        "sampling": chosen.sampling,
        "accountant": chosen.accountant,
    }
    return Group(
        console.table(("mechanism", "hides a", *numbers), map(_row, found)),
        console.text(NOTE),
        console.table(("mechanism", ">units", ">noise multiplier", ">noise in clips", ">epsilon"), other),
        console.facts(told),
    )


def _row(each: Prospect) -> tuple[object, ...]:
    """A mechanism as a line of the table."""
    said, spend = each.statement, each.spend
    name = f"{each.mechanism}{' *' if each.chosen else ''}"
    numbers = (f"{each.noise:.3g}", f"{each.per_round:.3g}", f"{said.epsilon:.4g}", f"{said.without_amplification:.4g}")
    return (name, said.unit, each.units, f"{spend.noise_multiplier:.4g}", f"{spend.sampling_rate:.4g}", spend.steps, *numbers)
