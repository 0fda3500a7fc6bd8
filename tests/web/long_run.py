"""A run of any length that is over, as its coordinator has it: the record, and the lines of its journal on how phases opened and closed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from fedscale.lanes import Mark
from fedscale.record import Phase, RoundRecord, RunRecord
from fedscale_server.logbook import DRAWN, SHOWN
from fedscale_server.store.store import Store
from tests.server.running import plan_text

Line: TypeAlias = tuple[str, dict[str, Any], str]
BEGAN = datetime(2026, 1, 2, tzinfo=UTC)
SECONDS, JOURNALED = 2.0, 1_000


def drawn(row: RoundRecord) -> RoundRecord:
    """A phase with lanes: each site that was asked waits, does its work and uploads, or fails."""
    did: tuple[Mark, ...] = (("wait", 0.0), (row.phase, 0.2))
    lanes: dict[str, tuple[Mark, ...]] = dict.fromkeys(row.answered, (*did, ("upload", 1.5), ("wait", 1.7)))
    return replace(row, seconds=SECONDS, lanes=lanes | dict.fromkeys(row.failures, (*did, ("failed", 1.0))))


def line(kind: str, row: RoundRecord, detail: dict[str, Any]) -> Line:
    """What the journal says of the beginning or the end of a phase."""
    return f"note.{kind}", {"phase": row.phase, "number": row.number, "detail": detail}, f"note.{kind}/{row.phase}/{row.number}"


def opened(row: RoundRecord) -> Line:
    """The line that a phase begins with."""
    return line("opened", row, {"cohort": [*row.lanes], "target": 1, "quorum": 1})


def closed(row: RoundRecord) -> Line:
    """The line that it ends with."""
    told = asdict(row)
    return line("closed", row, {key: told[key] for key in SHOWN})


def keep(store: Store, record: RunRecord, phases: Sequence[Phase] = ("train", "evaluate"), project: str = "ward") -> None:
    """Put a run into a coordinator's store: the record's rounds as each of these phases, one after the other, each of ``SECONDS``.

    The journal of a very long run tells of its newest phases only, for each takes a transaction.
    """
    rows = [drawn(replace(row, phase=phase)) for row in record.rounds for phase in phases]
    store.create_run(record.run, project, record.name, plan_text(rounds=rows[-1].number), "aa", "bb", "", BEGAN)
    for at, (before, after) in [*enumerate(zip([None, *rows], [*rows, None], strict=True))][-JOURNALED:]:
        told = ([closed(before)] if before else []) + ([opened(after)] if after else [])
        store.append_all(record.run, told, BEGAN + timedelta(seconds=SECONDS * at))
    kept = [replace(row, lanes={}) for row in rows[:-DRAWN]] + rows[-DRAWN:]
    whole = replace(record, rounds=tuple(kept), seconds=SECONDS * len(rows))
    store.finish(record.run, record.status, record.reason, json.loads(whole.to_json()), BEGAN)
