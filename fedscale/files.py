"""Files that are either whole or not there, and still there after a power cut."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

# What the process or the machine lacks at the moment, which says nothing about the file that was asked for.
LACKING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
PRIVATE, SHARED = 0o600, 0o666  # the latter less what the user's umask takes away


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, and that survives a power cut; one that is there already is closed to all others."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    for folder in missing:
        sync(folder.parent)
    return path


def write(path: Path, data: bytes | memoryview, draft: Path | None = None, *, mode: int = PRIVATE) -> None:
    """Put ``data`` in the place of whatever ``path`` holds.

    Args:
        path: the file.
        data: what it shall hold.
        draft: where it is written first, in the same file system; beside ``path`` by default.
        mode: who may read it; its owner alone by default.

    Raises:
        OSError: the disk refuses; what ``path`` holds is as it was.
    """
    draft = draft or path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a file whose content is durable, and make the new name durable too."""
    source.replace(target)
    sync(target.parent)


def begin_sync(descriptor: int, start: int, count: int) -> None:
    """Let the disk begin with part of a file, which was just written, so that ``fsync`` finds little left to do; nothing is waited for."""
    if hasattr(os, "posix_fadvise"):
        # Linux takes it as leave to write the part out at once; from memory it drops only what lies on disk already.
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
