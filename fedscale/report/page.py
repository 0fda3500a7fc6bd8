"""A run as one self-contained HTML page to print, send or archive, and the folder of files that every run leaves.

The page holds its style and its drawings, runs no script and asks no network for anything; a policy in its head makes the
browser enforce that.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from fedscale import files
from fedscale.errors import ConfigError, Failure
from fedscale.record import JSON, RoundRecord, RunRecord, closed_rounds, finals, metrics_csv, participants, summary
from fedscale.report.figures import (
    FULL_NAMES,
    comparison,
    drawable_number,
    flat,
    metric_figures,
    metric_title,
    participation_figure,
    plain_text,
    traffic_figures,
)
from fedscale.report.markup import Markup, pairs, table, tag
from fedscale.report.timeline import timeline
from fedscale.report.units import data_size, duration, number, ranges

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TONES = {"good": ("completed", "finished"), "bad": ("failed", "refused")}
SIGNS = {"good": "\N{CHECK MARK}", "bad": "\N{MULTIPLICATION X}", "neutral": "\N{BLACK CIRCLE}"}
PLACED = ("comparison", "privacy", "secagg", "seed", "seeds", "versions", "hashes")
TILES, TABLE_ROWS, LISTED_NODES = 6, 200, 8
NO_METRIC = "No metric to show: the plan asked for none, or too few examples answered together (evaluate.min_cell)."
NONE_CLOSED = "No metric to show: no round came to its end; the failures below say why."


def write(record: RunRecord, folder: Path) -> dict[str, Path]:
    """Leave ``summary.json``, ``metrics.csv``, ``metrics.json`` (the whole record) and ``report.html`` in ``folder``.

    Each file is replaced in one step, so a reader finds the old one or the new one, never half of one.

    Returns:
        The name of each file and where it lies.

    Raises:
        ConfigError: the folder cannot be written.
    """
    texts = {
        "summary.json": json.dumps(summary(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "metrics.csv": metrics_csv(record),
        "metrics.json": record.to_json() + "\n",
        "report.html": html(record),
    }
    return replaced(folder, texts)


def replaced(folder: Path, texts: Mapping[str, str]) -> dict[str, Path]:
    """Write files by name, each in one step; returns where each lies.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_text(folder / name, text)
    except OSError as error:
        raise ConfigError("the run's files cannot be written", where=str(folder), why=error.strerror or type(error).__name__) from error
    return {name: folder / name for name in texts}


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step; OSError where that fails."""
    files.write(path, text.encode("utf-8", "replace"), mode=files.SHARED)


def html(record: RunRecord) -> str:
    """The report: valid HTML, every text escaped, no script, nothing loaded from anywhere."""
    return document(f"{record.name}: federated run {record.run}", _header(record), *_sections(record), _footer(record))


def curves(record: RunRecord) -> str:
    """The metric curves alone, as a page of their own in the style of the report."""
    figures = charts(metric_figures(record)) or tag("p", "No round was closed, so there is nothing to draw.", class_="empty")
    return document(f"{record.name}: metrics by round", figures)


def document(title: str, *parts: str) -> str:
    """A whole page in the style of all reports."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(resources.files("fedscale.report").joinpath("style.css").read_text("utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en')}\n"


def _sections(record: RunRecord) -> Iterator[Markup]:
    compared = comparison(record.extra.get("comparison"))
    if compared is not None:
        yield section("Alone, federated, in one place", compared)
    if not record.rounds:
        yield tag("p", "No round was closed, so there is nothing to draw. The plan below is what was asked for.", class_="empty")
    else:
        yield section("Metrics", charts(metric_figures(record)) or tag("p", NO_METRIC if closed_rounds(record) else NONE_CLOSED, class_="empty"))
        yield section("Participation", participation_figure(record))
        if lanes := timeline(record):
            yield section("Timeline", *lanes)
    if any(row.failures for row in record.rounds):
        yield section("Failures", *_failures(record))
    if secagg := _named(record.extra.get("secagg")):
        yield section("Secure aggregation", pairs(secagg.items()))
    if privacy := _named(record.extra.get("privacy")):
        yield section("Privacy", pairs(privacy.items()))
    if record.rounds:
        yield section("Time and traffic", _traffic_text(record), charts(traffic_figures(record)), _rounds(record))
    yield section("Plan", tag("pre", record.plan_toml) if record.plan_toml.strip() else tag("p", "No plan was kept.", class_="empty"))
    if facts := _reproduction(record):
        yield section("To repeat this run", pairs(facts.items()))
    if further := _named({key: value for key, value in record.extra.items() if key not in PLACED}):
        yield section("Further facts", pairs(further.items()))


def section(title: str, *parts: str) -> Markup:
    """A part of a page with its heading."""
    return tag("section", tag("h2", title), *parts)


def charts(figures: list[Markup]) -> Markup:
    """Figures side by side; nothing without any."""
    return tag("div", *figures, class_="charts") if figures else Markup()


def _header(record: RunRecord) -> Markup:
    tone = next((tone for tone, words in TONES.items() if record.status.lower() in words), "neutral")
    rounds = closed_rounds(record)
    facts = [
        _count(len(participants(record)), "node"),
        _count(rounds, "round"),
        duration(record.seconds),
        f"{data_size(record.bytes_up + record.bytes_down)} moved",
        f"run {record.run}",
    ]
    return tag(
        "header",
        tag("p", "Federated training report", class_="kicker"),
        tag("h1", record.name or record.run),
        tag("p", tag("span", f"{SIGNS[tone]} {record.status}", class_=f"status {tone}"), " \N{MIDDLE DOT} ".join(facts), class_="facts"),
        tag("p", record.reason, class_=f"reason {tone}") if record.reason else "",
        _tiles(record),
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _tiles(record: RunRecord) -> Markup:
    """The final metrics in large figures, with the spread over the sites, and the privacy spent."""
    last: dict[tuple[str, str], RoundRecord] = {(row.phase, name): row for row in record.rounds for name in row.metrics}
    tiles: list[tuple[str, ...]] = []
    for (phase, name), value in list(finals(record).items())[:TILES]:
        row = last[phase, name]
        sites = [metrics[name] for metrics in row.sites.values() if drawable_number(metrics.get(name)) is not None]
        spread = f"sites {number(min(sites))}\N{EN DASH}{number(max(sites))}" if len(sites) > 1 else ""
        tiles.append((metric_title(name), number(value), f"{FULL_NAMES[phase]}, round {row.number}", spread))
    privacy = record.extra.get("privacy")
    if isinstance(privacy, Mapping) and (epsilon := drawable_number(privacy.get("epsilon"))) is not None:
        notes = (f"{name} {plain_text(privacy[name])}" for name in ("delta", "unit") if name in privacy)
        tiles.append(("Privacy, epsilon", f"{epsilon:.3g}", *notes))
    drawn = (
        tag("div", tag("dt", name), tag("dd", value, class_="big"), *(tag("dd", note, class_="small") for note in notes), class_="tile")
        for name, value, *notes in tiles
    )
    return tag("dl", *drawn, class_="tiles") if tiles else Markup()


def _failures(record: RunRecord) -> Iterator[Markup]:
    """One line a failure, however many nodes and rounds it met; the most frequent first."""
    met: dict[Failure, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in record.rounds:
        for node, failure in row.failures.items():
            met[failure][node].append(row.number)
    often = sorted(met.items(), key=lambda entry: _times(entry[1]), reverse=True)
    times = tag("th", "Times", scope="col", class_="number")
    yield table(("Cause", times, "What happened", "Where", "What to do", "Nodes and rounds"), [_failure_row(*entry) for entry in often[:TABLE_ROWS]])
    if len(often) > TABLE_ROWS:
        yield tag("p", f"{len(often) - TABLE_ROWS} further failures are listed in metrics.json.", class_="note")


def _times(nodes: Mapping[str, list[int]]) -> int:
    return sum(map(len, nodes.values()))


def _failure_row(failure: Failure, nodes: Mapping[str, list[int]]) -> Markup:
    most = sorted(nodes.items(), key=lambda entry: -len(entry[1]))
    listed = [tag("div", f"{node}: {ranges(rounds)}") for node, rounds in most[:LISTED_NODES]]
    rest = tag("div", f"and {len(most) - LISTED_NODES} more nodes") if len(most) > LISTED_NODES else ""
    trace = tag("details", tag("summary", "frames"), tag("pre", failure.traceback)) if failure.traceback else ""
    return tag(
        "tr",
        tag("th", failure.cause, scope="row", class_="cause"),
        tag("td", str(_times(nodes)), class_="number"),
        tag("td", failure.what, trace),
        tag("td", tag("code", failure.where)),
        tag("td", failure.hint),
        tag("td", *listed, rest),
    )


def _traffic_text(record: RunRecord) -> Markup:
    per_round = record.seconds / max(closed_rounds(record), 1)
    moved = f"{data_size(record.bytes_down)} to the nodes, {data_size(record.bytes_up)} from them"
    return tag("p", f"{duration(record.seconds)} in all, {duration(per_round)} a round; {moved}.")


def _rounds(record: RunRecord) -> Markup:
    """Every phase of every round in numbers, folded away."""
    rows = [
        tag(
            "tr",
            tag("td", str(row.number)),
            tag("td", FULL_NAMES[row.phase]),
            *(tag("td", text, class_="number") for text in _round_cells(row)),
            tag("td", ", ".join(f"{metric_title(name)} {number(value)}" for name, value in row.metrics.items())),
        )
        for row in record.rounds[-TABLE_ROWS:]
    ]
    title = f"The last {TABLE_ROWS} phases in numbers; metrics.csv has all" if len(record.rounds) > TABLE_ROWS else "Every round in numbers"
    numbers = (tag("th", text, scope="col", class_="number") for text in ("Answered", "Failed", "Weight", "Time", "To nodes", "From nodes"))
    return tag("details", tag("summary", title), table(("Round", "Phase", *numbers, "Metrics"), rows))


def _round_cells(row: RoundRecord) -> tuple[str, ...]:
    weight = f"{row.weight:.10g}" if row.weight and math.isfinite(row.weight) else "not told"
    return (str(len(row.answered)), str(len(row.failures)), weight, duration(row.seconds), data_size(row.bytes_down), data_size(row.bytes_up))


def _reproduction(record: RunRecord) -> dict[str, str | Markup]:
    seed = record.extra.get("seed", _plan_seed(record.plan_toml))
    facts: dict[str, JSON] = {"plan": record.plan_hash, "model": record.model_digest}
    hashes = record.extra.get("hashes")
    facts |= hashes if isinstance(hashes, Mapping) else {}
    codes: dict[str, str | Markup] = {f"{name} hash": tag("code", text) for name, text in _named(facts).items() if text}
    return codes | _named({"seed": seed, "seeds": record.extra.get("seeds")}) | _named(record.extra.get("versions"))


def _named(value: JSON) -> dict[str, str]:
    return flat(value, " \N{MIDDLE DOT} ")


def _plan_seed(plan_toml: str) -> JSON:
    """The plan's own seed; nothing where the plan is not one."""
    try:
        job = tomllib.loads(plan_toml).get("job")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    seed = job.get("seed") if isinstance(job, dict) else None
    return seed if isinstance(seed, int) else None


def _footer(record: RunRecord) -> Markup:
    return tag("footer", f"fedscale \N{MIDDLE DOT} run {record.run} \N{MIDDLE DOT} this page is self-contained and loads nothing from any network.")
