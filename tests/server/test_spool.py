"""The files of a run: complete or not there, checked when they are read back, and gone when nobody needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import NotFound, ProtocolError
from fedscale.ring import WORD
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
    assert spool.words(path).tolist() == WORDS.tolist()
    assert spool.words(path, digest_of(WORDS.tobytes())).dtype == WORD
    assert path.stat().st_mode & 0o777 == 0o600
    assert spool.answers.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="read-only"):
        spool.words(path)[0] = 1


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


def test_a_vector_is_checked_when_it_is_read(spool: Spool) -> None:
    vector = np.array([1.0, -2.5], np.float32)
    digest = spool.store(vector)
    assert spool.vector(digest).tolist() == [1.0, -2.5]
    spool.blobs.path(digest).write_bytes(b"\0" * 8)
    with pytest.raises(ProtocolError, match="a vector in the spool is damaged"):
        spool.vector(digest)
    with pytest.raises(NotFound, match="no such blob"):
        spool.vector("0" * 64)


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
