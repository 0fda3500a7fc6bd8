"""The simulator's table as a picture: a bar for everybody's pace on each workload, as long beside ours as it is slower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedscale.report.markup import Markup, tag

WIDTH, NAMES, PACE = 720.0, 190.0, 300.0
ROW, BAR, HEAD, FOOT = 24.0, 14.0, 34.0, 6.0
STYLE = """text { font: 13px sans-serif; fill: #444 } .head { font-weight: bold } .end { text-anchor: end } .bar { fill: #9db4cc }
.ours { fill: #1f5fa8 } svg { background: #fff }"""
TITLES = {
    "w1": "W1: a CNN of 545,098 parameters, 50 of 1,000 clients",
    "w2": "W2: a perceptron of 50,890 parameters, 1,000 of 10,000 clients",
    "w3": "W3: a transformer of 661,992 parameters, 20 of 200 clients",
}


def drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    """A plot that stands for itself, of rows as ``simulator.bench`` gives them: SVG."""
    parts, top = list[Markup](), 0.0
    for workload in dict.fromkeys(row["workload"] for row in rows):
        group = sorted((row for row in rows if row["workload"] == workload), key=lambda row: -row["clients_per_s"])
        parts.append(tag("text", TITLES[workload], x=0.0, y=top + HEAD - 12, class_="head"))
        parts += (part for at, row in enumerate(group) for part in _bar(row, group[0]["clients_per_s"], top + HEAD + ROW * at))
        top += HEAD + ROW * len(group)
    label = "clients trained per second by each simulator on three workloads"
    box = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH:g} {top + FOOT:g}", "role": "img", "aria_label": label}
    return str(tag("svg", tag("style", Markup(STYLE)), *parts, **box)) + "\n"


def _bar(row: Mapping[str, Any], fastest: float, top: float) -> Iterator[Markup]:
    """A line of the plot."""
    length, base, kind = max(1.0, PACE * row["clients_per_s"] / fastest), top + ROW - 8, "bar ours" if row["who"] == "fedscale" else "bar"
    bound, over = ("fewer than ", "over ") if row.get("unfinished") else ("", "")
    slower = f", fedscale {over}{_number(row['ratio'])}x" if row["who"] != "fedscale" and "ratio" in row else ""
    yield tag("text", row["who"], x=NAMES - 8, y=base, class_="end")
    yield tag("rect", x=NAMES, y=base - BAR + 3, width=length, height=BAR, class_=kind)
    yield tag("text", f"{bound}{_number(row['clients_per_s'])} clients/s{slower}", x=NAMES + length + 8, y=base)


def _number(value: float) -> str:
    """A figure for people, of three digits or as a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
