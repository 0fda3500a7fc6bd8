"""Blobs and the files below them: whole or not there, whatever fails and whenever."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedscale import files
from fedscale.errors import NotFound, ProtocolError
from fedscale_server.store import blobs as module
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.depot import FolderDepot, Shelf

DATA = bytes(range(256)) * 64
DIGEST = hashlib.sha256(DATA).hexdigest()
MALFORMED = (
    "",
    "0" * 63,
    "0" * 65,
    "G" * 64,
    DIGEST.upper(),
    f"../{DIGEST[3:]}",
    f"{DIGEST}\n",
    "staging",
    "\0" * 64,
    "\N{ARABIC-INDIC DIGIT ZERO}" * 64,
)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def everything(folder: Path) -> set[str]:
    """Relative names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("data", [b"", b"x", DATA, memoryview(DATA), memoryview(bytearray(DATA)).cast("I").cast("B")])
def test_a_blob_is_named_by_its_content(blobs: Blobs, data: bytes | memoryview) -> None:
    digest = blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert blobs.has(digest)
    assert blobs.read(digest) == bytes(data)
    assert blobs.path(digest).read_bytes() == bytes(data)


def test_the_same_content_is_stored_once(blobs: Blobs) -> None:
    assert blobs.put(DATA) == blobs.put(DATA) == DIGEST
    assert everything(blobs.folder) == {DIGEST}


def test_a_blob_outlives_the_object(blobs: Blobs) -> None:
    blobs.put(DATA)
    assert Blobs(blobs.folder).read(DIGEST) == DATA


def test_a_blob_that_is_not_here(blobs: Blobs) -> None:
    assert not blobs.has(DIGEST)
    for ask in (blobs.path, blobs.read):
        with pytest.raises(NotFound, match=f"{DIGEST[:12]}: no such blob"):
            ask(DIGEST)


def test_a_deleted_blob_is_gone_and_may_come_back(blobs: Blobs) -> None:
    blobs.put(DATA)
    blobs.delete(DIGEST)
    blobs.delete(DIGEST)
    assert not blobs.has(DIGEST)
    assert blobs.put(DATA) == DIGEST
    assert blobs.has(DIGEST)


def test_a_reader_keeps_a_blob_that_is_deleted(blobs: Blobs) -> None:
    with blobs.path(blobs.put(DATA)).open("rb") as file:
        blobs.delete(DIGEST)
        assert file.read() == DATA


@pytest.mark.parametrize("damage", [DATA[:-1], DATA + b"\0", b"\1" + DATA[1:], b""])
def test_a_damaged_blob_is_not_handed_out(blobs: Blobs, damage: bytes) -> None:
    blobs.path(blobs.put(DATA)).write_bytes(damage)
    with pytest.raises(NotFound, match="a blob is damaged"):
        blobs.read(DIGEST)


def test_storing_again_mends_a_damaged_blob(blobs: Blobs) -> None:
    blobs.path(blobs.put(DATA)).write_bytes(b"damage")
    blobs.put(DATA)
    assert blobs.read(DIGEST) == DATA


@pytest.mark.parametrize("name", MALFORMED)
def test_only_a_digest_becomes_part_of_a_path(blobs: Blobs, name: str) -> None:
    assert not blobs.has(name)
    staged = blobs.staging()
    staged.write_bytes(DATA)
    for use in (blobs.path, blobs.read, blobs.delete, lambda digest: blobs.adopt(staged, digest)):
        with pytest.raises(ProtocolError, match="64 hexadecimal digits"):
            use(name)
    assert everything(blobs.folder) == {f"staging/{staged.name}"}


def test_a_folder_in_a_blobs_place_is_no_blob(blobs: Blobs) -> None:
    (blobs.folder / DIGEST).mkdir()
    assert not blobs.has(DIGEST)


def test_many_threads_store_the_same_and_different_blobs(blobs: Blobs) -> None:
    contents = [str(number % 10).encode() * 5_000 for number in range(80)]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(blobs.put, contents))
    assert everything(blobs.folder) == set(digests)
    assert [blobs.read(digest) for digest in digests] == contents


# ------------------------------------------------------------------------------------------------------------- adoption


def test_a_staged_file_is_adopted(blobs: Blobs) -> None:
    staged = blobs.staging()
    staged.write_bytes(DATA)
    blobs.adopt(staged, DIGEST)
    assert blobs.read(DIGEST) == DATA
    assert everything(blobs.folder) == {DIGEST}


def test_adopting_again_changes_nothing(blobs: Blobs) -> None:
    blobs.put(DATA)
    staged = blobs.staging()
    staged.write_bytes(DATA)
    blobs.adopt(staged, DIGEST)
    assert everything(blobs.folder) == {DIGEST}


def test_a_file_that_is_not_there_is_not_adopted(blobs: Blobs) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.adopt(blobs.staging(), DIGEST)
    assert not blobs.has(DIGEST)


def test_staging_paths_are_never_the_same(blobs: Blobs) -> None:
    paths = {blobs.staging() for _ in range(100)} | {Blobs(blobs.folder).staging() for _ in range(100)}
    assert len(paths) == 200
    assert not any(path.exists() for path in paths)


def test_cleaning_removes_what_a_dead_process_left(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs.put(DATA)
    with monkeypatch.context() as before:
        before.setattr(module, "PROCESS", "0" * 16)
        stale = blobs.staging()
    mine = blobs.staging()
    for path in (stale, mine):
        path.write_bytes(b"half")
    Blobs(blobs.folder).clean()
    assert everything(blobs.folder) == {DIGEST, f"staging/{mine.name}"}


# --------------------------------------------------------------------------------------------------------------- safety


def test_nobody_else_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        blobs = Blobs(tmp_path / "blobs")
        blobs.put(b"put")
        staged = blobs.staging()
        staged.write_bytes(DATA)
        staged.chmod(0o644)
        blobs.adopt(staged, DIGEST)
    finally:
        os.umask(before)
    folders = [blobs.folder, *(path for path in blobs.folder.rglob("*") if path.is_dir())]
    assert [oct(path.stat().st_mode & 0o777) for path in folders] == ["0o700", "0o700"]
    assert {oct((blobs.folder / name).stat().st_mode & 0o777) for name in everything(blobs.folder)} == {"0o600"}


class Faults:
    """Counts the calls that touch the disk, and lets one of them fail."""

    def __init__(self, fail_at: int) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self._fail_at:
                raise OSError(errno.EIO, "planted")
            return function(*arguments, **options)

        return call

    @contextmanager
    def planted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "fdopen", "fsync"):
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            for name in ("replace", "chmod"):
                patch.setattr(Path, name, self.wrap(name, getattr(Path, name)))
            yield


def fault_points(action: Callable[[Path], None], folder: Path) -> Iterator[tuple[Path, bool, list[str]]]:
    """Do ``action`` in fresh folders, failing its first disk call, its second, and so on until none is left to fail."""
    for number in range(1, 100):
        place, faults = folder / str(number), Faults(number)
        place.mkdir()
        failed = False
        with faults.planted():
            try:
                action(place)
            except OSError:
                failed = True
        yield place, failed, faults.calls
        if not failed:
            return


def test_a_blob_is_whole_or_not_there_whatever_fails(tmp_path: Path) -> None:
    def put(place: Path) -> None:
        Blobs(place / "blobs").put(DATA)

    outcomes = []
    for place, failed, calls in fault_points(put, tmp_path):
        outcomes.append(failed)
        blobs = Blobs(place / "blobs")
        assert not blobs.has(DIGEST) or blobs.read(DIGEST) == DATA, calls
        assert everything(blobs.folder) <= {DIGEST}, "a failed put leaves no draft behind"
        assert failed or blobs.has(DIGEST)
        blobs.put(DATA)
        assert blobs.read(DIGEST) == DATA, "and can be repeated"
    assert outcomes == [True] * (len(outcomes) - 1) + [False]
    assert len(outcomes) >= 8


def test_an_adopted_file_is_whole_or_not_there_whatever_fails(tmp_path: Path) -> None:
    def adopt(place: Path) -> None:
        blobs = Blobs(place / "blobs")
        staged = blobs.staging()
        staged.write_bytes(DATA)
        blobs.adopt(staged, DIGEST)

    outcomes = []
    for place, failed, calls in fault_points(adopt, tmp_path):
        outcomes.append(failed)
        blobs = Blobs(place / "blobs")
        assert not blobs.has(DIGEST) or blobs.read(DIGEST) == DATA, calls
    assert outcomes.count(False) == 1


def test_content_is_durable_before_its_name_and_the_name_before_the_answer(blobs: Blobs) -> None:
    """Each durable step in its order, which a test without a power cut can only see from the calls."""
    faults = Faults(0)
    with faults.planted():
        blobs.put(DATA)
    assert faults.calls == ["open", "fdopen", "fsync", "replace", "open", "fsync"]
    faults.calls.clear()
    staged = blobs.staging()
    staged.write_bytes(DATA)
    with faults.planted():
        blobs.adopt(staged, DIGEST)
    assert faults.calls == ["chmod", "open", "fsync", "replace", "open", "fsync"]


def shelf(folder: Path) -> Shelf:
    """A folder that other servers see too, with one blob in it."""
    depot = FolderDepot(folder / "shared")
    depot.begin()
    (folder / "in").write_bytes(DATA)
    depot.put(f"k/{DIGEST}/1", folder / "in")
    return Shelf(depot, "k", 2)


def test_a_fetched_blob_is_durable_before_its_name(tmp_path: Path) -> None:
    blobs, faults = Blobs(tmp_path / "blobs", shelf(tmp_path)), Faults(0)
    with faults.planted():
        assert blobs.find(DIGEST)
    assert faults.calls == ["chmod", "open", "fsync", "replace", "open", "fsync"]


def test_a_fetched_blob_is_whole_or_not_there_whatever_fails(tmp_path: Path) -> None:
    shared, outcomes = shelf(tmp_path), []

    def find(place: Path) -> None:
        assert Blobs(place / "blobs", shared).find(DIGEST)

    for place, failed, calls in fault_points(find, tmp_path):
        outcomes.append(failed)
        alone = Blobs(place / "blobs")
        assert not alone.has(DIGEST) or alone.read(DIGEST) == DATA, calls
        assert everything(alone.folder) <= {DIGEST}
    assert outcomes == [True] * (len(outcomes) - 1) + [False]


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    def replace(place: Path) -> None:
        (place / "settings").write_bytes(b"old")
        files.write(place / "settings", b"new")

    for place, failed, calls in fault_points(replace, tmp_path):
        assert (place / "settings").read_bytes() in ((b"old", b"new") if failed else (b"new",)), calls
        assert everything(place) == {"settings"}
