"""The simulator beside its rivals, Flower on Ray, pfl-research and the loop one writes by hand, and beside its own bare kernels.

    python -m benchmarks.simulator setup ENVS                 an environment for each rival, with pip
    python -m benchmarks.simulator run [ENVS] [-n 3] [--workloads w1,w2,w3] [--only fedscale,pfl] [--rounds R] [--cohort C] [--limit S] [--svg FILE]

All take their turns on three workloads; the ratio to ``bare`` is what the framework leaves of its kernels' pace, and ``mixed`` are
ours in mixed precision, ``private`` ours with each client's change clipped and noise for whole clients, where a loss may differ.
Every run is a process of its own. All train the same clients in the same rounds from the same first model; the final
loss shows it. ``ratio`` is ours over theirs, ``over_pfl`` anybody's over pfl-research. Memory is the peak of the
proportional set size over the process and its children, in which mapped data and libraries count, and what of it is
nobody's file. Medians of ``-n`` interleaved repeats. Flower needs seconds of coordination for a round of W2 and minutes for
all of W1 on a busy machine: ``--rounds 3`` measures the same pace of all. Who is given up after ``--limit`` seconds, in the
middle of a round that had lasted t seconds, trained fewer than cohort / t clients a second in it: so the table bounds it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from benchmarks import Figure, _bars

Row: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks/rivals"
OURS = dict.fromkeys(("fedscale", "mixed", "private"), "ours.py")
RIVALS = OURS | {"bare": "bare.py", "plain": "plain.py", "pfl": "with_pfl.py", "flower": "with_flower.py"}
PACKAGES = {"pfl": ("torch==2.13.0", "pfl[pytorch]==0.6.0"), "flower": ("torch==2.13.0", "flwr[simulation]==1.41.0")}
COHORTS = {"w1": 50, "w2": 1000, "w3": 20}
WORKLOADS = tuple(COHORTS)
COLUMNS = ("workload", "who", "clients_per_s", "first_round_s", "peak_rss_mb", "peak_anon_mb", "final_loss", "ratio", "over_pfl")
BOUNDS = {"clients_per_s": "< ", "ratio": "> ", "over_pfl": "< "}  # of who was given up in the middle of a round
LONGEST = 1800.0
FEWEST_ROUNDS = 2  # the first is not counted
Changes: TypeAlias = Mapping[str, int | str | Path | None]  # what a script is told besides
NONE: Changes = MappingProxyType({})
LOSS_TOLERANCE = 1e-3
PFL = "pfl-research, 2 processes"
OTHERS = ("fedscale, mixed", "fedscale, private")  # other experiments, which need not end with the same loss


def measure() -> Iterator[Figure]:
    """Clients per second of ours and of the plain loop, and how many times as many ours are."""
    with tempfile.TemporaryDirectory() as folder:
        for row in bench(None, 1, WORKLOADS, ("fedscale", "plain"), Path(folder)):
            yield Figure(f"{row['workload']} {row['who']}", row["clients_per_s"], "clients/s")
            if "ratio" in row and row["who"] != "fedscale":
                yield Figure(f"{row['workload']} fedscale over {row['who']}", row["ratio"], "")


def setup(environments: Path) -> None:
    """Make the rivals' environments; what is there already stays."""
    for name, packages in PACKAGES.items():
        home = environments / name
        if not (home / "bin/python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for package in packages:
            subprocess.run([str(home / "bin/pip"), "install", "--quiet", package], check=True)


def bench(
    environments: Path | None,
    repeats: int,
    workloads: Sequence[str],
    only: Sequence[str],
    data: Path,
    changes: Changes = NONE,
    limit: float = LONGEST,
) -> list[Row]:
    """Rows of all that can be run, ours first for each workload; ``ratio`` is ours over theirs."""
    found: dict[tuple[str, str], list[Row]] = {}
    for workload in workloads:
        prepare(workload, data)
    for _ in range(repeats):
        for workload in workloads:
            for name in only:
                python = _python(name, environments)
                if python is not None and (row := run(python, name, workload, data, changes, limit)) is not None:
                    found.setdefault((workload, name), []).append(row)
    rows = [_median(some) for some in found.values()]
    return sorted(compared(rows), key=lambda row: (row["workload"], row["who"] != "fedscale", row["who"]))


def compared(rows: Sequence[Row]) -> list[Row]:
    """Rows with what ours is to each, what each is to pfl-research, and whether it did the same work as ours."""
    ours, pfl = ({row["workload"]: row for row in rows if row["who"] == who} for who in ("fedscale", PFL))
    found = []
    for row in rows:
        own: Row = {}
        if best := ours.get(row["workload"]):
            own["ratio"] = best["clients_per_s"] / row["clients_per_s"]
            other = row["who"] in OTHERS or row.get("unfinished", False)
            own["same_work"] = other or abs(best["final_loss"] - row["final_loss"]) <= LOSS_TOLERANCE
        if rival := pfl.get(row["workload"]):
            own["over_pfl"] = row["clients_per_s"] / rival["clients_per_s"]
        found.append(row | own)
    return found


def run(python: Path, name: str, workload: str, data: Path, changes: Changes = NONE, limit: float = LONGEST) -> Row | None:
    """One run; ``None`` where it failed, or took longer than ``limit`` seconds to begin, which is said on standard error."""
    with tempfile.TemporaryDirectory() as scratch:
        out, marks = Path(scratch) / "result.json", Path(scratch) / "marks"
        settings = {"out": out, "marks": marks, "workload": workload, "data": data, "who": name, **changes}
        variables = {f"BENCH_{key.upper()}": str(value) for key, value in settings.items() if value is not None} | {"PYTHONPATH": str(ROOT)}
        command = [str(python), RIVALS[name]]
        with subprocess.Popen(
            command, cwd=SCRIPTS, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            said: list[str] = []
            listener = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
            listener.start()
            sizes, ended = _watched(process, limit)
            listener.join(5)
        if out.exists():
            return {**json.loads(out.read_text(encoding="utf-8")), **sizes}
        if ended is not None and marks.exists():
            return unfinished(name, workload, changes.get("cohort"), ended - float(marks.read_text(encoding="utf-8").split()[-1])) | sizes
        why = "".join(said[-5:]) if ended is None else f"it took more than {limit:.0f} s"
        print(f"{name} on {workload} gave no result:\n{why}", file=sys.stderr)
        return None


def _watched(process: subprocess.Popen[str], limit: float) -> tuple[Row, float | None]:
    """The most memory that a process and its children took, and when they were ended for taking too long, if they were."""
    peak, anonymous, began, ended = 0.0, 0.0, time.monotonic(), None
    while process.poll() is None:
        sizes = [_sizes(each) for each in _family(process.pid)]
        peak, anonymous = max(peak, sum(whole for whole, _ in sizes)), max(anonymous, sum(part for _, part in sizes))
        if time.monotonic() - began > limit:
            ended = ended or time.monotonic()
            _kill(_family(process.pid))
        time.sleep(0.2)
    return {"peak_rss_mb": peak, "peak_anon_mb": anonymous}, ended


def unfinished(name: str, workload: str, cohort: object, seconds: float) -> Row:
    """The row of who was given up when a round had lasted so many seconds: its pace is below this one."""
    pace = (cohort if isinstance(cohort, int) else COHORTS[workload]) / seconds
    return {"workload": workload, "who": name, "clients_per_s": pace, "first_round_s": math.nan, "final_loss": math.nan, "unfinished": True}


def prepare(workload: str, data: Path) -> None:
    """Write a workload's data, in a process so that ours begins as fresh as theirs."""
    code = f"from pathlib import Path; from benchmarks.rivals import workloads as w; w.generate(w.WORKLOADS[{workload!r}], Path({str(data)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _python(name: str, environments: Path | None) -> Path | None:
    """The interpreter for a rival: its environment's, or ours for those that need none."""
    if name not in PACKAGES:
        return Path(sys.executable)
    python = environments / name / "bin/python" if environments else None
    return python.absolute() if python and python.exists() else None


def _median(rows: list[Row]) -> Row:
    """One row of several."""
    return {key: statistics.median(row[key] for row in rows) if isinstance(value, float) else value for key, value in rows[0].items()}


def _family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def _kill(processes: Sequence[int]) -> None:
    """End processes, of which some may have ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _sizes(process: int) -> tuple[float, float]:
    """The proportional set size of a process in MB, and what of it is anonymous; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0, 0.0
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss")}
    return found.get("Pss:", 0.0), found.get("Pss_Anon:", 0.0)


def _cell(row: Row, column: str) -> str:
    """A figure for people; of a run that was given up, the bounds it says."""
    value = row.get(column, "")
    bound = BOUNDS.get(column, "") if row.get("unfinished") else ""
    return f"{bound}{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[Row]) -> str:
    """The rows for people."""
    cells = [[_cell(row, name) for name in COLUMNS] for row in rows]
    widths = [max(len(line[at]) for line in [list(COLUMNS), *cells]) for at in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [list(COLUMNS), *cells])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("setup", "run"))
    parser.add_argument("environments", nargs="?", type=Path, metavar="ENVS", help="where the rivals' environments are")
    parser.add_argument("-n", type=int, default=3, dest="repeats", help="how often everything is run")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--only", default=",".join(RIVALS), help=f"out of {', '.join(RIVALS)}")
    parser.add_argument("--rounds", type=int, help="how many instead of each workload's own; at least 2")
    parser.add_argument("--cohort", type=int, help="clients in each round instead of each workload's own")
    parser.add_argument("--limit", type=float, default=LONGEST, help="seconds after which a run is given up")
    parser.add_argument("--data", type=Path, help="where the workloads' data are kept, 1.3 GB")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the table as well")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds takes at least {FEWEST_ROUNDS}")
    if options.verb == "setup":
        if options.environments is None:
            parser.error("setup needs a folder for the environments")
        setup(options.environments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = (options.data or Path(scratch)).absolute()
        workloads, only = options.workloads.split(","), options.only.split(",")
        rows = bench(
            options.environments, options.repeats, workloads, only, data, {"rounds": options.rounds, "cohort": options.cohort}, options.limit
        )
    print("\n".join(json.dumps(row) for row in rows) if options.json else _table(rows))
    if options.svg:
        options.svg.write_text(_bars.drawn(rows), encoding="utf-8")
    if any(not row.get("same_work", True) for row in rows):
        raise SystemExit("the final losses differ: not the same work")


if __name__ == "__main__":
    main()
