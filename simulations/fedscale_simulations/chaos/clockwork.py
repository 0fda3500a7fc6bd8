"""``python -m fedscale_simulations.chaos.clockwork FILE WORD...`` is ``fedscale WORD...`` with a wall clock that is wrong by what a file says.

What is installed knows nothing of it: the clock that everything else takes the time of day from is another one in this
process. Time that only goes forward is left alone, as a machine whose clock is set leaves it alone.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from fedscale import cli, clock


def clock_of(file: Path) -> type[clock.SystemClock]:
    """A clock that is wrong by the seconds in a file, and right without one."""

    class Wrong(clock.SystemClock):
        """The machine's clock, set by somebody who had the time from elsewhere."""

        def now(self) -> datetime:
            """The wrong time of day."""
            return super().now() + timedelta(seconds=float(file.read_text(encoding="utf-8")) if file.exists() else 0.0)

    return Wrong


def through(file: Path) -> tuple[str, ...]:
    """What stands in the place of ``fedscale`` in a command whose clock a file sets."""
    return (sys.executable, "-m", __name__, str(file))


def main() -> None:
    """Be ``fedscale`` with another clock."""
    file = Path(sys.argv.pop(1))
    clock.SystemClock = clock_of(file)  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
