"""What was asked of this site and what became of it: lines of JSON in the home, for the site's own people.

The ledger holds what a task may cost and what left; here stands also what was refused, what failed and whether the
coordinator was there. Unlike the ledger it proves nothing, so a line is written without waiting for the disk, and the file
begins anew when it has become large.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.errors import ConfigError, Failure
from fedscale_client.home import NodeHome, open_private
from fedscale_client.ledger.head import Head

KEPT = frozenset({"task", "declined", "failed", "answered", "connected", "disconnected", "stopped", "not renewed"})
ASKING = frozenset({"task", "declined"})  # both say what a run wants
MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Chronicle:
    """The file; ``now`` tells the time.

    Args:
        home: the node's.
        now: for the lines.
    """

    home: NodeHome
    now: Callable[[], datetime]

    def take(self, facts: Mapping[str, Any]) -> None:
        """Write down something that happened; signs of progress are not worth a line.

        Raises:
            OSError: the disk refuses.
        """
        if facts["event"] not in KEPT:
            return
        path = file_of(self.home)
        files.private_folder(path.parent)
        if path.exists() and path.stat().st_size >= MOST_BYTES:
            path.replace(path.with_suffix(".old.jsonl"))
        line = json.dumps({"at": self.now().timestamp(), **facts}, separators=(",", ":"), default=str)
        with open_private(path, os.O_WRONLY | os.O_APPEND) as descriptor:
            os.write(descriptor, f"{line}\n".encode())


@dataclass(frozen=True, slots=True)
class Asked:
    """What one run has asked of this site, as far as the chronicle goes back.

    Args:
        run: the coordinator's name for it.
        name: what the job calls itself.
        dataset: the data it wanted.
        app: SHA-256 of the app's bundle.
        plan: SHA-256 of its plan.
        plan_toml: the plan as it was sent.
        first: seconds since the epoch of the first task, or of the first that was declined.
        last: of the last event.
        tasks: how many of each phase.
        answered: how many answers were taken.
        failures: all failures, the newest last.
    """

    run: str
    name: str
    dataset: str
    app: str
    plan: str
    plan_toml: str
    first: float
    last: float
    tasks: Mapping[str, int]
    answered: int
    failures: tuple[Failure, ...]


def file_of(home: NodeHome) -> Path:
    """Where the chronicle of a node lies."""
    return home.log_file.with_name("chronicle.jsonl")


def read(home: NodeHome) -> list[dict[str, Any]]:
    """All events, the oldest first; a line that was cut off is left out."""
    path = file_of(home)
    return [event for part in (path.with_suffix(".old.jsonl"), path) for event in _lines(part)]


def noted(home: NodeHome) -> Head | None:
    """The end of the privacy ledger that the coordinator knew when it was there last; ``None`` where it knew none."""
    last: dict[str, Any] = next((event for event in reversed(read(home)) if event["event"] == "connected"), {})
    with suppress(ConfigError):
        return Head.parsed(str(last.get("noted", "")))
    return None


def asked(events: list[dict[str, Any]]) -> list[Asked]:
    """What each run has asked, the newest first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if name := str(event.get("run") or str(event.get("key", "")).split("/")[0]):
            runs.setdefault(name, []).append(event)
    found = [_asked(run, own) for run, own in runs.items() if any(event["event"] in ASKING for event in own)]
    return sorted(found, key=lambda one: -one.last)


def _asked(run: str, events: list[dict[str, Any]]) -> Asked:
    asking, tasks = ([event for event in events if event["event"] in kinds] for kinds in (ASKING, {"task"}))
    told: dict[str, Any] = {name: str(asking[-1].get(name, "")) for name in ("name", "dataset", "app", "plan", "plan_toml")}
    phases = [str(task["phase"]) for task in tasks]
    failures = tuple(Failure(**event["failure"]) for event in events if event["event"] in {"declined", "failed"})
    counts = {"tasks": {phase: phases.count(phase) for phase in dict.fromkeys(phases)}, "answered": sum(e["event"] == "answered" for e in events)}
    return Asked(run, **told, first=asking[0]["at"], last=events[-1]["at"], **counts, failures=failures)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
