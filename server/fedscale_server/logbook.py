"""The durable half of a run: journal, checkpoints and answers on disk, around the pure state machine.

``apply`` journals an event, lets the run handle it and stores what the run asks to have stored, before anybody hears of
it. ``open`` does the same with what is already in the journal; so a crash between any two lines costs nothing but time.
All methods block; the driver calls them in a thread.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import fedscale
from fedscale.errors import FedscaleError
from fedscale.events import Answered, Commit, Effect, Event, Finish, Initialized, Outcome, from_row, to_row
from fedscale.plan import Plan
from fedscale.record import RoundRecord, RunRecord
from fedscale.run import RUNNING, Run

if TYPE_CHECKING:
    from fedscale_server.spool import Spool
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import Journal, RunRow

NOTE = "note."


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


@dataclass(slots=True)
class Traffic:
    """Bytes moved for a run since its last closed round."""

    up: int = 0
    down: int = 0


class Logbook:
    """One run and everything of it that survives a crash."""

    def __init__(self, store: Store, spool: Spool, row: RunRow) -> None:
        self.store, self.spool, self.row = store, spool, row
        self.plan = Plan.from_toml(row.plan, file=f"plan of run {row.id}")
        self.run = Run(self.plan, self.plan.strategy.build())
        self.traffic = Traffic()
        self._opened = row.created

    @classmethod
    def open(cls, store: Store, spool: Spool, row: RunRow) -> Logbook:
        """The run as it was when the last event was journaled: newest checkpoint, then the events after it."""
        book = cls(store, spool, row)
        checkpoint = store.last_checkpoint(row.id)
        if checkpoint is not None:
            vectors = {f"slot/{name}": spool.vector(digest) for name, digest in checkpoint.slots.items()}
            if checkpoint.model:
                vectors["model"] = spool.vector(checkpoint.model)
            facts = {**checkpoint.facts, "history": store.outcomes(row.id)}
            book.run = Run.restore(book.plan, book.run.strategy, facts, vectors)
        for entry in store.journal(row.id, after=checkpoint.seq if checkpoint else 0):
            if entry.kind.startswith(NOTE):
                continue
            event = book._loaded(from_row(entry.kind, entry.payload["event"]), entry.payload)
            if event is not None:
                book._make_durable(book.run.handle(event), entry.seq, entry.at)
        if book.run.status != RUNNING:
            book._finish(book.run.status, book.run.reason, row.created)
        return book

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
        kind, row = to_row(event)
        before = self.run.round
        phase, number = str(self.run.phase), self.run.number
        payload = {"event": row, "phase": phase, "number": number, "node": row.get("node", ""), "detail": detail or {}}
        seq = self.store.append(self.row.id, kind, payload, at, unique)
        if seq is None:
            return None
        entries = [Entry(seq, at, kind, phase, number, payload["node"], payload["detail"])]
        effects = self.run.handle(event)
        opened = self.run.round
        if opened is not None and opened is not before:
            self._opened = at
            terms = opened.terms
            entries.append(self.note("opened", at, {"cohort": list(terms.cohort), "target": terms.target, "quorum": terms.quorum}))
        entries += self._make_durable(effects, seq, at)
        return effects, entries

    def note(self, kind: str, at: datetime, detail: dict[str, Any], where: tuple[str, int] | None = None) -> Entry:
        """Journal something that people want to know and the run does not need."""
        phase, number = where or (str(self.run.phase), self.run.number)
        seq = self.store.append(self.row.id, NOTE + kind, {"phase": phase, "number": number, "detail": detail}, at)
        return Entry(seq or 0, at, kind, phase, number, "", detail)

    def _make_durable(self, effects: list[Effect], seq: int, at: datetime) -> list[Entry]:
        """Carry out the effects that must survive a crash."""
        entries: list[Entry] = []
        for effect in effects:
            if isinstance(effect, Commit):
                entries += self._checkpoint(effect.outcome, seq, at)
            elif isinstance(effect, Finish):
                self._finish(effect.status, effect.reason, at)
                entries.append(self.note("finished", at, {"status": effect.status, "reason": effect.reason}))
        return entries

    def _checkpoint(self, outcome: Outcome | None, seq: int, at: datetime) -> list[Entry]:
        """Model and slots to blobs, then one transaction; only then the answers may go."""
        facts, vectors = self.run.snapshot()
        # Each checkpoint brings its own outcome; repeating all earlier ones would grow with the square of the rounds.
        del facts["history"]
        digests = {name: self.spool.store(vector) for name, vector in vectors.items()}
        model = digests.pop("model", "")
        slots = {name.removeprefix("slot/"): digest for name, digest in digests.items()}
        row = asdict(outcome) if outcome else None
        number = outcome.number if outcome else 0
        self.store.checkpoint(self.row.id, seq, number, outcome.phase if outcome else "init", facts, model, slots, row, at)
        self.spool.clear()
        self.spool.retire(model, frozenset(slots.values()))
        if outcome is None or row is None:
            return []
        seconds = (at - self._opened).total_seconds()
        shown = {k: row[k] for k in ("answered", "failures", "metrics", "sites", "weight")}
        moved, self.traffic = self.traffic, Traffic()
        return [
            self.note("closed", at, {**shown, "seconds": seconds, "bytes_up": moved.up, "bytes_down": moved.down}, (outcome.phase, outcome.number))
        ]

    def _finish(self, status: str, reason: str, at: datetime) -> None:
        """Write down how the run ended, once."""
        if self.row.finished is None:
            self.store.finish(self.row.id, status, reason, json.loads(self.record(at).to_json()), at)
            self.row = self.store.run(self.row.id)
            self.spool.clear()

    def record(self, now: datetime) -> RunRecord:
        """The run's record so far: the facts from the run itself, times and bytes from the notes in the journal."""
        closed = {}
        nodes: set[str] = set()
        for entry in map(Entry.of, self.store.journal(self.row.id)):
            if entry.kind == "closed":
                closed[entry.phase, entry.number] = entry.detail
            elif entry.kind == "opened":
                nodes |= set(entry.detail["cohort"])
        rounds = tuple(_round(o, closed.get((o.phase, o.number), {})) for o in self.run.history)
        return RunRecord(
            run=self.row.id,
            name=self.plan.job.name,
            status=self.run.status,
            reason=self.run.reason,
            plan_toml=self.plan.to_toml(),
            plan_hash=self.plan.digest,
            nodes=tuple(sorted(nodes)),
            rounds=rounds,
            seconds=((self.row.finished or now) - self.row.created).total_seconds(),
            bytes_up=sum(r.bytes_up for r in rounds),
            bytes_down=sum(r.bytes_down for r in rounds),
            model_digest=self.run.digest,
            extra={"seeds": {"job": self.plan.job.seed}, "versions": {"fedscale": fedscale.__version__, "python": platform.python_version()}},
        )


def _round(outcome: Outcome, detail: dict[str, Any]) -> RoundRecord:
    """One phase of the record."""
    return RoundRecord(
        number=outcome.number,
        phase="train" if outcome.phase == "train" else "evaluate",
        answered=outcome.answered,
        failures=outcome.failures,
        metrics=outcome.metrics,
        sites=outcome.sites,
        weight=outcome.weight,
        seconds=float(detail.get("seconds", 0.0)),
        bytes_up=int(detail.get("bytes_up", 0)),
        bytes_down=int(detail.get("bytes_down", 0)),
    )
