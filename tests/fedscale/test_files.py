"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedscale import files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has something in it."""
    path = tmp_path / "here"
    files.write(path, b"before")
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_its_owners_alone_unless_it_is_to_be_shared(path: Path, tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        files.write(tmp_path / "report", b"curves", mode=files.SHARED)
    finally:
        os.umask(umask)
    assert (mode(path), mode(tmp_path / "report")) == (0o600, 0o640)


def test_a_file_that_is_replaced_gets_the_mode_of_the_new_one(path: Path) -> None:
    path.chmod(0o644)
    files.write(path, b"after")
    assert (path.read_bytes(), mode(path)) == (b"after", 0o600)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    files.write(path, b"old")
    with path.open("rb") as reader:
        files.write(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    """A link planted where the draft goes must not lead anybody to write elsewhere."""
    target = tmp_path / "elsewhere"
    target.write_bytes(b"untouched")
    (tmp_path / "draft").symlink_to(target)
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "settings", b"new", tmp_path / "draft")
    assert target.read_bytes() == b"untouched"


def test_a_name_is_given_only_to_what_lies_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced, then the name changed, then the folder synced."""
    deeds: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        deeds.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        deeds.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write(path, b"after")
    assert deeds == ["5 bytes", "name", "folder"]


def test_a_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    assert files.private_folder(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
