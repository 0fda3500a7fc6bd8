"""Progress that people watch: a bar on stderr, with the time left, and notes above it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fedscale import console


def time_left(first: tuple[float, float], now: tuple[float, float]) -> float | None:
    """Seconds until a fraction that moved from ``first`` to ``now``, both ``(seconds, fraction)``, reaches one; None while it stands still."""
    (began, done_then), (at, done) = first, now
    return None if done <= done_then or at <= began else (at - began) * (1 - done) / (done - done_then)


class _Progress(Progress):
    """A bar with something below it."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """All that is drawn again and again."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


class Bar:
    """Progress on stderr: notes and, on a terminal, below them a bar with the time left.

    Args:
        title: what is going on.
        quiet: print no notes, as where a stream of JSON lines tells them already.
        below: drawn below the bar, again and again.
    """

    def __init__(self, title: str, *, quiet: bool = False, below: RenderableType | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
        self._progress = _Progress(*columns, console=console.screen(stderr=True), transient=True, disable=not console.animated())
        self._progress.below = below
        self._task = self._progress.add_task(title, total=1.0, left="")
        self._title, self._quiet = title, quiet
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave only the notes behind."""
        self._progress.stop()

    def note(self, told: str, style: str = "") -> None:
        """Print a line above the bar."""
        if not self._quiet:
            self._progress.console.print(console.text(told, style), soft_wrap=True)

    def update(self, fraction: float, doing: str, at: float) -> None:
        """Move the bar.

        Args:
            fraction: how much is done, in [0, 1].
            doing: what is being done.
            at: when, in seconds of any clock; the time left is told from these alone, so that a replay tells it right.
        """
        if self._first is None:
            self._first = (at, fraction)
        left = time_left(self._first, (at, fraction))
        shown = "" if left is None else f"{timedelta(seconds=round(left))} left"
        titled = f"{self._title}: {console.clean(doing)}" if doing else self._title
        self._progress.update(self._task, completed=fraction, description=titled, left=shown)
