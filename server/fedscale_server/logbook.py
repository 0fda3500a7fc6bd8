"""The durable half of a run: journal, checkpoints and answers on disk, around the pure state machine.

``apply`` journals an event, lets the run handle it and stores what the run asks to have stored, before anybody hears of
it. ``open`` does the same with what is already in the journal; so a crash between any two lines costs nothing but time.
Lines that people read have names that only one line of a run may have: what a crash left out is written by ``open``, and
nothing is written twice. All methods block; the driver calls them in a thread.
"""

from __future__ import annotations

import json
import platform
import secrets
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import fedscale
from fedscale.errors import Failure, FedscaleError
from fedscale.events import Answered, Commit, Effect, Event, Failed, Finish, Initialized, Outcome, from_row, outcome_of, to_row
from fedscale.lanes import FAILED, Lanes
from fedscale.masked import Ground
from fedscale.plan import Plan
from fedscale.privacy.statement import promised
from fedscale.record import JSON, RoundRecord, RunRecord
from fedscale.round import Status
from fedscale.run import RUNNING, Run
from fedscale.secagg import prg
from fedscale.secagg.prg import Core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedscale_server.spool import Spool
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import Checkpoint, Journal, RunRow

NOTE = "note."
FACTS = tuple(f.name for f in fields(Outcome))
SHOWN = ("answered", "failures", "metrics", "sites", "weight", "seconds", "bytes_up", "bytes_down", "lanes")
# So many phases of a record have their lanes, and fewer where so many sites take part: what people look at, and not megabytes of it.
DRAWN, MOST_LANES = 60, 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the journal as watchers get it."""

    seq: int
    at: datetime
    kind: str
    phase: str
    number: int
    node: str
    detail: dict[str, Any]

    @classmethod
    def of(cls, row: Journal) -> Entry:
        """From a stored row."""
        body = row.payload
        return cls(row.seq, row.at, row.kind.removeprefix(NOTE), body["phase"], body["number"], body.get("node", ""), body.get("detail", {}))


@dataclass(frozen=True, slots=True)
class Line:
    """An event that is to be journaled, under a name that only one line of the run may have, with what people want to know of it."""

    event: Event
    unique: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Traffic:
    """Bytes moved for a run since its last closed round."""

    up: int = 0
    down: int = 0


@cache
def core() -> Core:
    """What computes masks fastest on this machine, found once."""
    return prg.choose(time.perf_counter)


class Logbook:
    """One run and everything of it that survives a crash."""

    def __init__(self, store: Store, spool: Spool, row: RunRow) -> None:
        self.store, self.spool, self.row = store, spool, row
        self.plan = Plan.from_toml(row.plan, file=f"plan of run {row.id}")
        self._ground = Ground(row.id, row.bundle, core(), secret=secrets.token_bytes(32))
        self.run = Run(self.plan, self.plan.strategy.build(), ground=self._ground)
        self.traffic = Traffic()
        self._opened = row.created
        self._cohort: tuple[str, ...] = ()
        self.lanes = Lanes()
        self._nodes: set[str] = set()
        self._rounds: list[RoundRecord] = []
        self._damaged: set[str] = set()
        self._ledgers: dict[str, str] = {}
        self._declined: dict[str, Failure] = {}

    @classmethod
    def open(cls, store: Store, spool: Spool, row: RunRow) -> Logbook:
        """The run as it was when the last event was journaled: newest checkpoint, then the events after it.

        Raises:
            FedscaleError: a file that no node can send again is missing or damaged.
        """
        book = cls(store, spool, row)
        spool.blobs.clean()
        spool.inherit()
        checkpoint = store.last_checkpoint(row.id)
        if checkpoint is not None:
            book._restore(checkpoint)
        for entry in store.journal(row.id, after=checkpoint.seq if checkpoint else 0):
            book._replay(entry)
        spool.resume(str(book.run.phase), book.run.number)
        if checkpoint is not None and book.run.status != RUNNING:
            book._finish(book.run.status, book.run.reason, checkpoint.at)
        return book

    def _restore(self, checkpoint: Checkpoint) -> None:
        """The run as a checkpoint holds it, and the line that tells of it, in case the crash came between both."""
        vectors = {f"slot/{name}": self.spool.vector(digest) for name, digest in checkpoint.slots.items()}
        vectors["model"] = self.spool.vector(checkpoint.model)
        closed = self.store.outcomes(self.row.id)
        facts = {**checkpoint.facts, "history": [{name: row[name] for name in FACTS} for row in closed]}
        self.run = Run.restore(self.plan, self.run.strategy, facts, vectors, self._ground)
        self.traffic = Traffic(**checkpoint.facts["traffic"])
        self._ledgers = dict(checkpoint.facts.get("ledgers", {}))
        self._rounds = [*(replace(_round(row), lanes={}) for row in closed[:-DRAWN]), *_thinned([_round(row) for row in closed[-DRAWN:]])]
        self._nodes = {node for row in closed for node in row["cohort"]}
        if checkpoint.outcome is not None:
            self._tell_closed(checkpoint.outcome, checkpoint.at)

    def _replay(self, entry: Journal) -> None:
        """Take a line of the journal again."""
        if entry.kind.startswith(NOTE):
            return
        event = self._loaded(from_row(entry.kind, entry.payload["event"]), entry.payload)
        if event is None:
            self._damaged.add(entry.unique_key or "")
            return
        self._take(event, entry.seq, entry.at, entry.payload["detail"])

    def _loaded(self, event: Event, payload: dict[str, Any]) -> Event | None:
        """A journaled event with its payload read back; ``None`` when the payload is damaged, so that the node is asked again."""
        try:
            if isinstance(event, Answered):
                path = self.spool.answer(payload["phase"], payload["number"], event.node, event.digest)
                return Answered(event.node, event.digest, self.spool.words(path, event.digest))
            if isinstance(event, Initialized):
                return Initialized(event.node, event.schema, event.digest, self.spool.vector(event.digest))
        except FedscaleError:
            return None
        return event

    def apply(
        self, event: Event, at: datetime, unique: str | None = None, detail: dict[str, Any] | None = None
    ) -> tuple[list[Effect], list[Entry]] | None:
        """Journal and handle one event.

        Returns:
            The effects that are left to carry out and the entries written, or ``None`` when ``unique`` is in the journal already.
        """
        return self.apply_all([Line(event, unique, detail or {})], at)[0]

    def apply_all(self, lines: Sequence[Line], at: datetime) -> list[tuple[list[Effect], list[Entry]] | None]:
        """Journal several events in one transaction, then handle them one after the other; for each what ``apply`` returns."""
        phase, number, rows = str(self.run.phase), self.run.number, []
        for line in lines:
            kind, row = to_row(line.event)
            payload = {"event": row, "phase": phase, "number": number, "node": row.get("node", ""), "detail": line.detail}
            # A line whose payload was lost holds the name, but not what it stands for.
            rows.append((kind, payload, None if line.unique in self._damaged else line.unique))
        applied: list[tuple[list[Effect], list[Entry]] | None] = []
        for seq, line, (kind, payload, _) in zip(self.store.append_all(self.row.id, rows, at), lines, rows, strict=True):
            if seq is None:
                applied.append(None)
                continue
            effects, notes = self._take(line.event, seq, at, line.detail)
            applied.append((effects, [Entry(seq, at, kind, phase, number, payload["node"], line.detail), *notes]))
        return applied

    def _take(self, event: Event, seq: int, at: datetime, detail: dict[str, Any]) -> tuple[list[Effect], list[Entry]]:
        """Let the run handle a journaled event; carry out what must survive a crash and note what people want to know."""
        before = self.run.round
        self.traffic.up += detail.get("bytes", 0)
        if isinstance(event, Answered | Initialized) and "ledger" in detail:
            self._ledgers[event.node] = detail["ledger"]
        self.lanes.take(type(event).__name__.lower(), getattr(event, "node", ""), at.timestamp())
        self._note_declined(event)
        effects = self.run.handle(event)
        entries: list[Entry] = []
        if self.run.round is not None and self.run.round is not before:
            terms = self.run.round.terms
            self._opened, self._cohort, self.lanes = at, terms.cohort, Lanes.of(terms.cohort, at.timestamp())
            self._nodes.update(terms.cohort)
            known = {"cohort": list(terms.cohort), "target": terms.target, "quorum": terms.quorum}
            entries += self._note("opened", at, known, (str(terms.phase), terms.number))
        if before is not None and before.status is Status.FAILED:
            self._keep(self._closed(before.missed(), at))
        for effect in effects:
            if isinstance(effect, Commit):
                entries += self._checkpoint(effect.outcome, seq, at)
            elif isinstance(effect, Finish):
                entries += self._finish(effect.status, effect.reason, at)
        return effects, entries

    def _note_declined(self, event: Event) -> None:
        """Keep why a node that is there has no part in what is under way, for the record of the round."""
        current = self.run.round
        if isinstance(event, Failed) and event.node != self.run.asked and (current is None or event.node not in current.places):
            self._declined[event.node] = event.failure

    def _note(self, kind: str, at: datetime, detail: dict[str, Any], where: tuple[str, int]) -> list[Entry]:
        """Journal something that people want to know and the run does not need; nothing when it stands there already."""
        phase, number = where
        unique = f"{NOTE}{kind}/{phase}/{number}"
        seq = self.store.append(self.row.id, NOTE + kind, {"phase": phase, "number": number, "detail": detail}, at, unique)
        return [] if seq is None else [Entry(seq, at, kind, phase, number, "", detail)]

    def _checkpoint(self, outcome: Outcome | None, seq: int, at: datetime) -> list[Entry]:
        """Model and slots to blobs, then one transaction; only then the answers may go."""
        facts, vectors = self.run.snapshot()
        # Each checkpoint brings its own outcome; repeating all earlier ones would grow with the square of the rounds.
        del facts["history"]
        facts["traffic"] = asdict(Traffic() if outcome else self.traffic)
        facts["ledgers"] = self._ledgers
        digests = {name: self.spool.store(vector, self.run.digest if name == "model" else "") for name, vector in vectors.items()}
        self.run.hold({name: self.spool.kept(digest) for name, digest in digests.items()})
        model = digests.pop("model")
        slots = {name.removeprefix("slot/"): digest for name, digest in digests.items()}
        row = self._closed(outcome, at) if outcome else None
        self._declined = {}
        where = (outcome.number, outcome.phase) if outcome else (0, "init")
        # Only what was heard in this step: a site that joined anew since an earlier one has another ledger.
        heads = {name: self._ledgers[name] for name in outcome.answered if name in self._ledgers} if outcome else {}
        self.store.checkpoint(self.row.id, seq, *where, facts, model, slots, row, at, heads)
        self.spool.clear()
        self.spool.retire(model, frozenset(slots.values()))
        if row is None:
            return []
        self._keep(row)
        return self._tell_closed(row, at)

    def _keep(self, row: dict[str, Any]) -> None:
        """Put a phase that is over on record."""
        self.traffic = Traffic()
        self._rounds.append(_round(row))
        self._rounds[-DRAWN - 1 :] = _thinned(self._rounds[-DRAWN - 1 :])

    def _closed(self, outcome: Outcome, at: datetime) -> dict[str, Any]:
        """A closed round as its checkpoint keeps it: the run's own facts, who was asked, time, bytes and lanes; a clock may have been set back."""
        for node in outcome.failures:
            self.lanes.mark(node, FAILED, at.timestamp())
        moved = {"seconds": max((at - self._opened).total_seconds(), 0.0), "bytes_up": self.traffic.up, "bytes_down": self.traffic.down}
        declined = {node: asdict(failure) for node, failure in self._declined.items()}
        facts = asdict(outcome)
        return {**facts, "failures": {**declined, **facts["failures"]}, "cohort": list(self._cohort), **moved, "lanes": self.lanes.drawn()}

    def _tell_closed(self, row: dict[str, Any], at: datetime) -> list[Entry]:
        """The line that says how a round ended."""
        return self._note("closed", at, {key: row[key] for key in SHOWN if key in row}, (row["phase"], row["number"]))

    def _finish(self, status: str, reason: str, at: datetime) -> list[Entry]:
        """Write down how the run ended, once: the line first, for a run that is over in the store is not opened again."""
        if self.row.finished is not None:
            return []
        entries = self._note("finished", at, {"status": status, "reason": reason}, (str(self.run.phase), self.run.number))
        self.store.finish(self.row.id, status, reason, json.loads(self.record(at).to_json()), at)
        self.row = self.store.run(self.row.id)
        self.spool.clear()
        return entries

    def _extra(self) -> dict[str, JSON]:
        """What the record says besides: seeds, versions, what privacy was promised, and how secure aggregation was done."""
        secagg: dict[str, JSON] = {"mode": "protocol", "profile": self.plan.secagg.profile}
        versions: dict[str, JSON] = {"fedscale": fedscale.__version__, "python": platform.python_version()}
        extra: dict[str, JSON] = {"seeds": {"job": self.plan.job.seed}, "versions": versions}
        if self._ledgers:
            extra["ledgers"] = dict(sorted(self._ledgers.items()))
        if self.plan.privacy is not None:
            spent = "by each site's own ledger: fedscale privacy statement RUN"
            extra["privacy"] = {**promised(self.plan.privacy, masked=self.plan.secagg.enabled), "spent": spent}
        return extra | ({"secagg": secagg} if self.plan.secagg.enabled else {})

    @property
    def rounds(self) -> Sequence[RoundRecord]:
        """The phases that are closed."""
        return self._rounds

    def record(self, now: datetime) -> RunRecord:
        """The run's record so far."""
        rounds = tuple(self._rounds)
        return replace(
            bare_record(self.row, self.run.status, self.run.reason, now),
            nodes=tuple(sorted(self._nodes)),
            rounds=rounds,
            bytes_up=sum(r.bytes_up for r in rounds) + self.traffic.up,
            bytes_down=sum(r.bytes_down for r in rounds) + self.traffic.down,
            model_digest=self.run.digest,
            extra=self._extra(),
        )


def bare_record(row: RunRow, status: str, reason: str, now: datetime) -> RunRecord:
    """The record of a run as far as its row tells; all of it where nothing else can be read."""
    seconds = max(((row.finished or now) - row.created).total_seconds(), 0.0)
    return RunRecord(row.id, row.name, status, reason, row.plan, row.plan_hash, (), (), seconds, 0, 0, "", {})


def _round(row: dict[str, Any]) -> RoundRecord:
    """One phase of the record from what its checkpoint keeps."""
    outcome = outcome_of({name: row[name] for name in FACTS})
    facts = {name: getattr(outcome, name) for name in FACTS}
    facts["phase"] = "train" if outcome.phase == "train" else "evaluate"
    lanes = {node: tuple((stage, at) for stage, at in lane) for node, lane in row.get("lanes", {}).items()}
    return RoundRecord(**facts, seconds=row["seconds"], bytes_up=row["bytes_up"], bytes_down=row["bytes_down"], lanes=lanes)


def _thinned(rounds: Sequence[RoundRecord]) -> list[RoundRecord]:
    """Phases that follow each other up to the newest, without the lanes of those that are too long ago."""
    newest = list(reversed(rounds))
    lanes = accumulate(len(row.lanes) for row in newest)
    kept = [row if at < DRAWN and count <= MOST_LANES else replace(row, lanes={}) for at, (row, count) in enumerate(zip(newest, lanes, strict=True))]
    return kept[::-1]
