"""Blobs that several servers share: in a folder that all of them see, and in a real object store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import ConfigError, NotFound, ProtocolError
from fedscale_server.spool import Spool
from fedscale_server.store import depot as depots
from fedscale_server.store.blobs import Blobs
from fedscale_server.store.depot import Depot, FolderDepot, ObjectDepot, Shelf, depot_of
from tests.e2e.replicas import BUCKET, object_store

LEAST = 5 << 20  # of a part in an object store, the last one apart
DATA = b"the weights of a model"
DIGEST = hashlib.sha256(DATA).hexdigest()
KINDS = ("folder", pytest.param("object store", marks=pytest.mark.requires("object-store")))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store() as url:
        yield url


@pytest.fixture(params=KINDS)
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    """Each kind of depot, with nothing in it."""
    if request.param == "folder":
        made: Depot = FolderDepot(tmp_path / "shared")
    else:
        made = ObjectDepot(BUCKET, tmp_path.name, request.getfixturevalue("endpoint"))
    made.begin()
    return made


@pytest.fixture
def server(depot: Depot, tmp_path: Path) -> Callable[[str, int], Blobs]:
    """The blobs of a run as one server has them in one epoch."""
    return lambda name, epoch: Blobs(tmp_path / name, Shelf(depot, "runs/r1", epoch))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -------------------------------------------------------------------------------------------------------------- depots


def test_what_is_put_is_fetched(depot: Depot, tmp_path: Path) -> None:
    depot.put("runs/a/x/1", written(tmp_path / "in", DATA))
    depot.fetch("runs/a/x/1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("size", [0, 1, LEAST, 2 * LEAST + 1])
def test_large_files_go_in_pieces(depot: Depot, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depots, "PIECE", LEAST)
    content = np.random.default_rng(size).bytes(size)
    depot.put("k/x/1", written(tmp_path / "in", content))
    depot.fetch("k/x/1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_a_second_file_takes_the_place_of_the_first(depot: Depot, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        depot.put("k/x/1", written(tmp_path / "in", content))
    depot.fetch("k/x/1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"two"
    assert depot.keys("k") == ["k/x/1"]


def test_keys_are_listed_by_whole_words(depot: Depot, tmp_path: Path) -> None:
    for key in ("runs/a/x/1", "runs/a/y/12", "runs/ab/x/1", "bundles/x/0"):
        depot.put(key, written(tmp_path / "in", DATA))
    assert depot.keys("runs/a") == ["runs/a/x/1", "runs/a/y/12"]
    assert depot.keys("runs/a/x") == ["runs/a/x/1"]
    assert depot.keys("nothing") == []


def test_what_is_not_there_is_an_error_of_the_disk(depot: Depot, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        depot.fetch("k/x/1", tmp_path / "out")
    depot.delete("k/x/1")


def test_deleting_leaves_the_others(depot: Depot, tmp_path: Path) -> None:
    for key in ("k/x/1", "k/x/2"):
        depot.put(key, written(tmp_path / "in", DATA))
    depot.delete("k/x/1")
    assert depot.keys("k") == ["k/x/2"]
    depot.delete("k/x/2")
    assert depot.keys("k") == []


def test_a_folder_that_is_not_mounted_is_no_empty_one(tmp_path: Path) -> None:
    """What a server sees while the file system is away is a folder with nothing in it, which it must not begin to fill."""
    shared, content = tmp_path / "shared", written(tmp_path / "in", DATA)
    depot = FolderDepot(shared)
    depot.begin()
    depot.put("k/x/1", content)
    shared.rename(tmp_path / "mounted")
    again = FolderDepot(shared)
    uses: list[Callable[[], object]] = [
        lambda: again.keys("k"),
        lambda: again.put("k/x/2", content),
        lambda: again.fetch("k/x/1", tmp_path / "out"),
        lambda: again.delete("k/x/1"),
    ]
    for use in uses:
        with pytest.raises(OSError, match="not mounted, or new") as caught:
            use()
        assert not isinstance(caught.value, FileNotFoundError)
    assert list(shared.iterdir()) == []
    shared.rmdir()
    (tmp_path / "mounted").rename(shared)
    assert again.keys("k") == ["k/x/1"]


@pytest.mark.requires("object-store")
def test_a_store_that_is_away_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    assert endpoint
    monkeypatch.setattr(depots, "RETRY_SECONDS", 0)
    away = ObjectDepot(BUCKET, "", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="the object store refuses k/x/1"):
        away.put("k/x/1", written(tmp_path / "in", DATA))


def test_a_setting_names_the_depot(tmp_path: Path) -> None:
    assert depot_of("") is None
    assert isinstance(depot_of(str(tmp_path / "shared")), FolderDepot)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o700
    for wrong in ("relative/folder", "s3://", "gs://bucket/prefix"):
        with pytest.raises(ConfigError, match="neither an object store nor a folder"):
            depot_of(wrong)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the folder for blobs cannot be used"):
        depot_of(str(tmp_path / "file"))


@pytest.mark.requires("object-store")
def test_a_setting_names_a_bucket(endpoint: str, tmp_path: Path) -> None:
    made = depot_of(f"s3://{BUCKET}/some/prefix/", endpoint)
    assert made is not None
    made.put("k/x/1", written(tmp_path / "in", DATA))
    assert ObjectDepot(BUCKET, "some", endpoint).keys("prefix") == ["prefix/k/x/1"]


def test_an_object_store_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedscale-fl\[s3\]'"):
        depot_of("s3://bucket")


# --------------------------------------------------------------------------------------------------------------- blobs


def test_another_server_finds_what_one_has_stored(server: Callable[[str, int], Blobs]) -> None:
    red, blue = server("red", 1), server("blue", 2)
    assert red.put(DATA) == DIGEST
    assert not blue.has(DIGEST)
    assert blue.names() == [DIGEST]
    assert blue.read(DIGEST) == DATA
    assert blue.has(DIGEST)
    assert blue.path(DIGEST).stat().st_mode & 0o777 == 0o600


def test_an_adopted_file_is_shared_before_it_has_its_name(server: Callable[[str, int], Blobs]) -> None:
    red, blue = server("red", 1), server("blue", 2)
    red.adopt(written(red.staging(), DATA), DIGEST)
    assert blue.find(DIGEST)
    assert blue.read(DIGEST) == DATA


def test_what_nobody_has_is_not_found(server: Callable[[str, int], Blobs]) -> None:
    blue = server("blue", 1)
    assert not blue.find(DIGEST)
    assert not blue.find("../../etc/passwd")
    assert not blue.share(DIGEST)
    with pytest.raises(NotFound):
        blue.path(DIGEST)
    assert list((blue.folder / "staging").iterdir()) == []


def test_a_damaged_blob_is_not_taken(server: Callable[[str, int], Blobs], depot: Depot, tmp_path: Path) -> None:
    depot.put(f"runs/r1/{DIGEST}/1", written(tmp_path / "in", b"something else"))
    blue = server("blue", 2)
    with pytest.raises(NotFound, match="a shared blob is damaged"):
        blue.find(DIGEST)
    assert not blue.has(DIGEST)


def test_a_blob_of_before_is_shared_when_it_is_needed(server: Callable[[str, int], Blobs], tmp_path: Path) -> None:
    """A coordinator that was alone has its blobs in its home only."""
    Blobs(tmp_path / "red").put(DATA)
    red, blue = server("red", 1), server("blue", 2)
    assert not blue.find(DIGEST)
    assert red.share(DIGEST)
    assert blue.find(DIGEST)


def test_whoever_led_before_removes_nothing_of_a_later_epoch(server: Callable[[str, int], Blobs]) -> None:
    zombie, leader, third = server("red", 1), server("blue", 2), server("green", 3)
    zombie.put(DATA)
    leader.put(DATA)
    zombie.delete(DIGEST)
    assert third.find(DIGEST), "its own copy is gone, that of the leader is not"
    leader.delete(DIGEST)
    assert not server("fourth", 4).find(DIGEST)


def test_a_leader_removes_what_earlier_ones_left(server: Callable[[str, int], Blobs]) -> None:
    server("red", 1).put(DATA)
    leader = server("blue", 12)
    for digest in leader.names():
        leader.delete(digest)
    assert leader.names() == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\0" * 7, b"\0" * 400])
def test_a_vector_that_was_damaged_here_is_fetched_again(depot: Depot, tmp_path: Path, damage: bytes) -> None:
    spool, vector = Spool(tmp_path / "red", shelf=Shelf(depot, "runs/r1", 1)), np.arange(100, dtype=np.float32)
    digest = spool.store(vector)
    spool.blobs.path(digest).write_bytes(damage)
    assert np.array_equal(spool.vector(digest), vector)
    assert np.array_equal(Spool(tmp_path / "red").vector(digest), vector), "and is here"
    depot.delete(f"runs/r1/{digest}/1")
    spool.blobs.path(digest).write_bytes(damage)
    with pytest.raises(ProtocolError, match="a vector in the spool is damaged"):
        spool.vector(digest)


def test_the_newest_copy_is_fetched_and_a_later_one_outlives_a_clearing(depot: Depot, tmp_path: Path) -> None:
    shelves = {epoch: Shelf(depot, "answers/r1", epoch) for epoch in (2, 9, 10)}
    for epoch, shelf in shelves.items():
        shelf.put("round.key", written(tmp_path / "in", str(epoch).encode()))
    assert shelves[2].fetch("round.key", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"10"
    shelves[9].put("train-1-ada", tmp_path / "in")
    shelves[9].clear()
    assert depot.keys("answers") == ["answers/r1/round.key/10"]
    shelves[10].clear()
    assert shelves[10].names() == set()


def test_answers_of_the_open_round_are_inherited_with_their_key(depot: Depot, tmp_path: Path) -> None:
    def server(name: str, epoch: int) -> Spool:
        spool = Spool(tmp_path / name, common=Shelf(depot, "answers/r1", epoch))
        spool.inherit()
        return spool

    def keep(spool: Spool, number: int) -> Path:
        path = spool.answer("train", number, "ada", DIGEST)
        spool.keep(written(spool.blobs.staging(), spool.vault.writing(path.name).update(DATA.ljust(24))), path)
        return path

    red = server("red", 1)
    (red.uploads / "train-1-ben").write_bytes(b"the beginning of")
    path = keep(red, 1)
    blue = server("blue", 2)
    assert blue.words(blue.answers / path.name)[0:6].tobytes() == DATA.ljust(24)
    blue.resume("train", 1)
    blue.clear()
    assert (depot.keys("answers"), blue.vault.open) == ([], False)
    # The first one comes back with a key and an answer of a round long past.
    keep(blue, 2)
    red = server("red", 3)
    assert [path.name for path in (*red.answers.iterdir(), *red.uploads.iterdir())] == [red.answer("train", 2, "ada", DIGEST).name]
    assert red.words(next(red.answers.iterdir()))[0:6].tobytes() == DATA.ljust(24)


def test_a_run_goes_on_at_another_server(depot: Depot, tmp_path: Path) -> None:
    """Models are stored, retired and read back through the depot, whichever server does it."""
    red, blue = (Spool(tmp_path / name, lasting=False, shelf=Shelf(depot, "runs/r1", epoch)) for name, epoch in (("red", 1), ("blue", 2)))
    models = [np.full(100, number, np.float32) for number in range(6)]
    digests: list[str] = []

    def rounds(spool: Spool, *between: int) -> None:
        for number in range(*between):
            digests.append(spool.store(models[number]))
            spool.retire(digests[-1], frozenset())

    rounds(red, 0, 3)
    assert np.array_equal(blue.vector(digests[2]), models[2])
    rounds(blue, 3, 6)
    # The first one wakes up in the middle of what it did last.
    red.retire(digests[2], frozenset())
    green = Spool(tmp_path / "green", lasting=False, shelf=Shelf(depot, "runs/r1", 3))
    assert green.blobs.names() == sorted(digests[4:])
    assert np.array_equal(green.vector(digests[5]), models[5])
