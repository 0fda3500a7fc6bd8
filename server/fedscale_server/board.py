"""The lanes of an open round on a terminal: a line a site, a sign a stage, so that nobody needs to tell colours apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fedscale import console
from fedscale.lanes import AWAY, DOWNLOAD, FAILED, MASK, STAGES, UNMASK, UPLOAD, WAIT, Mark, retries, spans
from fedscale.report.units import shortened
from fedscale_server.view import View

SIGNS = {
    WAIT: ("\N{MIDDLE DOT}", "dim"),
    DOWNLOAD: ("\N{BLACK DOWN-POINTING TRIANGLE}", "cyan"),
    "train": ("\N{FULL BLOCK}", "blue"),
    "evaluate": ("\N{DARK SHADE}", "green"),
    MASK: ("\N{BLACK DIAMOND}", "magenta"),
    UPLOAD: ("\N{BLACK UP-POINTING TRIANGLE}", "yellow"),
    UNMASK: ("\N{WHITE DIAMOND}", "magenta"),
    AWAY: ("?", "red"),
    FAILED: ("x", "bold red"),
}
NAME, SITES, NARROWEST = 16, 24, 10


class Board:
    """What is drawn below the bar of a run that is watched.

    Args:
        view: the run as it is known.
        clock: seconds that only go on, for what lasts between two events.
    """

    def __init__(self, view: View, clock: Callable[[], float] = time.monotonic) -> None:
        self._view, self._clock = view, clock
        self._heard = (0.0, clock())

    def heard(self, at: float) -> None:
        """An event has come that happened ``at``, in seconds of the coordinator's clock."""
        self._heard = (at, self._clock())

    def __rich_console__(self, shown: Console, options: ConsoleOptions) -> RenderResult:
        """A line a site, the first ones of many, and what the signs mean."""
        lanes = self._view.lanes
        if not lanes.marks:
            return
        at, then = self._heard
        now = max(at + self._clock() - then - lanes.opened, 0.0)
        width = max(options.max_width - NAME - 12, NARROWEST)
        for site in list(lanes.marks)[:SITES]:
            yield _line(site, lanes.marks[site], now, width)
        if len(lanes.marks) > SITES:
            yield Text(f"and {len(lanes.marks) - SITES} more sites", style="dim")
        met = [stage for stage in STAGES if any(stage == mark for lane in lanes.marks.values() for mark, _ in lane)]
        yield Text("   ").join(Text.assemble(SIGNS[stage], f" {STAGES[stage]}") for stage in met)


def _line(site: str, lane: Sequence[Mark], now: float, width: int) -> Text:
    """One lane over ``width`` columns from the opening of the round until ``now``, and how often something was tried again."""
    again = retries(lane)
    return Text.assemble(f"{shortened(console.clean(site), NAME):<{NAME}} ", signs(lane, now, width), f"  {again} again" if again else "")


def signs(lane: Sequence[Mark], now: float, width: int) -> Text:
    """A sign for each column: the stage at its middle; a stage that fits into none is shown where it began."""
    drawn = [WAIT] * width
    for stage, begin, end in spans(lane, max(now, lane[-1][1])):
        first = min(int(begin / now * width), width - 1) if now else 0
        last = max(min(round(end / now * width), width), first + 1) if now else 1
        # After a failure there is nothing any more.
        drawn[first:] = [stage] + [""] * (width - first - 1) if stage == FAILED else [stage] * (last - first) + drawn[last:]
    return Text.assemble(*(SIGNS.get(stage, (" ", "")) for stage in drawn))
