"""The command ``fedscale``, and ``python -m fedscale`` where it is not on PATH."""

from __future__ import annotations

import sys
from importlib import import_module

INTERRUPTED = 130


def main() -> int:
    """Run the command; Ctrl-C while its modules are still being imported ends it as any other does."""
    try:
        code: int = import_module("fedscale.cli").main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
