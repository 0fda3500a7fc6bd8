"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
NEAR_ONE = (0.01, 10.0)


def number(value: float) -> str:
    """Three decimals near one, four significant digits elsewhere, words for what is not finite."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or NEAR_ONE[0] <= abs(value) < NEAR_ONE[1]:
        return f"{value:.3f}"
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def unit_of(largest: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """The largest unit that ``largest`` reaches, or the smallest there is."""
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def data_size(count: float) -> str:
    """``12.4 MB``; decimal units."""
    scale, name = unit_of(count, SIZES)
    return f"{count / scale:.0f} B" if name == "B" else f"{count / scale:.3g} {name}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3 min 12 s``, ``2 h 5 min``."""
    if not math.isfinite(seconds):
        return "unknown"
    hours, rest = divmod(round(seconds), 3600)
    minutes, whole = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole} s"
    return f"{seconds:.2g} s" if whole < NEAR_ONE[1] else f"{whole} s"


def ranges(numbers: Iterable[int], most: int = 6) -> str:
    """``1, 3-5, 9`` for whole numbers in any order, an en dash between ends; beyond ``most`` ranges the rest is counted."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    listed = ", ".join("\N{EN DASH}".join(map(str, run)) for run in runs[:most])
    rest = sum(run[-1] - run[0] + 1 for run in runs[most:])
    return f"{listed} and {rest} more" if rest else listed


def shortened(name: str, most: int) -> str:
    """A name in at most so many letters, its middle left out: what tells one from another often stands at the end."""
    tail = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - tail :]}"
