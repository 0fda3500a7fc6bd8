from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedscale import bundle
from fedscale.errors import BundleError

APP = {
    "app.py": b"print('hello')\n",
    "data/notes.txt": b"",
    "data/deep/table.json": b"[1, 2]",
    "fedscale.toml": b"[app]\n",
    "Z.py": bytes(range(256)),
}
APP_DIGEST = "cb52ac1ed1e0b87c729476f064f61f16ccd13615875779eb3d6b61af861ebe2a"
REGULAR = (stat.S_IFREG | 0o644) << 16
HIDDEN = "hidden, compiled and environment files are left out"
SPELLING = "use letters, digits, space and _.,+=@()- only"
COUNT = "the bundle has too many files (the limit is 2000)"
SIZE = "the bundle is too large (the limit is 64 MiB); leave data and weights out of the app's folder"
CANONICAL = "the bundle is not in canonical form (packing its files again gives other bytes); pack the folder with fedscale"
DAMAGED = "the bundle is damaged"
NO_BUNDLE = "this is not a bundle, or its end is missing"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write(tmp_path / "app", APP)


# ------------------------------------------------------------------------------------------------------ good bundles


def test_what_is_unpacked_is_what_was_packed(app: Path, tmp_path: Path) -> None:
    data = bundle.pack(app)
    bundle.unpack(data, tmp_path / "new" / "place")
    assert bundle.read(data) == tree(tmp_path / "new" / "place") == APP
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["place"]


def test_the_format_is_frozen(app: Path) -> None:
    assert bundle.digest(bundle.pack(app)) == APP_DIGEST, "a new format makes every approval on every site void"


def test_the_bytes_depend_on_names_and_contents_only(app: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", dict(reversed(APP.items())))
    for path in other.rglob("*"):
        path.chmod(0o755)
        os.utime(path, (1, 1))
    (other / "empty" / "folder").mkdir(parents=True)
    assert bundle.pack(other) == bundle.pack(app)


@pytest.mark.parametrize("name", ["app.py", "data/notes.txt"])
def test_a_changed_file_changes_the_digest_and_a_restored_one_brings_it_back(app: Path, name: str) -> None:
    before = bundle.digest(bundle.pack(app))
    (app / name).write_bytes(APP[name] + b" ")
    assert bundle.digest(bundle.pack(app)) != before
    (app / name).write_bytes(APP[name])
    assert bundle.digest(bundle.pack(app)) == before


def test_what_nobody_would_review_is_left_out(app: Path) -> None:
    before = bundle.pack(app)
    names = [".env", ".git/config", "data/.cache/x", "__pycache__/app.pyc", "data/__pycache__/x.txt", "old.pyc", "old.pyo"]
    write(app, dict.fromkeys([*names, "env/pyvenv.cfg", "env/lib/site.py", "data/env/pyvenv.cfg"], b"secret"))
    (app / ".linked").symlink_to("/")
    assert bundle.pack(app) == before


def test_any_zip_tool_can_show_a_bundle(app: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.pack(app))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(APP)
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


part = (
    st.from_regex(bundle._PORTABLE, fullmatch=True).map(lambda text: text[:20].rstrip(". ")).filter(lambda text: not bundle._LEFT_OUT.fullmatch(text))
)
trees = st.dictionaries(st.lists(part, min_size=1, max_size=4).map("/".join), st.binary(max_size=64), min_size=1, max_size=8)


@given(trees)
def test_every_portable_tree_makes_the_round_trip(files: dict[str, bytes]) -> None:
    assume(not bundle._clash(list(files)))
    with tempfile.TemporaryDirectory() as scratch:
        data = bundle.pack(write(Path(scratch, "a"), files))
        bundle.unpack(data, Path(scratch, "b"))
        assert tree(Path(scratch, "b")) == files
        assert bundle.pack(Path(scratch, "b")) == data


# ------------------------------------------------------------------------------------------------------- bad bundles


@given(trees, st.data())
def test_no_edit_of_a_bundle_is_a_bundle(files: dict[str, bytes], data: st.DataObject) -> None:
    assume(not bundle._clash(list(files)))
    good = bundle._archive(files)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    edited = good[:start] + data.draw(st.binary(max_size=8)) + good[end:]
    assume(edited != good)
    with pytest.raises(BundleError):
        bundle.read(edited)


@given(st.binary(max_size=200))
def test_noise_is_no_bundle(noise: bytes) -> None:
    for data in (noise, b"PK\3\4" + noise, noise + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(noise), 0, 0)):
        with pytest.raises(BundleError):
            bundle.read(data)


@dataclass(frozen=True)
class Entry:
    name: str
    content: bytes = b"x"
    mode: int = REGULAR
    method: int = zipfile.ZIP_STORED


def zipped(*entries: Entry, comment: bytes = b"") -> bytes:
    """A zip as other tools write it, with whatever names and modes are asked for."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = comment
        for entry in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr, info.compress_type, info.create_system = entry.name, entry.mode, entry.method, 3
            with warnings.catch_warnings(action="ignore"):  # of a name written twice, which is the point
                archive.writestr(info, entry.content)
    return buffer.getvalue()


def named(*names: str) -> bytes:
    return zipped(*map(Entry, names))


def directory_says(data: bytes, offset: int, form: str, value: int) -> bytes:
    """The same zip with one field of its last 22 bytes changed."""
    end = bytearray(data[-22:])
    struct.pack_into(form, end, offset, value)
    return data[:-22] + bytes(end)


def nested(depth: int, size: int) -> bytes:
    """A zip whose files lie inside each other, so that they add up to more bytes than there are."""
    data, central = b"y" * size, b""
    for level in range(depth):
        name = b"f%02d" % level
        fields = (0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
        data = struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields) + name + data
        central += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *fields, 0, 0, 0, REGULAR, (depth - 1 - level) * 33) + name
    return data + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, depth, depth, len(central), len(data), 0)


def bad_name(name: str, why: str) -> str:
    return f"{name[:240]!a}: the bundle holds a file with a name that is not allowed ({why})"


GOOD = bundle._archive(APP)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", NO_BUNDLE),
    "text": (lambda: b"print('hello')" * 9, NO_BUNDLE),
    "cut": (lambda: GOOD[:-1], NO_BUNDLE),
    "cut in the middle": (lambda: GOOD[: len(GOOD) // 2], NO_BUNDLE),
    "trailer": (lambda: GOOD + b"#", NO_BUNDLE),
    "comment": (lambda: zipped(Entry("a"), comment=b"hi"), NO_BUNDLE),
    "comment to come": (lambda: directory_says(GOOD, 20, "<H", 5), NO_BUNDLE),
    "zip64": (lambda: GOOD[:-22] + b"PK\6\7" + bytes(16) + GOOD[-22:], NO_BUNDLE),
    "no file": (zipped, "the bundle has no files"),
    "absolute": (lambda: named("/etc/passwd"), bad_name("/etc/passwd", "it is an absolute path")),
    "parent": (lambda: named("../app.py"), bad_name("../app.py", "it leads out of the bundle")),
    "parent inside": (lambda: named("a/../../b"), bad_name("a/../../b", "it leads out of the bundle")),
    "backslash": (lambda: named("..\\app.py"), bad_name("..\\app.py", HIDDEN)),
    "drive": (lambda: named("C:/app.py"), bad_name("C:/app.py", SPELLING)),
    "stream": (lambda: named("app.py:x"), bad_name("app.py:x", SPELLING)),
    "null": (lambda: named("app.py\0.txt"), bad_name("app.py\0.txt", SPELLING)),
    "new line": (lambda: named("app\n.py"), bad_name("app\n.py", SPELLING)),
    "lookalike": (lambda: named("\u0430pp.py"), bad_name("\u0430pp.py", SPELLING)),
    "twin slash": (lambda: named("a//b"), bad_name("a//b", SPELLING)),
    "folder": (lambda: named("a/"), bad_name("a/", SPELLING)),
    "end in a dot": (lambda: named("a."), bad_name("a.", SPELLING)),
    "end in a space": (lambda: named("a "), bad_name("a ", SPELLING)),
    "here": (lambda: named("./a"), bad_name("./a", HIDDEN)),
    "hidden": (lambda: named("a/.env"), bad_name("a/.env", HIDDEN)),
    "cached": (lambda: named("__pycache__/app.py"), bad_name("__pycache__/app.py", HIDDEN)),
    "compiled": (lambda: named("app.pyc"), bad_name("app.pyc", HIDDEN)),
    "environment": (lambda: named("env/pyvenv.cfg"), bad_name("env/pyvenv.cfg", HIDDEN)),
    "deep": (lambda: named("a/" * 16 + "b"), bad_name("a/" * 16 + "b", "it lies deeper than 16 levels")),
    "long": (lambda: named("a" * 241), bad_name("a" * 240, "it is longer than 240 characters")),
    "twice": (lambda: named("a", "b/c", "a"), "a: the bundle holds two files that some machine cannot keep apart"),
    "case": (lambda: named("A.py", "a.py"), "a.py: the bundle holds two files that some machine cannot keep apart"),
    "case of a folder": (lambda: named("A/x", "a/y"), "a/y: the bundle holds two files that some machine cannot keep apart"),
    "file and folder": (lambda: named("a", "a/b"), "a/b: the bundle holds two files that some machine cannot keep apart"),
    "folder and file": (lambda: named("a/b", "a"), "a: the bundle holds two files that some machine cannot keep apart"),
    "link": (
        lambda: zipped(Entry("a", b"/etc/passwd", (stat.S_IFLNK | 0o777) << 16)),
        "a: the bundle holds a link; put the file itself into the app's folder",
    ),
    "pipe": (lambda: zipped(Entry("a", b"", stat.S_IFIFO << 16)), "a: the bundle holds something that is not a regular file"),
    "device": (lambda: zipped(Entry("a", b"", stat.S_IFCHR << 16)), "a: the bundle holds something that is not a regular file"),
    "no mode": (lambda: zipped(Entry("a", mode=0)), "a: the bundle holds something that is not a regular file"),
    "compressed": (
        lambda: zipped(Entry("a", bytes(1 << 20), method=zipfile.ZIP_DEFLATED)),
        "a: the bundle holds a compressed file (a bundle must not grow when it is unpacked)",
    ),
    "nested": (lambda: nested(20, 1000), "the bundle declares more bytes than it has"),
    "overlap": (lambda: nested(2, 10), CANONICAL),
    "too many": (lambda: named(*map(str, range(2001))), COUNT),
    "count that lies": (lambda: directory_says(named(*map(str, range(2001))), 10, "<H", 1), COUNT),
    "count alone": (lambda: directory_says(GOOD, 10, "<H", 2001), COUNT),
    "huge directory": (lambda: directory_says(GOOD, 12, "<L", 1 << 30), COUNT),
    "directory elsewhere": (lambda: directory_says(GOOD, 16, "<L", 1 << 30), DAMAGED),
    "too large": (lambda: bytes((64 << 20) + 1), SIZE),
    "changed content": (lambda: GOOD.replace(b"hello", b"hullo"), DAMAGED),
    "encrypted": (lambda: GOOD.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), DAMAGED),
    "prefix": (lambda: b"#!/bin/sh\n" + GOOD, CANONICAL),
    "unsorted": (lambda: named("b", "a"), CANONICAL),
    "mode": (lambda: zipped(Entry("a", mode=(stat.S_IFREG | 0o4755) << 16)), CANONICAL),
    "time": (lambda: GOOD.replace(b"\0\0\x21\0", b"\0\0\x22\0"), CANONICAL),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_a_bad_bundle_is_refused_with_the_exact_reason(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as error:
        bundle.unpack(make(), tmp_path / "target")
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_the_largest_bundle_passes_and_one_more_file_or_level_does_not() -> None:
    files = {f"{n:04}": b"" for n in range(bundle.MAX_FILES - 2)} | {"a/" * 15 + "b": b"", "c" * 240: b""}
    assert bundle.read(bundle._archive(files)) == files
    with pytest.raises(BundleError, match="too many files"):
        bundle.read(bundle._archive(files | {"one": b"", "more": b""}))


# -------------------------------------------------------------------------------------------------------- bad folders


def sparse(path: Path, size: int) -> int:
    with path.open("wb") as file:
        return file.truncate(size)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda app: (app / "b").symlink_to("app.py"), "b: the bundle holds a link; put the file itself into the app's folder"),
    "dangling link": (lambda app: (app / "b").symlink_to("none"), "b: the bundle holds a link; put the file itself into the app's folder"),
    "link to a folder": (lambda app: (app / "b").symlink_to("data"), "b: the bundle holds a link; put the file itself into the app's folder"),
    "pipe": (lambda app: os.mkfifo(app / "data" / "b"), "data/b: the bundle holds something that is not a regular file"),
    "name": (lambda app: write(app, {"a:b": b""}), bad_name("a:b", SPELLING)),
    "name that is no text": (lambda app: (app / os.fsdecode(b"\xff")).touch(), bad_name("\udcff", SPELLING)),
    "case": (lambda app: write(app, {"App.py": b""}), "cannot keep apart"),
    "deep": (lambda app: write(app, {"a/" * 16 + "b": b""}), bad_name("a/" * 16 + "b", "it lies deeper than 16 levels")),
    "too many": (lambda app: write(app, {f"{n}": b"" for n in range(2001 - len(APP))}), COUNT),
    "one large file": (lambda app: sparse(app / "weights", (64 << 20) + 1), SIZE),
    "large together": (lambda app: (sparse(app / "a", 33 << 20), sparse(app / "b", 33 << 20)), SIZE),
    "large as an archive": (lambda app: sparse(app / "weights", (64 << 20) - sum(map(len, APP.values()))), SIZE),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_cannot_be_packed_is_refused_with_the_exact_reason(spoil: Callable[[Path], object], message: str, app: Path) -> None:
    spoil(app)
    with pytest.raises(BundleError) as error:
        bundle.pack(app)
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("name", "message"), [("none", "there is no such folder"), ("app/app.py", "there is no such folder"), ("void", "has no files")]
)
def test_no_folder_or_nothing_in_it(app: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "void" / ".git").mkdir(parents=True)
    with pytest.raises(BundleError, match=message):
        bundle.pack(tmp_path / name)


@pytest.mark.parametrize(("function", "message"), [("scandir", "a folder cannot be read"), ("open", "a file cannot be read")])
def test_what_cannot_be_read_is_an_error_and_no_gap(app: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str) -> None:
    def refuse(path: str | Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os if function == "scandir" else io, function, refuse)
    with pytest.raises(BundleError, match=rf"{message} \(Permission denied\)"):
        bundle.pack(app)


def test_what_is_too_large_is_not_even_read(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[str]()
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    sparse(app / "a", 33 << 20)
    sparse(app / "b", 33 << 20)
    with pytest.raises(BundleError, match="too large"):
        bundle.pack(app)
    assert len({"a", "b"} & set(opened)) == 1


# ------------------------------------------------------------------------------------------------------ all or nothing


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_target_that_exists_is_left_alone(app: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "dangling link":
        target.symlink_to("none")
    else:
        write(tmp_path, {"target" if kind == "file" else "target/mine": b"1"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="exists already"):
        bundle.unpack(bundle.pack(app), target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("failing", range(len(APP)))
def test_a_full_disk_leaves_nothing_behind(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    data, written, place = bundle.pack(app), list[Path](), tmp_path / "place"
    real = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        assert not (place / "target").exists()
        written.append(path)
        if len(written) > failing:
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(BundleError, match=r"cannot be unpacked \(No space left on device\)"):
        bundle.unpack(data, place / "target")
    assert list(place.iterdir()) == []
    assert len(written) == failing + 1


def test_a_target_that_appears_meanwhile_is_not_overwritten(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, target = bundle.pack(app), tmp_path / "target"
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda stage, to: real(stage, write(Path(to), {"mine": b"1"})))
    with pytest.raises(BundleError, match="cannot be unpacked"):
        bundle.unpack(data, target)
    assert tree(target) == {"mine": b"1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "target"]
