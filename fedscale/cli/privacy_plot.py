"""Noise against epsilon as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fedscale.errors import ConfigError
from fedscale.privacy.outlook import Prospect, Trade
from fedscale.report.figures import figure, legend, line_of, styles_of
from fedscale.report.markup import Markup, pairs, table, tag
from fedscale.report.page import charts, document, replace_text, section
from fedscale.report.svg import line_chart
from fedscale.report.units import number

LARGEST = 64.0


def write_plot(name: str, found: Sequence[Prospect], traded: Sequence[Trade], path: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, plot_html(name, found, traded))
    except OSError as error:
        raise ConfigError("the plot cannot be written", where=str(path), why=error.strerror or type(error).__name__) from error


def plot_html(name: str, found: Sequence[Prospect], traded: Sequence[Trade]) -> str:
    """The page: a curve for each mechanism, the numbers behind it, and what they rest on."""
    titles = {(each.mechanism, each.units): f"{each.mechanism}, {each.units} units" if each.units > 1 else each.mechanism for each in found}
    styles = styles_of(list(titles.values()))
    lines = []
    for key, title in titles.items():
        points = sorted((trade.epsilon, math.log10(trade.noise)) for trade in traded if (trade.mechanism, trade.units) == key)
        lines.append(line_of(title, [point for point in points if point[0] <= LARGEST] or points[:1], styles[title]))
    heading = "Noise in clips on a coordinate of one step's mean over all sites, as a power of ten"
    chart = line_chart(lines, f"{heading}, by epsilon", over="epsilon of all rounds")
    header = tag("header", tag("p", "Privacy outlook", class_="kicker"), tag("h1", name))
    return document(
        f"{name}: privacy before training",
        header,
        section("Noise against epsilon", charts([figure(heading, chart, legend(lines, values=False))])),
        section("In numbers", _table(traded)),
        section("What the numbers rest on", *(_assumptions(each) for each in found)),
    )


def _table(traded: Sequence[Trade]) -> Markup:
    rows = (
        tag("tr", tag("td", trade.mechanism), *(tag("td", text, class_="number") for text in _cells(trade)))
        for trade in sorted(traded, key=lambda trade: (trade.mechanism, trade.units, trade.noise))
    )
    numbers = (tag("th", text, scope="col", class_="number") for text in ("Units", "Noise multiplier", "Noise in clips", "Epsilon"))
    return table(("Mechanism", *numbers), rows)


def _cells(trade: Trade) -> tuple[str, ...]:
    return (str(trade.units), number(trade.noise_multiplier), number(trade.noise), number(trade.epsilon))


def _assumptions(prospect: Prospect) -> Markup:
    said = prospect.statement
    facts = {
        "mechanism": prospect.mechanism,
        "hides a": said.unit,
        "units": str(prospect.units),
        "delta": f"{said.delta:g}",
        "epsilon": number(said.epsilon),
        "epsilon were samples known": number(said.without_amplification),
        "neighbours": said.relation,
        "sampling": said.sampling,
        "accountant": said.accountant,
    }
    return pairs(facts.items())
