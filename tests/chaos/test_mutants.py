"""Mistakes planted in the server and the core: the kit must find nearly all of them, or it proves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from fedscale import files
from fedscale import round as rounds
from fedscale import run as runs
from fedscale.aggregate import Mean
from fedscale.round import Place, Round, Status
from fedscale.run import Run
from fedscale.vector import Vector
from fedscale.wire.codec import Intake, digest_of
from fedscale_server.driver import Driver
from fedscale_server.logbook import Logbook
from fedscale_server.spool import Spool
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Checkpoint
from fedscale_server.vault import Vault
from tests.chaos import drill

Plant = Callable[[pytest.MonkeyPatch], None]
PURE: dict[str, Plant] = {}
DURABLE: dict[str, Plant] = {}
SCATTERED: dict[str, Plant] = {}
FOUND, PATIENCE, SLOWER = 0.9, 20.0, 3.0


def pure(plant: Plant) -> Plant:
    PURE[plant.__name__] = plant
    return plant


def durable(plant: Plant) -> Plant:
    DURABLE[plant.__name__] = plant
    return plant


def scattered(plant: Plant) -> Plant:
    SCATTERED[plant.__name__] = plant
    return plant


def around(patch: pytest.MonkeyPatch, owner: Any, name: str, made: Callable[..., Any]) -> None:
    """Replace a method by one that gets the real one first."""
    real = getattr(owner, name)
    patch.setattr(owner, name, lambda *given, **named: made(real, *given, **named))


def move(patch: pytest.MonkeyPatch, place: Place, kind: str, to: Place | None) -> None:
    changed = dict(rounds.MOVES)
    changed.pop((place, kind), None)
    patch.setattr(rounds, "MOVES", changed | ({} if to is None else {(place, kind): to}))


# ---------------------------------------------------------------------------------------------------------- the core


@pure
def an_answer_is_added_twice(patch: pytest.MonkeyPatch) -> None:
    def twice(real: Any, self: Any, partial: Any, words: Any) -> None:
        real(self, partial, words)
        real(self, partial, words)

    around(patch, Mean, "add", twice)


@pure
def an_answer_is_not_added(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mean, "add", lambda *_: None)


@pure
def the_sum_depends_on_the_order(patch: pytest.MonkeyPatch) -> None:
    def rounded(real: Any, self: Any, partial: Any, words: Any) -> None:
        real(self, partial, words)
        partial.words[:] = partial.words // np.uint32(3) * np.uint32(3) + np.uint32(partial.count % 2)

    around(patch, Mean, "add", rounded)


@pure
def an_answer_sent_again_counts_again(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.ANSWERED, "answered", Place.ANSWERED)


@pure
def a_failure_after_the_answer_counts(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.ANSWERED, "failed", Place.FAILED)


@pure
def a_node_that_leaves_after_its_answer_is_asked_again(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.ANSWERED, "lost", Place.LOST)


@pure
def an_upload_that_outlives_its_stream_is_dropped(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.LOST, "answered", None)


@pure
def a_lost_node_is_waited_for_without_end(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.LOST, "fired", None)


@pure
def a_failed_node_may_answer_after_all(patch: pytest.MonkeyPatch) -> None:
    move(patch, Place.FAILED, "answered", Place.ANSWERED)


@pure
def the_deadline_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Round, "_expire", lambda self: [])
    around(patch, Round, "_settle", lambda real, self, *, final: real(self, final=False))


@pure
def a_round_closes_below_its_quorum(patch: pytest.MonkeyPatch) -> None:
    def closed(real: Any, self: Round, *, final: bool) -> Any:
        effects = real(self, final=final)
        self.status = Status.CLOSED if self.status is Status.FAILED and self.counts[Place.ANSWERED] else self.status
        return effects

    around(patch, Round, "_settle", closed)


@pure
def a_checkpoint_forgets_the_round(patch: pytest.MonkeyPatch) -> None:
    def forgetful(real: Any, self: Run) -> Any:
        facts, vectors = real(self)
        return {**facts, "number": max(facts["number"] - 1, 1)}, vectors

    around(patch, Run, "snapshot", forgetful)


@pure
def the_digest_is_that_of_the_model_before(patch: pytest.MonkeyPatch) -> None:
    before = [""]

    def stale(real: Any, model: Any) -> str:
        before.append(real(model))
        return before[-2]

    around(patch, runs, "model_digest", stale)


# -------------------------------------------------------------------------------------------------------- the server


@durable
def nothing_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "sync", lambda path: None)


@durable
def names_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "move", lambda source, target: source.replace(target))


@durable
def an_answer_is_renamed_before_it_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "keep", lambda self, staged, target: files.move(staged, target))


@durable
def a_model_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    def store(self: Spool, vector: Vector, digest: str = "") -> str:
        data = vector.tobytes()  # it may be mapped from that very file
        digest = digest or digest_of(data)
        self.blobs._named(digest).write_bytes(data)
        return digest

    patch.setattr(Spool, "store", store)


@durable
def folders_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    def private(path: Path) -> Path:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    patch.setattr(files, "private_folder", private)


@durable
def an_answer_is_accepted_before_it_is_in_the_journal(patch: pytest.MonkeyPatch) -> None:
    waiting: list[tuple[Any, ...]] = []
    real = Store.append_all

    def late(self: Store, run: str, lines: Any, at: Any) -> Any:
        if lines[0][0] == "answered":
            waiting.append((run, lines, at))
            return [10_000 + len(waiting)]
        while waiting:
            real(self, *waiting.pop(0))
        return real(self, run, lines, at)

    patch.setattr(Store, "append_all", late)


@durable
def a_line_of_the_journal_has_no_name_of_its_own(patch: pytest.MonkeyPatch) -> None:
    around(patch, Store, "append_all", lambda real, self, run, lines, at: real(self, run, [(kind, payload, None) for kind, payload, _ in lines], at))


@durable
def the_checkpoint_comes_before_the_model(patch: pytest.MonkeyPatch) -> None:
    waiting: list[tuple[Spool, Any]] = []
    store, checkpoint = Spool.store, Store.checkpoint

    def promised(self: Spool, vector: Any, digest: str = "") -> str:
        waiting.append((self, vector.copy()))
        return runs.model_digest(vector)

    def early(self: Store, *given: Any) -> None:
        checkpoint(self, *given)
        while waiting:
            store(*waiting.pop())

    patch.setattr(Spool, "store", promised)
    patch.setattr(Spool, "kept", lambda _, digest: next(vector for _, vector in waiting if runs.model_digest(vector) == digest))
    patch.setattr(Store, "checkpoint", early)


@durable
def answers_are_dropped_before_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    around(patch, Logbook, "_checkpoint", lambda real, self, *given: (self.spool.clear(), real(self, *given))[1])


@durable
def the_newest_model_is_swept_away(patch: pytest.MonkeyPatch) -> None:
    around(patch, Spool, "retire", lambda real, self, model, keep: (real(self, model, keep), self.blobs.delete(model))[0])


@durable
def answers_are_not_read_back(patch: pytest.MonkeyPatch) -> None:
    around(patch, Logbook, "_loaded", lambda real, self, event, payload: None if "words" in dir(event) else real(self, event, payload))


@durable
def a_checkpoint_skips_the_event_behind_it(patch: pytest.MonkeyPatch) -> None:
    around(patch, Store, "checkpoint", lambda real, self, run, seq, *rest: real(self, run, seq + 2, *rest))


@durable
def closed_rounds_are_not_in_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "outcomes", lambda self, run: [])


@durable
def an_answer_sent_again_is_accepted_again(patch: pytest.MonkeyPatch) -> None:
    around(patch, Driver, "receipt", lambda real, *given: type(real(*given))(verdict=type(real(*given)).ACCEPTED))


# -------------------------------------------------------------------------------------- what a disk may do to a server


@scattered
def the_key_of_a_round_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "write", lambda path, data: path.write_bytes(data))


@scattered
def the_key_of_a_round_outlives_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Vault, "destroy", lambda self: setattr(self, "_secret", bytearray()))


@scattered
def the_state_of_the_optimizer_is_not_in_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def without(real: Any, self: Run) -> Any:
        facts, vectors = real(self)
        return facts, {name: vector * np.float32(not name.startswith("slot/")) for name, vector in vectors.items()}

    around(patch, Run, "snapshot", without)


@scattered
def an_upload_is_believed_whatever_lay_there_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "done", lambda _: None)


@scattered
def the_line_that_a_crash_left_out_is_not_written(patch: pytest.MonkeyPatch) -> None:
    around(patch, Store, "last_checkpoint", lambda real, self, run: _silent(real(self, run)))


def _silent(checkpoint: Checkpoint | None) -> Checkpoint | None:
    if checkpoint is not None:
        checkpoint.outcome = None
    return checkpoint


# ------------------------------------------------------------------------------------------------------------ the kit


def found_by_the_core(plant: Plant) -> bool:
    """Whether the core's part of the kit fails with a mistake planted."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        return _fails(drill.pure)


def _fails(kit: Callable[[], object]) -> bool:
    found = True
    # Whatever stands out is a find.
    with suppress(Exception):
        kit()
        found = False
    return found


async def found_by_the_server(plant: Plant, folder: Path, database: Path, patience: float) -> bool:
    """Whether the server's part of the kit fails with a mistake planted; one that hangs for so many seconds has been found too."""
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs():
        plant(patch)
        found = True
        with suppress(Exception):
            async with asyncio.timeout(patience):
                await drill.durable(folder, database)
            found = False
    return found


def test_without_a_mistake_the_core_passes() -> None:
    assert drill.pure()


@pytest.mark.timeout(1800)
async def test_without_a_mistake_the_server_passes(tmp_path: Path, sqlite_at_head: Path) -> None:
    assert await drill.durable(tmp_path, sqlite_at_head)


def test_without_a_mistake_a_server_survives_its_disk(tmp_path: Path, sqlite_at_head: Path) -> None:
    assert drill.scattered(tmp_path, sqlite_at_head)


def test_the_kit_finds_nine_of_ten_mistakes_in_the_core() -> None:
    missed = [name for name, plant in PURE.items() if not found_by_the_core(plant)]
    assert len(missed) <= (1 - FOUND) * len(PURE), missed


@pytest.mark.timeout(3600)
async def test_the_kit_finds_nine_of_ten_mistakes_in_the_server(tmp_path: Path, sqlite_at_head: Path) -> None:
    missed, began = [], time.monotonic()
    (tmp_path / "sound").mkdir()
    assert await drill.durable(tmp_path / "sound", sqlite_at_head)
    # On a slow machine a server without a mistake would seem to hang as well, and every mistake to be found.
    patience = max(PATIENCE, SLOWER * (time.monotonic() - began))
    for name, plant in DURABLE.items():
        (tmp_path / name).mkdir()
        if not await found_by_the_server(plant, tmp_path / name, sqlite_at_head, patience):
            missed.append(name)
    assert len(missed) <= (1 - FOUND) * len(DURABLE), missed


@pytest.mark.timeout(900)
def test_the_kit_finds_every_mistake_that_a_disk_brings_to_light(tmp_path: Path, sqlite_at_head: Path) -> None:
    missed = []
    for name, plant in SCATTERED.items():
        (tmp_path / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            if not _fails(partial(drill.scattered, tmp_path / name, sqlite_at_head)):
                missed.append(name)
    assert missed == []


def test_there_are_enough_mistakes() -> None:
    assert len(PURE) + len(DURABLE) + len(SCATTERED) >= 30
