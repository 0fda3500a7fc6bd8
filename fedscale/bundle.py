"""App bundles: a folder of code as one run of bytes, the same bytes on every machine.

A site approves a bundle by its digest, so there is exactly one bundle for a given content: a zip archive with sorted names,
fixed times and modes, and no compression, whose output would depend on the zlib at hand. ``read`` and ``unpack`` take
nothing else, byte for byte; that leaves no room for links, overlaps, trailers or archives that grow. Since packing again
gives the same bytes, ``digest(pack(folder))`` tells at any later time whether an unpacked folder still is what was approved.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

from fedscale.errors import BundleError

MAX_BYTES = 64 << 20
MAX_FILES = 2_000
MAX_DEPTH = 16
MAX_NAME = 240

# One spelling on every file system, and nothing that looks like something else to the person who approves it.
_PORTABLE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_ .,+=@()-]*[A-Za-z0-9_,+=@()-])?")
_LEFT_OUT = re.compile(r"\..*|__pycache__|pyvenv\.cfg|.*\.py[co]", re.DOTALL)
_END = struct.Struct("<4s4H2LH")  # end of central directory record: APPNOTE.TXT 4.3.16
_ENTRY_BYTES = 46  # of a central directory header without its name: APPNOTE.TXT 4.3.12
_BROKEN_ZIP = (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError, RuntimeError, OSError)


def digest(data: bytes) -> str:
    """SHA-256 of a bundle in hex: what a site approves and a plan names."""
    return hashlib.sha256(data).hexdigest()


def pack(folder: Path) -> bytes:
    """The files of a folder as one bundle of at most 64 MiB.

    Left out are hidden files and folders, ``__pycache__``, compiled Python, virtual environments and empty folders.

    Raises:
        BundleError: no such folder, nothing in it, a link or special file, an unreadable file, a name that is not portable, or a limit.
    """
    if not folder.is_dir():
        raise BundleError("there is no such folder", where=str(folder))
    paths = {path.relative_to(folder).as_posix(): path for path in walk(folder)}
    _check_names(list(paths))
    files: dict[str, bytes] = {}
    size = 0
    for name, path in paths.items():
        files[name] = _read_file(path, name, MAX_BYTES - size)
        size += len(files[name])
    data = _archive(files)
    if len(data) > MAX_BYTES:
        _too_large()
    return data


def read(data: bytes) -> dict[str, bytes]:
    """The files of a bundle by name; nothing is written to disk.

    Raises:
        BundleError: not a bundle that ``pack`` could have made, with the reason.
    """
    _check_frame(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data))
            files = {entry.filename: archive.read(entry) for entry in entries}
    except _BROKEN_ZIP:
        raise BundleError("the bundle is damaged") from None
    if _archive(files) != data:
        raise BundleError(
            "the bundle is not in canonical form", why="packing its files again gives other bytes", hint="pack the folder with fedscale"
        )
    return files


def unpack(data: bytes, target: Path) -> None:
    """Write the files of a bundle below ``target``, which appears complete or not at all.

    Raises:
        BundleError: not a bundle that ``pack`` could have made, ``target`` exists already, or the disk refuses.
    """
    files = read(data)
    if target.exists() or target.is_symlink():
        raise BundleError("the folder to unpack into exists already", where=str(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
            stage = Path(scratch, "bundle")
            for name, content in files.items():
                path = stage / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            stage.rename(target)
    except OSError as error:
        raise BundleError("the bundle cannot be unpacked", where=str(target), why=error.strerror or "") from error


def _archive(files: Mapping[str, bytes]) -> bytes:
    """The one archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that belongs to a bundle, folders aside.

    Raises:
        BundleError: a folder in it cannot be read.
    """
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        inside = Path(root)
        folders[:] = [name for name in folders if not _LEFT_OUT.fullmatch(name) and not (inside / name / "pyvenv.cfg").exists()]
        yield from (inside / name for name in folders if (inside / name).is_symlink())
        yield from (inside / name for name in names if not _LEFT_OUT.fullmatch(name))


def _unreadable(error: OSError) -> NoReturn:
    """A folder that ``os.walk`` cannot enter must not become a gap in the bundle."""
    raise BundleError("a folder cannot be read", where=str(error.filename), why=error.strerror or "") from None


def _read_file(path: Path, name: str, room: int) -> bytes:
    """The content of one regular file of at most ``room`` bytes."""
    try:
        status = path.lstat()
        _check_kind(name, status.st_mode)
        if status.st_size > room:
            _too_large()
        return path.read_bytes()
    except OSError as error:
        raise BundleError("a file cannot be read", where=name, why=error.strerror or "") from None


def _too_large() -> NoReturn:
    """One wording for all who count bytes."""
    raise BundleError("the bundle is too large", why=f"the limit is {MAX_BYTES >> 20} MiB", hint="leave data and weights out of the app's folder")


def _check_kind(name: str, mode: int) -> None:
    """Regular files only: a link could lead out of the bundle."""
    if stat.S_ISLNK(mode):
        raise BundleError("the bundle holds a link", where=name, hint="put the file itself into the app's folder")
    if not stat.S_ISREG(mode):
        raise BundleError("the bundle holds something that is not a regular file", where=name)


def _check_frame(data: bytes) -> None:
    """Bound what the zip reader will do before it sees a byte: it believes sizes and counts, wherever it finds them."""
    if len(data) > MAX_BYTES:
        _too_large()
    magic, *_, count, size, _, comment = _END.unpack(data[-_END.size :].rjust(_END.size, b"\0"))
    if magic != b"PK\5\6" or comment or b"PK\6\7" in data[-_END.size - 20 : -_END.size]:
        raise BundleError("this is not a bundle, or its end is missing")
    if count > MAX_FILES or size > MAX_FILES * (_ENTRY_BYTES + MAX_NAME):
        raise BundleError("the bundle has too many files", why=f"the limit is {MAX_FILES}")


def _check_entries(entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    """What the archive's directory says must be what ``pack`` could have written."""
    _check_names([entry.orig_filename for entry in entries])
    for entry in entries:
        _check_kind(entry.filename, entry.external_attr >> 16)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise BundleError("the bundle holds a compressed file", where=entry.filename, why="a bundle must not grow when it is unpacked")
    if sum(entry.file_size for entry in entries) > size:
        raise BundleError("the bundle declares more bytes than it has")


def _check_names(names: Sequence[str]) -> None:
    """Names that mean the same files, inside the target, on every machine."""
    if not names:
        raise BundleError("the bundle has no files")
    if len(names) > MAX_FILES:
        raise BundleError("the bundle has too many files", why=f"the limit is {MAX_FILES}")
    for name in names:
        if fault := _fault(name):
            raise BundleError("the bundle holds a file with a name that is not allowed", where=ascii(name[:MAX_NAME]), why=fault)
    if clash := _clash(names):
        raise BundleError("the bundle holds two files that some machine cannot keep apart", where=clash)


def _fault(name: str) -> str:
    """What is wrong with one name, or nothing."""
    parts = name.split("/")
    faults = {
        "it is an absolute path": name.startswith("/"),
        "it leads out of the bundle": ".." in parts,
        f"it lies deeper than {MAX_DEPTH} levels": len(parts) > MAX_DEPTH,
        f"it is longer than {MAX_NAME} characters": len(name) > MAX_NAME,
        "hidden, compiled and environment files are left out": any(_LEFT_OUT.fullmatch(part) for part in parts),
        "use letters, digits, space and _.,+=@()- only": not all(_PORTABLE.fullmatch(part) for part in parts),
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def _clash(names: Sequence[str]) -> str:
    """The first name that stands twice, differs from another in case only, or is a file here and a folder there."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            return name
        seen[name.lower()] = name
        for folder in PurePosixPath(name).parents:
            if seen.setdefault(str(folder).lower(), f"{folder}/") != f"{folder}/":
                return name
    return ""
