"""The files of a run: complete or not there, checked when they are read back, and gone when nobody needs them."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.aggregate import Mean
from fedscale.errors import NotFound, ProtocolError
from fedscale.ring import BLOCK, WORD, Words
from fedscale.update import Layout, Update
from fedscale.vector import PIECE, Vector, finite
from fedscale.wire.codec import digest_of
from fedscale_server.spool import Spool

WORDS = np.arange(6, dtype=WORD)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "runs" / "r1")


def keep(spool: Spool, words: np.ndarray = WORDS, node: str = "ada") -> Path:
    staged = spool.blobs.staging()
    target = spool.answer("train", 1, node, digest_of(words.tobytes()))
    staged.write_bytes(spool.vault.writing(target.name).update(words.tobytes()))
    spool.keep(staged, target)
    assert not staged.exists()
    return target


def test_an_answer_is_read_back_as_it_was_and_is_private(spool: Spool) -> None:
    path = keep(spool)
    assert spool.words(path)[:].tolist() == WORDS.tolist()
    assert spool.words(path, digest_of(WORDS.tobytes()))[:].dtype == WORD
    assert path.stat().st_mode & 0o777 == 0o600
    assert spool.answers.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="read-only"):
        spool.words(path)[:][0] = 1


@given(start=st.integers(-12, 12), stop=st.integers(-12, 12))
@settings(max_examples=60, deadline=None)
def test_any_piece_of_an_answer_is_the_same_piece_of_its_words(tmp_path_factory: pytest.TempPathFactory, start: int, stop: int) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool") / "r1")
    words = np.arange(1, 11, dtype=WORD) * np.uint32(0x01010101)
    sealed = spool.words(keep(spool, words))
    assert (sealed.size, sealed.shape, sealed.dtype) == (10, (10,), WORD)
    assert sealed[start:stop].tolist() == words[start:stop].tolist()


def test_a_large_answer_is_added_in_pieces_and_never_held(spool: Spool) -> None:
    layout = Layout(3 * BLOCK + 5, (), 4)
    words = layout.encode(Update(np.linspace(-1, 1, layout.size, dtype=np.float32), 2.0))
    sealed = spool.words(keep(spool, words), digest_of(words.data))
    longest = 0

    class Watched:
        dtype, shape, size = sealed.dtype, sealed.shape, sealed.size

        def __getitem__(self, part: slice, /) -> Words:
            nonlocal longest
            piece = sealed[part]
            longest = max(longest, piece.size)
            return piece

    mean, plain = Mean(), Mean()
    sums = [each.zero(layout) for each in (mean, plain)]
    layout.check(Watched())
    for _ in range(2):
        mean.add(sums[0], Watched())
        plain.add(sums[1], words)
    assert longest <= BLOCK
    assert np.array_equal(sums[0].words, sums[1].words)
    assert np.array_equal(mean.report(sums[0], layout).delta, plain.report(sums[1], layout).delta)


def test_an_answer_can_be_read_until_its_key_is_gone_whatever_becomes_of_its_name(spool: Spool) -> None:
    path = keep(spool)
    sealed = spool.words(path)
    path.rename(path.with_name("moved"))
    path.with_name("moved").unlink()
    assert sealed[1:3].tolist() == [1, 2]
    spool.clear()
    with pytest.raises(NotFound, match="the key of an answer is gone"):
        sealed[1:3]


def test_an_answer_that_lost_its_end_is_not_read_as_zeros(spool: Spool) -> None:
    path = keep(spool)
    sealed = spool.words(path)
    os.truncate(path, 8)
    assert sealed[:2].tolist() == [0, 1]
    with pytest.raises(NotFound, match="an answer in the spool is cut off"):
        sealed[:]


def test_an_answer_is_read_on_where_the_system_stops(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reads at most 0x7ffff000 bytes a call; here it is seven."""
    sealed = spool.words(keep(spool, np.arange(50, dtype=WORD)))
    one, several = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, count, offset: one(file, min(count, 7), offset))
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: several(file, [parts[0][:7]], offset))
    assert sealed[:].tolist() == list(range(50))
    assert sealed[9:31].tolist() == list(range(9, 31))


def test_two_answers_of_one_node_do_not_share_a_file(spool: Spool) -> None:
    assert keep(spool) != keep(spool, WORDS + 1)
    assert len(list(spool.answers.iterdir())) == 2


def test_a_missing_empty_or_damaged_answer_is_found_out(spool: Spool) -> None:
    path = keep(spool)
    with pytest.raises(NotFound, match="an answer is missing from the spool"):
        spool.words(path.with_name("train-1-ben-0"))
    with pytest.raises(ProtocolError, match="an answer in the spool is damaged"):
        spool.words(path, "0" * 64)
    path.write_bytes(b"")
    with pytest.raises(NotFound, match="an answer is missing from the spool"):
        spool.words(path)


def test_an_answer_that_cannot_be_opened_at_the_moment_is_not_missing(spool: Spool) -> None:
    path, (soft, hard) = keep(spool), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            spool.words(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert spool.words(path)[:].tolist() == WORDS.tolist()


def test_a_vector_is_checked_when_it_is_read(spool: Spool) -> None:
    vector = np.array([1.0, -2.5], np.float32)
    digest = spool.store(vector)
    assert spool.vector(digest).tolist() == [1.0, -2.5]
    for damage in (b"\0" * 8, b"\0" * 7, b""):
        spool.blobs.path(digest).write_bytes(damage)
        with pytest.raises(ProtocolError, match="a vector in the spool is damaged"):
            spool.vector(digest)
    with pytest.raises(NotFound, match="no such blob"):
        spool.vector("0" * 64)


def test_a_vector_is_stored_once_and_its_memory_is_given_back_after_reading(spool: Spool) -> None:
    vector = np.arange(2 * PIECE + 3, dtype=np.float32)
    digest = spool.store(vector)
    assert digest == digest_of(vector.data.cast("B")) == spool.store(vector, digest)
    written = spool.blobs.path(digest).stat()
    kept = spool.vector(digest)
    assert spool.store(kept) == digest
    assert (spool.blobs.path(digest).stat().st_ino, written.st_nlink) == (written.st_ino, 1)
    assert list(spool.blobs.folder.glob("staging/*")) == []
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
    before = resident(kept)
    assert finite(kept)
    assert resident(kept) <= before < 100
    assert kept.sum() > 0
    assert resident(kept) > 1000
    spool.blobs.delete(digest)
    assert np.array_equal(kept, vector)


def resident(vector: Vector) -> int:
    """KiB of a mapped vector that are in memory for this process."""
    address, found = f"{vector.__array_interface__['data'][0]:x}-", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = line.startswith(address) or (found and not re.match("[0-9a-f]+-", line))
        if found and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("the vector is not mapped")


def test_a_disk_that_refuses_a_vector_leaves_nothing_of_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.blobs, "adopt", refuse)
    with pytest.raises(OSError, match="No space left"):
        spool.store(np.ones(3, np.float32))
    assert list(spool.blobs.folder.glob("staging/*")) == []
    assert spool.blobs.names() == []


def test_answers_go_when_the_round_is_closed(spool: Spool) -> None:
    keep(spool)
    keep(spool, node="ben")
    spool.clear()
    assert list(spool.answers.iterdir()) == []


def test_the_two_newest_models_and_the_slots_stay(spool: Spool) -> None:
    slot, models = spool.store(np.full(2, 9, np.float32)), []
    for number in range(3):
        models.append(spool.store(np.full(2, number, np.float32)))
        spool.retire(models[-1], frozenset({slot}))
    assert spool.blobs.names() == sorted([*models[1:], slot])
    spool.retire(models[2], frozenset())
    assert spool.blobs.names() == sorted(models[1:])
