"""The cache: named by content, bounded, and never emptied under a running task."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from fedscale import bundle
from fedscale.errors import BundleError, ProtocolError
from fedscale_client import cache as cache_module
from fedscale_client.cache import Cache
from tests.client.conftest import full_disk
from tests.client.coordinator import digest


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1000)


def keep(cache: Cache, data: bytes, age: int = 0) -> str:
    """Put a blob into the cache as if it was used ``age`` seconds ago."""
    name = digest(data)
    with closing(cache.part(name, len(data))) as part:
        part.take(data)
        path = cache.keep(part, name)
    os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))
    return name


def names(cache: Cache) -> set[str]:
    return {path.name for folder in (cache._blobs, cache._bundles) for path in folder.iterdir()}


def test_a_blob_in_frames(cache: Cache) -> None:
    data = bytes(range(200))
    with closing(cache.part(digest(data), 200)) as part:
        assert cache.blob(digest(data)) is None
        for at in range(0, 200, 64):
            part.take(data[at : at + 64])
        path = cache.keep(part, digest(data))
    assert path.read_bytes() == data
    assert cache.blob(digest(data)) == path
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


def test_a_part_goes_on_where_it_ended(cache: Cache) -> None:
    data = os.urandom(3 << 20)
    with closing(cache.part(digest(data), len(data))) as part:
        part.take(data[: 2 << 20])
    with cache.hold(digest(data)), closing(cache.part(digest(data), len(data))) as part:
        assert part.size == 2 << 20
        part.take(data[2 << 20 :])
        assert cache.keep(part, digest(data)).read_bytes() == data
        assert names(cache) == {digest(data)}


def test_another_content_is_given_up(cache: Cache) -> None:
    with closing(cache.part(digest(b"right"), 9)) as part:
        part.take(b"wrong")
        with pytest.raises(ProtocolError, match="SHA-256 differs"):
            cache.keep(part, digest(b"right"))
    assert names(cache) == set()


def test_more_than_announced_is_given_up(cache: Cache) -> None:
    with closing(cache.part(digest(b"x"), 9)) as part:
        part.take(b"12345")
        with pytest.raises(ProtocolError, match="the limit is 9 bytes"):
            part.take(b"67890")
    assert names(cache) == set()


def test_a_full_disk_gives_its_space_back(cache: Cache) -> None:
    with full_disk(cache.part(digest(b"x"), 9)) as part, pytest.raises(OSError, match="No space left"):
        part.take(b"12345")
    assert names(cache) == set()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", f"{'0' * 60}/../"])
def test_a_name_from_outside_is_no_path(cache: Cache, name: str) -> None:
    for look in (cache.blob, cache.bundle, lambda n: cache.part(n, 1)):
        with pytest.raises(ProtocolError, match="name is malformed"):
            look(name)


def test_the_oldest_goes_first(cache: Cache) -> None:
    blobs = {age: keep(cache, os.urandom(300), age) for age in (3, 2, 1)}
    keep(cache, os.urandom(300))
    assert blobs[3] not in names(cache)
    assert {blobs[2], blobs[1]} < names(cache)


def test_use_keeps_young(cache: Cache) -> None:
    blobs = {age: keep(cache, os.urandom(300), age) for age in (3, 2, 1)}
    assert cache.blob(blobs[3])
    keep(cache, os.urandom(300))
    assert blobs[2] not in names(cache)
    assert blobs[3] in names(cache)


def test_what_a_task_holds_stays(cache: Cache) -> None:
    old, older = keep(cache, os.urandom(600), 2), keep(cache, os.urandom(300), 9)
    with cache.hold(older, old), cache.hold(older):
        keep(cache, os.urandom(900))
        assert {old, older} < names(cache)
    cache.trim()
    assert not {old, older} & names(cache)


def test_the_newest_stays_even_when_it_is_too_large(cache: Cache) -> None:
    name = digest(b"x" * 2000)
    with cache.hold(name):
        assert keep(cache, b"x" * 2000) == name
        assert cache.blob(name)


def test_small_ones_are_bounded_in_number(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MOST_ENTRIES", 5)
    for age in range(20, 0, -1):
        keep(cache, os.urandom(4), age)
    assert len(names(cache)) == 5


def test_a_bundle_is_unpacked_once_and_counts(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/app.py").write_text("x = 1\n" * 50)
    name = keep(cache, bundle.pack(tmp_path / "app"))
    assert cache.bundle(name) is None
    folder = cache.unpack(name)
    assert (folder / "app.py").read_text().startswith("x = 1")
    assert cache.bundle(name) == folder
    assert cache.blob(name) is None
    os.utime(folder, (1, 1))
    keep(cache, os.urandom(800))
    assert cache.bundle(name) is None


def test_a_damaged_bundle_leaves_nothing(cache: Cache) -> None:
    name = keep(cache, b"this is no bundle")
    with pytest.raises(BundleError, match="not a bundle"):
        cache.unpack(name)
    assert names(cache) == set()


def test_blobs_outlive_the_node(tmp_path: Path) -> None:
    name = keep(Cache(tmp_path, 1000), b"model")
    assert Cache(tmp_path, 1000).blob(name)
