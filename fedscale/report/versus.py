"""Several runs side by side: one table of how they ended and one chart a metric with a curve for each run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from fedscale.errors import ConfigError
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.record import Phase, RoundRecord, RunRecord, finals
from fedscale.report.figures import FIGURES, FULL_NAMES, figure, legend, line_of, metric_keys, metric_title, styles_of
from fedscale.report.markup import Markup, table, tag
from fedscale.report.page import charts, document, replace_text, section
from fedscale.report.svg import drawable, line_chart
from fedscale.report.units import TIMES, data_size, duration, number, unit_of

MUCH_LONGER = 3.0
MARK = "\N{BLACK STAR}"


def comparison_html(runs: Mapping[str, RunRecord]) -> str:
    """One self-contained page that compares runs.

    Args:
        runs: the records by the names they are to have.
    """
    header = tag("header", tag("p", "Comparison of runs", class_="kicker"), tag("h1", " \N{MIDDLE DOT} ".join(runs)))
    return document(
        f"Comparison of {len(runs)} runs",
        header,
        *comparison_parts(runs),
        tag("footer", "fedscale \N{MIDDLE DOT} this page is self-contained and loads nothing from any network."),
    )


def comparison_parts(runs: Mapping[str, RunRecord]) -> list[Markup]:
    """The parts of that page without its frame: how the runs ended, and their curves by round and by time."""
    return [
        section("How they ended", _table(runs), tag("p", f"{MARK} marks the best value of a metric.", class_="note")),
        section("By round", charts(_figures(runs, "round", {id(row): float(row.number) for run in runs.values() for row in run.rounds}))),
        *_by_time(runs),
    ]


def comparison_rows(runs: Mapping[str, RunRecord]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table: how each run ended, with the best value of each metric marked."""
    keys = _keys(runs)
    best = {key: _best(key, runs.values()) for key in keys}
    rows = []
    for name, run in runs.items():
        last = finals(run)
        values = (_cell(last.get(key), best[key]) for key in keys)
        counts = (run.status, str(len({row.number for row in run.rounds})), duration(run.seconds), data_size(run.bytes_up + run.bytes_down))
        rows.append([name, *counts, *values, run.model_digest[:12]])
    return ["run", "status", ">rounds", ">time", ">moved", *(f">{metric_title(name)}, {FULL_NAMES[phase]}" for phase, name in keys), "model"], rows


def write_comparison(runs: Mapping[str, RunRecord], path: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, comparison_html(runs))
    except OSError as error:
        raise ConfigError("the comparison cannot be written", where=str(path), why=error.strerror or type(error).__name__) from error


def _keys(runs: Mapping[str, RunRecord]) -> list[tuple[Phase, str]]:
    """Every metric that any of the runs pooled."""
    return list(dict.fromkeys(key for run in runs.values() for key in finals(run)))


def _best(key: tuple[Phase, str], runs: Iterable[RunRecord]) -> float | None:
    """The best last value of a metric, where there is more than one to choose from."""
    values = [value for run in runs if (value := finals(run).get(key)) is not None and drawable(value)]
    choose = max if key[1] in HIGHER_IS_BETTER else min
    return choose(values) if len(set(values)) > 1 else None


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return ""
    return f"{number(value)} {MARK}" if value == best else number(value)


def _table(runs: Mapping[str, RunRecord]) -> Markup:
    head, rows = comparison_rows(runs)
    right = [name.startswith(">") for name in head]
    names = (tag("th", name.removeprefix(">"), scope="col", class_="number" if at else None) for name, at in zip(head, right, strict=True))
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", text, class_="number" if at else None) for text, at in zip(row[1:], right[1:], strict=True)),
        )
        for row in rows
    )
    return table(names, body)


def _by_time(runs: Mapping[str, RunRecord]) -> Iterator[Markup]:
    """Curves over time and, where one run took much longer than another, once more until the shorter one ended."""
    lasted = [sum(row.seconds for row in run.rounds) for run in runs.values() if run.rounds]
    for title, until in {"By time": max(lasted, default=0.0), "By time, until the first one ended": min(lasted, default=0.0)}.items():
        if title == "By time" or until * MUCH_LONGER < max(lasted, default=0.0):
            scale, unit = unit_of(until, TIMES)
            cut = {name: replace(run, rounds=tuple(_until(run, until))) for name, run in runs.items()}
            clocks = {id(row): at / scale for run in cut.values() for row, at in zip(run.rounds, _passed(run), strict=True)}
            yield section(title, charts(_figures(cut, unit, clocks)))


def _until(run: RunRecord, seconds: float) -> Iterator[RoundRecord]:
    """The phases that ended within so many seconds."""
    return (row for row, at in zip(run.rounds, _passed(run), strict=True) if at <= seconds)


def _passed(run: RunRecord) -> list[float]:
    """Seconds from the beginning to the end of each phase."""
    return list(accumulate(row.seconds for row in run.rounds))


def _figures(runs: Mapping[str, RunRecord], over: str, at: Mapping[int, float]) -> list[Markup]:
    """One chart a metric, a curve for each run in the style it has on all of them; ``at`` places a phase by its identity."""
    styles = styles_of(list(runs))
    keys = list(dict.fromkeys(key for run in runs.values() for key in metric_keys(run)))
    return [_metric(runs, styles, key, over, at) for key in keys[:FIGURES]]


def _metric(runs: Mapping[str, RunRecord], styles: Mapping[str, str], key: tuple[Phase, str], over: str, at: Mapping[int, float]) -> Markup:
    phase, name = key
    points = {
        title: [(at[id(row)], row.metrics[name]) for row in run.rounds if row.phase == phase and name in row.metrics] for title, run in runs.items()
    }
    lines = [line_of(title, found, styles[title]) for title, found in points.items() if found]
    heading = f"{metric_title(name)}, {FULL_NAMES[phase]}"
    return figure(heading, line_chart(lines, f"{heading}, by {over}", over=over), legend(lines))
