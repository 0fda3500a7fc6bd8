"""The durable half of a led run: its letters and what became of them, in the journal; replies on disk until the run is over.

The journal alone says how a led run stands: there are no checkpoints. A line is made, appended, and only then taken; what
blocks, the courier calls in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import fedscale
from fedscale.errors import Cause, Failure
from fedscale.events import failure_of
from fedscale.learner import Phase
from fedscale.letters import MODEL, RUNNING, Correspondence, Letter, Place, Reply
from fedscale.plan import Plan
from fedscale.record import RoundRecord
from fedscale_server.logbook import NOTE, Entry, Traffic, bare_record

if TYPE_CHECKING:
    from pathlib import Path

    from fedscale.record import RunRecord
    from fedscale_server.spool import Spool
    from fedscale_server.store.store import Store
    from fedscale_server.store.tables import RunRow

PIECE = 1 << 18  # words of a reply that are read at a time
# A phase of a round and its metrics, as whoever leads the run makes them of the replies.
Metrics: TypeAlias = "Iterable[tuple[str, int, dict[str, float]]]"
# Kind, payload, and a name that only one line of the run may have.
Line: TypeAlias = tuple[str, dict[str, Any], str | None]
ROSTER, POSTED, ANSWERED, FAILED = "roster", "posted", "answered", "failed"
SETTLED, LOST = "settled", "lost"
LEADER, METRICS = "leader", "metrics"
TRAIN, EVALUATE = Phase.TRAIN.value, Phase.EVALUATE.value
FINISHED = f"{NOTE}finished"


@dataclass(slots=True)
class _Page:
    """What the run's record says of one phase of a round."""

    began: datetime
    ended: datetime
    answered: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    up: int = 0
    down: int = 0

    def take(self, node: str, failure: Failure | None, at: datetime, size: int, *, own: bool) -> None:
        """Note what became of a letter; ``own`` where it was of this very phase, rather than a query that counts to it."""
        self.ended, self.up = at, self.up + size
        if failure is None:
            self.answered.add(node)
            self.measured |= {node} if own else set()
        else:
            self.failures[node] = failure


class Letterbook:
    """One led run and everything of it that survives a crash.

    Args:
        store: the database.
        spool: the run's files.
        row: the run.

    Attributes:
        told: the line of the newest reply that the leader may have heard of.
    """

    def __init__(self, store: Store, spool: Spool, row: RunRow) -> None:
        self.store, self.spool, self.row = store, spool, row
        self.plan = Plan.from_toml(row.plan, file=f"plan of run {row.id}")
        self.run, self.traffic = Correspondence(), Traffic()
        self.posted_at: dict[Place, datetime] = {}
        self.leader, self.told = "", 0
        self._paused_at, self._last, self._known = row.created, 0, 0
        self._pages: dict[tuple[str, int], _Page] = {}
        self._metrics: dict[tuple[str, int], dict[str, float]] = {}
        self._model = ""

    @classmethod
    def open(cls, store: Store, spool: Spool, row: RunRow) -> Letterbook:
        """The run as its journal tells it; one that had come to its end is ended again, for the crash may have come in between."""
        book = cls(store, spool, row)
        spool.blobs.clean()
        last = row.created
        for line in store.journal(row.id):
            book.take((line.kind, line.payload, line.unique_key), line.seq, line.at)
            last, book.told = line.at, line.seq
        if book.run.status != RUNNING:
            book.close(last)
        return book

    def led(self, who: str) -> list[Line]:
        """The line that says who leads."""
        return [(NOTE + LEADER, _payload("init", 0, detail={"who": who}), LEADER)]

    def gathered(self, nodes: Iterable[str]) -> list[Line]:
        """The line that settles who takes part."""
        return [(ROSTER, _payload("init", 0, event={"nodes": list(nodes)}), ROSTER)]

    def posted(self, letters: Iterable[Letter]) -> list[Line]:
        """The lines of letters that were not posted before."""
        return [(POSTED, _payload(x.phase, x.round, x.node, asdict(x), {"letter": x.number}), f"{POSTED}/{x.node}/{x.number}") for x in letters]

    def answered(self, place: Place, digest: str, size: int) -> list[Line]:
        """The line of a reply."""
        return self._settled(ANSWERED, place, digest, {"bytes": size})

    def failed(self, place: Place, failure: Failure) -> list[Line]:
        """The line of a letter that will not be answered."""
        return self._settled(FAILED, place, "", asdict(failure))

    def lost(self, reply: Reply, what: str) -> list[Line]:
        """The lines of a reply that the disk has lost; they end the run where later letters may rest on it, for no leader would ask those again."""
        lines = self._settled(FAILED, reply.place, "", asdict(Failure(Cause.LOST, what, where="the coordinator's disk")), LOST)
        if reply.sequence > self._known:
            return lines
        why = f"the coordinator's disk has lost the reply of '{reply.node}' to message {reply.number}, on which later messages rest"
        return lines + self.finished("failed", f"{why}: no leader can go on, begin the run anew")

    def paused(self, *, paused: bool) -> list[Line]:
        """The line that lets no more letters be handed out, or lets them again."""
        return [("pause" if paused else "resume", _payload(self.run.phase, self.run.number), None)]

    def finished(self, status: str, reason: str, metrics: Metrics = (), model: str = "") -> list[Line]:
        """The lines that end the run; ``model`` is the SHA-256 of the one that its leader keeps."""
        # Of how many people a single site tells, its leader does not say.
        rows = [list(row) for row in metrics if (page := self._pages.get(row[:2])) is None or len(page.measured) != 1]
        told = _payload(self.run.phase, self.run.number, event={"rows": rows, "model": model})
        ended = _payload(self.run.phase, self.run.number, detail={"status": status, "reason": reason})
        return [(NOTE + METRICS, told, METRICS), (FINISHED, ended, FINISHED)]

    def append(self, lines: Iterable[Line], at: datetime) -> list[int | None]:
        """Journal lines in one transaction; their numbers, ``None`` for one that stands there already. Blocks."""
        return self.store.append_all(self.row.id, lines, at)

    def missed(self) -> list[tuple[Line, int, datetime]]:
        """Lines of the journal that were not taken: the database stored them and could not say so. Blocks."""
        return [((line.kind, line.payload, line.unique_key), line.seq, line.at) for line in self.store.journal(self.row.id, self._last)]

    def take(self, line: Line, seq: int, at: datetime) -> Entry:
        """Take a line of the journal, now or again; returns it as watchers get it."""
        kind, payload, _ = line
        event, detail, node = payload["event"], payload["detail"], payload["node"]
        self._last = seq
        if kind == ROSTER:
            self.run.members = tuple(event["nodes"])
        elif kind == NOTE + LEADER:
            self.leader = detail["who"]
        elif kind == POSTED:
            letter = Letter(**event)
            self.run.post(letter)
            self._known = self.told
            self.posted_at[letter.place] = at
            self._pages.setdefault((_counted(letter.phase), letter.round), _Page(at, at)).down += letter.size
        elif kind in (ANSWERED, FAILED):
            failure = failure_of(detail) if kind == FAILED else None
            reply = Reply(seq, node, event["number"], event["digest"], failure)
            if failure is not None and reply.place in self.run.replies:
                self.run.lose(reply.place, failure)
            else:
                self.run.settle(reply)
            phase = _counted(payload["phase"])
            self._pages[phase, payload["number"]].take(node, failure, at, detail.get("bytes", 0), own=phase == payload["phase"])
        elif kind in ("pause", "resume"):
            self._pause(at, paused=kind == "pause")
        elif kind == NOTE + METRICS:
            self._metrics = {(phase, number): values for phase, number, values in event["rows"]}
            self._model = event.get("model", "")
        elif kind == FINISHED:
            self.run.status, self.run.reason = detail["status"], detail["reason"]
        return Entry(seq, at, kind.removeprefix(NOTE), payload["phase"], payload["number"], node, detail)

    def _pause(self, at: datetime, *, paused: bool) -> None:
        """Note a pause, or its end; it takes nothing of the time that a letter has."""
        if self.run.paused and not paused:
            for place in (letter.place for letters in self.run.open.values() for letter in letters):
                self.posted_at[place] += at - max(self._paused_at, self.posted_at[place])
        if paused and not self.run.paused:
            self._paused_at = at
        self.run.paused = paused

    def keep(self, place: Place, staged: Path, digest: str) -> int:
        """Make a reply that has arrived durable under its name; its size. Blocks."""
        size = staged.stat().st_size
        self.spool.keep(staged, self._file(place, digest))
        return size

    def close(self, at: datetime) -> None:
        """Drop what was kept for the run's leader, and then write down how the run ended: one that broke off in between is closed again. Blocks."""
        self.spool.clear()
        self.spool.blobs.clear()
        self.store.finish(self.row.id, self.run.status, self.run.reason, json.loads(self.record(at).to_json()), at)
        self.row = self.store.run(self.row.id)

    def content(self, reply: Reply) -> Iterator[bytes]:
        """A reply in pieces, after all of it was checked. Blocks.

        Raises:
            NotFound: it is missing.
            ProtocolError: it is damaged.
            OSError: the disk refuses at the moment.
        """
        words = self.spool.words(self._file(reply.place, reply.digest), reply.digest)
        return (words[start : start + PIECE].tobytes() for start in range(0, words.size, PIECE))

    def record(self, now: datetime) -> RunRecord:
        """The run's record so far."""
        rounds = tuple(self._round(*key) for key in dict.fromkeys([*self._pages, *self._metrics]))
        return replace(
            bare_record(self.row, self.run.status, self.run.reason, now),
            nodes=self.run.members,
            rounds=rounds,
            bytes_up=sum(row.bytes_up for row in rounds),
            bytes_down=sum(row.bytes_down for row in rounds),
            extra={"versions": {"fedscale": fedscale.__version__}, **({"hashes": {MODEL: self._model}} if self._model else {})},
        )

    def _round(self, phase: str, number: int) -> RoundRecord:
        """One phase of the record."""
        page = self._pages.get((phase, number)) or _Page(self.row.created, self.row.created)
        return RoundRecord(
            number=number,
            phase="train" if phase == TRAIN else "evaluate",
            answered=tuple(sorted(page.answered)),
            failures=dict(sorted(page.failures.items())),
            metrics=self._metrics.get((phase, number), {}),
            sites={},
            weight=0.0,
            seconds=max((page.ended - page.began).total_seconds(), 0.0),
            bytes_up=page.up,
            bytes_down=page.down,
        )

    def _settled(self, kind: str, place: Place, digest: str, detail: dict[str, Any], name: str = SETTLED) -> list[Line]:
        """The line that says what became of a letter; there is only one, and one more where the disk has lost the reply."""
        letter = self.run.letters[place]
        payload = _payload(letter.phase, letter.round, letter.node, {"number": letter.number, "digest": digest}, detail)
        return [(kind, payload, f"{name}/{letter.node}/{letter.number}")]

    def _file(self, place: Place, digest: str) -> Path:
        return self.spool.answer(Phase.MESSAGE, place[1], place[0], digest)


def _counted(phase: str) -> str:
    """The phase of the record to which a letter counts: whatever is no training is evaluation."""
    return TRAIN if phase == TRAIN else EVALUATE


def _payload(phase: str, number: int, node: str = "", event: dict[str, Any] | None = None, detail: dict[str, Any] | None = None) -> dict[str, Any]:
    """A line as every run's journal has it."""
    return {"event": event or {}, "phase": phase, "number": number, "node": node, "detail": detail or {}}
