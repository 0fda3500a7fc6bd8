"""Runs of every shape without a network: logbook, spool and uploads of a server, driven by nodes that answer whatever they are asked.

Without sockets and processes a run takes milliseconds, so that a power cut can be tried at every moment of it in many ways.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeAlias
from unittest.mock import patch

import numpy as np
import pytest

from fedscale.errors import Cause, Failure, Unreachable
from fedscale.events import Answered, Assign, Event, Failed, Initialized, Roster
from fedscale.plan import Plan
from fedscale.ring import Words
from fedscale.run import Run, model_digest
from fedscale.task import Task
from fedscale.update import Update
from fedscale.vector import Schema
from fedscale.wire.codec import digest_of
from fedscale_server.logbook import Logbook
from fedscale_server.spool import Spool
from fedscale_server.store import blobs, database
from fedscale_server.store.store import Store
from fedscale_server.uploads import Upload, arrived
from tests.chaos.platter import DATABASE, Cut, Platter, Remains, refusing
from tests.server.running import plan_text
from tests.server.samples import NOW, later

RUN, STRATEGIES = "r1", ("fedavg", "fedavgm", "fedadam", "fedyogi")
Told: TypeAlias = tuple[str, int, str]
End: TypeAlias = tuple[str, str, tuple[tuple[object, ...], ...]]


@dataclass(frozen=True)
class Errand:
    """A run and what its nodes do.

    Args:
        seed: decides everything.
        nodes: who takes part.
        size: coordinates of the model.
        plan: the run's plan.
        unable: rounds and nodes where training fails.
    """

    seed: int
    nodes: tuple[str, ...]
    size: int
    plan: str
    unable: frozenset[tuple[int, str]] = field(default_factory=frozenset)

    @classmethod
    def drawn(cls, seed: int) -> Errand:
        """A run by chance."""
        chance = random.Random(seed)
        nodes = tuple(f"node-{number}" for number in range(chance.randint(2, 4)))
        rounds = chance.randint(1, 3)
        strategy = {"name": chance.choice(STRATEGIES), "rounds": rounds}
        clients = {"min_per_round": 1, "wait_for": len(nodes)}
        plan = plan_text(strategy=strategy, every=chance.choice((0, 1, rounds)), seed=seed, clients=clients)
        # The first node is always able: a round that everybody fails ends the run.
        unable = {(number, node) for number in range(1, rounds + 1) for node in nodes[1:] if chance.random() < 0.2}
        return cls(seed, nodes, chance.randint(1, 40), plan, frozenset(unable))

    def first(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """The first model."""
        return np.random.default_rng(self.seed).normal(size=self.size).astype(np.float32)

    def end(self) -> End:
        """How the run ends where nothing breaks and nothing is stored: its status, its model, and who is in each round."""
        plan = Plan.from_toml(self.plan)
        run, model = Run(plan, plan.strategy.build()), self.first()
        run.handle(Roster(self.nodes))
        run.handle(Initialized(run.asked, Schema.of({"w": model}).to_json(), model_digest(model), model))
        while run.status == "running":
            run.handle(Roster(self.nodes))
            for task in [task for effect in run.round.requests() if isinstance(effect, Assign) for task in effect.tasks] if run.round else ():
                run.handle(self.failed(task) or Answered(task.node, task.node, self.words(task)))
        return run.status, run.digest, tuple((closed.number, closed.phase, *closed.answered, closed.weight) for closed in run.history)

    def failed(self, task: Task) -> Failed | None:
        """What a node says that cannot do its task."""
        able = task.phase != "train" or (task.number, task.node) not in self.unable
        return None if able else Failed(task.node, Failure(Cause.DATA, "no such column"))

    def words(self, task: Task) -> Words:
        """A node's answer, the same whenever it is asked."""
        place = self.nodes.index(task.node) + 1
        change = np.random.default_rng((self.seed, task.number, place)).normal(size=task.layout.size).astype(np.float32)
        metrics = {metric.name: np.full(metric.width, float(place)) for metric in task.layout.metrics}
        return task.layout.encode(Update(change, place + 0.5, metrics))


@contextmanager
def careless() -> Iterator[None]:
    """Nothing is synced: of what has begun after a power cut, none is to survive another one, and the tests need not wait for a disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(database, "PRAGMAS", tuple(each.replace("FULL", "OFF") for each in database.PRAGMAS))
        yield


@dataclass
class Site:
    """One server's files and database, and how it drives an errand.

    Args:
        home: its folder.
        store: the database in it.
        errand: what is done.
        chance: where uploads break off.
        told: hears of every answer that was accepted.
    """

    home: Path
    store: Store
    errand: Errand
    chance: random.Random
    told: Callable[[Told], None]
    asked: list[Told] = field(default_factory=list)

    def submit(self) -> None:
        """Begin the run, once."""
        plan = self.errand.plan
        self.store.create_project("ward", NOW)
        self.store.create_run(RUN, project="ward", name="errand", plan=plan, plan_hash=Plan.from_toml(plan).digest, bundle="bb", key="only", now=NOW)

    def play(self) -> None:
        """Take the run up from what is there, to its end."""
        row, spool = self.store.run(RUN), Spool(self.home / "runs" / RUN)
        if row.finished is not None:
            spool.clear()  # as the engine sweeps behind runs that are over
            return
        book = Logbook.open(self.store, spool, row)
        while book.run.status == "running" and book.row.finished is None:
            self._step(book)

    def _step(self, book: Logbook) -> None:
        """Whatever the run waits for."""
        run = book.run
        if run.asked:
            self._initialize(book)
            return
        if run.round is None:
            assert book.apply(Roster(self.errand.nodes), later(1)) is not None
            return
        task = self.chance.choice([task for effect in run.round.requests() if isinstance(effect, Assign) for task in effect.tasks])
        told = (str(task.phase), task.number, task.node)
        self.asked.append(told)
        if failed := self.errand.failed(task):
            assert book.apply(failed, later(2)) is not None
            return
        event = self._delivered(book, task)
        assert book.apply(event, later(2), "/".join(map(str, told))) is not None, "an answer was asked for that is in the journal"
        self.told(told)

    def _initialize(self, book: Logbook) -> None:
        model, node = self.errand.first(), book.run.asked
        digest = book.spool.store(model)
        schema = Schema.of({"w": model}).to_json()
        assert book.apply(Initialized(node, schema, digest, book.spool.kept(digest)), later(1), f"init/0/{node}") is not None

    def _delivered(self, book: Logbook, task: Task) -> Event:
        """An answer that arrives, perhaps not at the first attempt."""
        spool, body = book.spool, self.errand.words(task).tobytes()
        digest = digest_of(body)
        target = spool.answer(str(task.phase), task.number, task.node, digest)
        staged = spool.blobs.staging()
        while not self._received(spool, target, staged, body, digest):
            pass
        words = spool.words(staged, name=target.name)
        task.layout.check(words)
        spool.keep(staged, target)
        return Answered(task.node, digest, words)

    def _received(self, spool: Spool, target: Path, staged: Path, body: bytes, digest: str) -> bool:
        """One attempt to upload, from where the last one ended."""
        path = spool.upload(target)
        offset = min(arrived(path), len(body))
        with closing(Upload(path, len(body), digest, offset, spool.vault.writing(path.name))) as upload:
            upload.resume()
            if self.chance.random() < 0.3:
                upload.take(body[offset : self.chance.randint(offset, len(body))])
                return False
            try:
                upload.take(body[offset:])
                upload.done(staged)
            except Unreachable:  # what a power cut has left was no beginning of it
                return False
        return True

    def faults(self, told: set[Told]) -> list[str]:
        """What is wrong with a run that has ended, given which answers were accepted before a crash."""
        end = self.errand.end()
        lines = self.store.journal(RUN)
        answers = [line.unique_key for line in lines if line.kind == "answered"]
        left = [path for path in (self.home / "runs" / RUN).rglob("*") if path.is_file() and path.parent.name != "blobs"]
        checks = {
            f"it ended as {self.end()}": self.end() == end,
            f"asked again: {told & set(self.asked)}": not told & set(self.asked),
            "an answer is in the journal twice": len(answers) == len(set(answers)),
            "the journal has gaps": [line.seq for line in lines] == list(range(1, len(lines) + 1)),
            "its end is not told once": [line.kind for line in lines].count("note.finished") == 1,
            "not every round is told of once": [line.kind for line in lines].count("note.closed") == len(end[2]),
            f"left behind: {[path.name for path in left]}": not left,
        }
        return [fault for fault, right in checks.items() if not right]

    def end(self) -> End:
        """How the run ended: its status, its model and who is in each round."""
        record = self.store.run(RUN).record
        assert record is not None
        rounds = tuple((row["number"], row["phase"], *row["answered"], row["weight"]) for row in record["rounds"])
        return record["status"], record["model_digest"], rounds


@dataclass(frozen=True)
class Bench:
    """Where one run after the other is put through its power cuts; the database is the same file all along, for opening another one costs
    more than the run.

    Args:
        folder: everything lies here.
        empty: a database with nothing in it.
        store: the database.
    """

    folder: Path
    empty: bytes
    store: Store

    @classmethod
    @contextmanager
    def at(cls, folder: Path, empty: Path) -> Iterator[Self]:
        """A bench in a folder of its own."""
        (folder / "home").mkdir()
        shutil.copy(empty, folder / "home" / DATABASE)
        with careless(), closing(Store.open(f"sqlite:///{folder / 'home' / DATABASE}")) as store:
            yield cls(folder, empty.read_bytes(), store)

    def tried(self, seed: int, cuts: int) -> tuple[int, list[tuple[str, list[str]]]]:
        """One run and so many power cuts of it, if it has as many; returns how many, and after which call of the disk what was wrong."""
        chance, errand = random.Random(seed), Errand.drawn(seed)
        found = self.recorded(errand, chance)
        chosen = chance.sample(found, min(cuts, len(found)))
        return len(chosen), [(remains.after, wrong) for remains in chosen if (wrong := self.faults(errand, remains, chance))]

    def site(self, errand: Errand, chance: random.Random, told: Callable[[Any], None]) -> Site:
        return Site(self.folder / "home", self.store, errand, chance, told)

    def lay_out(self, remains: Remains) -> None:
        """Begin with what a power cut has left."""
        self.store.close()
        shutil.rmtree(self.folder / "home")
        (self.folder / "home").mkdir()
        remains.lay_out(self.folder / "home")

    def recorded(self, errand: Errand, chance: random.Random) -> list[Remains]:
        """Every moment of a run at which the power may go."""
        self.lay_out(Remains(Cut.EVERYTHING, "", {"runs": None}, self.empty, ()))
        with TemporaryDirectory(dir=self.folder) as grave:
            platter = Platter(self.folder / "home", ("runs",), Path(grave), chance)
            site = self.site(errand, chance, platter.tell)
            with platter.watched(Cut.NOTHING, Cut.ANYHOW, Cut.ANYHOW), refusing(platter):
                site.submit()
                site.play()
                platter.cut("the end")
        return list(platter.remains.values())

    def faults(self, errand: Errand, remains: Remains, chance: random.Random) -> list[str]:
        """What is wrong with the run that goes on from what a power cut has left."""
        self.lay_out(remains)
        site = self.site(errand, chance, lambda _: None)
        if not self.store.runs():
            return ["the run is gone"] if remains.told else []
        # What an earlier process has staged is told by its name.
        with patch.object(blobs, "PROCESS", f"{chance.getrandbits(64):x}"):
            site.play()
        return site.faults(set(remains.told))
