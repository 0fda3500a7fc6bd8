"""Diagrams of state machines, drawn from the transition tables of the code: ``{machine} round``."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from docutils import nodes
from docutils.parsers.rst import Directive

from fedscale.round import MOVES
from fedscale_client.ledger.state import BEFORE

Moves: TypeAlias = Mapping[tuple[str, str], str]
AFTER = {"release": "released", "commit": "committed", "refund": "refunded"}
WIDE, HIGH, BOX = 230, 120, 110


def of_round() -> Moves:
    """What may happen to one node of a round's cohort."""
    return {(str(state), event): str(after) for (state, event), after in MOVES.items()}


def of_ledger() -> Moves:
    """What may happen to one reservation in a site's ledger."""
    return {(before, str(kind)): AFTER[str(kind)] for kind, before in BEFORE.items()}


TABLES: dict[str, Callable[[], Moves]] = {"round": of_round, "ledger": of_ledger}


def places(moves: Moves) -> dict[str, tuple[float, float]]:
    """The centre of each state: those that are reached first stand to the left, those that nothing leaves in the last column."""
    starts = dict.fromkeys(before for before, _ in moves)
    ends = [after for after in dict.fromkeys(moves.values()) if after not in starts]
    columns = [[state] for state in starts] + [ends]
    tall = max(len(column) for column in columns)
    return {
        state: (BOX / 2 + 10 + x * WIDE, 60 + HIGH * (y + (tall - len(column)) / 2))
        for x, column in enumerate(columns)
        for y, state in enumerate(column)
    }


def svg(moves: Moves) -> str:
    """A machine as SVG that takes its colour from the text around it."""
    at = places(moves)
    edges: dict[tuple[str, str], list[str]] = {}
    for (before, event), after in moves.items():
        edges.setdefault((before, after), []).append(event)
    width = max(x for x, _ in at.values()) + BOX / 2 + 10
    height = max(y for _, y in at.values()) + 70
    tip = '<path d="M0 0L8 4L0 8z" fill="currentColor"/>'
    arrow = f'<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">{tip}</marker>'
    drawn = [f"<defs>{arrow}</defs>", *(_edge(at[a], at[b], ", ".join(events)) for (a, b), events in edges.items()), *(_state(n, at[n]) for n in at)]
    label = html.escape("; ".join(f"{before}, {event}: {after}" for (before, event), after in moves.items()), quote=True)
    style = "width:100%;max-width:760px;height:auto;font:14px system-ui,sans-serif"
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:.0f} {height:.0f}" style="{style}">{"".join(drawn)}</svg>'


def _state(name: str, place: tuple[float, float]) -> str:
    x, y = place
    box = f'<rect x="{x - BOX / 2}" y="{y - 19}" width="{BOX}" height="38" rx="8" fill="none" stroke="currentColor" stroke-width="1.6"/>'
    return f'{box}<text x="{x}" y="{y + 5}" text-anchor="middle" fill="currentColor" font-weight="600">{html.escape(name)}</text>'


def _edge(start: tuple[float, float], end: tuple[float, float], events: str) -> str:
    """An arrow; one that goes back, or over another column, is bent out of the way."""
    (x1, y1), (x2, y2) = start, end
    forward = x2 > x1
    bend = (0 if x2 - x1 <= WIDE else -70 if y2 <= y1 else 70) if forward else 60
    x1, x2 = (x1 + BOX / 2, x2 - BOX / 2) if forward else (x1 - BOX / 2, x2 + BOX / 2)
    y1, y2 = (y1, y2) if forward else (y1 + 12, y2 + 12)
    mx, my = (x1 + x2) / 2, (y1 + y2) / 2 + bend
    place = f'x="{mx}" y="{(y1 + y2) / 2 + bend / 2 - 6}"'
    path = f'<path d="M{x1} {y1}Q{mx} {my} {x2} {y2}" fill="none" stroke="currentColor" stroke-width="1.2" marker-end="url(#tip)" opacity="0.75"/>'
    return f'{path}<text {place} text-anchor="middle" fill="currentColor" font-size="12">{html.escape(events)}</text>'


class Machine(Directive):
    """``{machine} NAME``: one of ``TABLES`` as a diagram."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The diagram."""
        return [nodes.raw("", svg(TABLES[self.arguments[0]]()), format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Tell sphinx."""
    app.add_directive("machine", Machine)
    return {"parallel_read_safe": True}
