"""``python -m benchmarks [--json] [NAME...]``: run the named measurements, or all."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from dataclasses import asdict

import benchmarks


def main() -> None:
    """Print one line a figure, as soon as it is known."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(names)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no measurement '{min(unknown)}'; there are {', '.join(names)}")
    for name in options.names or names:
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").measure():
                print(json.dumps({"benchmark": name} | asdict(figure)) if options.json else f"{name:12} {figure}", flush=True)
        except benchmarks.Missing as missing:
            if options.names:
                raise SystemExit(f"{name}: {missing}") from None
            print(f"{name:12} not measured: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
