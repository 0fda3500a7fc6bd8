"""The audit trail: any edit, deletion, reordering and truncation is found, and who did what stands in it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import fedscale_server.trail
from fedscale import files
from fedscale.errors import ConfigError, RunFailed, Unreachable
from fedscale_server.deeds import ORIGIN, Deed, deed_of, head_of, line_of
from fedscale_server.trail import TAIL_BYTES, Trail
from tests.command import fedscale

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINES = 6


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    """A trail of six lines."""
    made = Trail(tmp_path, lambda: NOW)
    for number in range(LINES):
        made.note("grace", "dashboard", "run submitted", f"run-{number}", project="heart")
    return made


def lines(trail: Trail) -> list[bytes]:
    return trail.path.read_bytes().splitlines(keepends=True)


def test_a_trail_verifies_and_says_where_it_ends(trail: Trail) -> None:
    deeds = list(trail.read())
    assert [deed.seq for deed in deeds] == list(range(1, LINES + 1))
    assert trail.verify() == (LINES, deeds[-1].digest)
    assert trail.verify((2, deeds[1].digest)) == (LINES, deeds[-1].digest)
    assert deeds[0].previous == ORIGIN
    assert (deeds[3].who, deeds[3].action, deeds[3].target, deeds[3].facts) == ("grace", "run submitted", "run-3", {"project": "heart"})
    assert oct(trail.path.stat().st_mode & 0o777) == "0o600"


def test_the_hash_is_the_one_that_is_documented(tmp_path: Path) -> None:
    deed = Trail(tmp_path, lambda: NOW).note("ada", "certificate", "shut out", "mercy")
    said = '{"action":"shut out","at":"2026-01-02T03:04:05.000+00:00","door":"certificate","facts":{},"previous":"' + ORIGIN
    said += '","seq":1,"target":"mercy","who":"ada"}'

    assert deed.digest == hashlib.sha256(b"fedscale/audit/v1\0" + said.encode()).hexdigest()


def edited(name: str, value: object) -> Callable[[list[bytes]], list[bytes]]:
    def change(found: list[bytes]) -> list[bytes]:
        tree = json.loads(found[2])
        return [*found[:2], json.dumps({**tree, name: value}).encode() + b"\n", *found[3:]]

    return change


def rewritten(found: list[bytes]) -> list[bytes]:
    """A line that was edited and given the hash that fits."""
    deed = Deed(**{**json.loads(found[2]), "who": "nobody"})
    fitting = Deed(**{**asdict(deed), "digest": deed.hashed()})
    return [*found[:2], line_of(fitting), *found[3:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edited("who", "nobody"), "line 3 was edited"),
        (edited("at", "2025-01-01T00:00:00.000+00:00"), "line 3 was edited"),
        (edited("facts", {}), "line 3 was edited"),
        (edited("digest", "0" * 64), "line 3 was edited"),
        (edited("previous", "0" * 64), "line 3 was edited"),
        (rewritten, "line 4 does not follow the one before it"),
        (lambda found: [*found[:2], *found[3:]], "line 3 is missing or stands elsewhere"),
        (lambda found: found[1:], "line 1 is missing or stands elsewhere"),
        (lambda found: [found[1], found[0], *found[2:]], "line 1 is missing or stands elsewhere"),
        (lambda found: [*found[:3], found[2], *found[3:]], "line 4 is missing or stands elsewhere"),
        (lambda found: found[:-1], "it ends with line 5, and had 6"),
        (lambda _: [], "it ends with line 0, and had 6"),
    ],
)
def test_every_change_is_found(trail: Trail, change: Callable[[list[bytes]], list[bytes]], problem: str) -> None:
    trail.path.write_bytes(b"".join(change(lines(trail))))
    with pytest.raises(RunFailed) as caught:
        trail.verify()
    assert caught.value.why == problem


def spaced(found: list[bytes]) -> list[bytes]:
    """Nothing else is said, but in other bytes."""
    return [*found[:2], json.dumps(json.loads(found[2])).encode() + b"\n", *found[3:]]


def doubled(found: list[bytes]) -> list[bytes]:
    """A line that says a thing twice: people read the first, programs the last."""
    return [*found[:2], found[2].replace(b'{"seq"', b'{"who":"nobody","seq"'), *found[3:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (spaced, "line 3 is not as it was written"),
        (doubled, "line 3 is not as it was written"),
        (lambda found: [*found, b"\xff\xfe\n"], "this is no line of an audit trail"),
        (lambda found: [*found[:2], b"[]\n", *found[2:]], "this is no line of an audit trail"),
    ],
)
def test_what_was_never_written_does_not_verify(trail: Trail, change: Callable[[list[bytes]], list[bytes]], problem: str) -> None:
    trail.path.write_bytes(b"".join(change(lines(trail))))
    with pytest.raises(RunFailed) as caught:
        trail.verify()
    assert (caught.value.why, caught.value.exit_code) == (problem, 1)


def test_a_trail_whose_head_was_taken_away_is_neither_trusted_nor_gone_on_with(trail: Trail) -> None:
    head = trail.path.with_suffix(".head")
    head.unlink()
    with pytest.raises(RunFailed, match="the note of where it ends is gone"):
        trail.verify()
    with pytest.raises(ConfigError, match="the note of where it ends is gone"):
        trail.note("grace", "dashboard", "logged in")
    assert len(lines(trail)) == LINES
    trail.path.write_bytes(lines(trail)[0])
    trail.note("grace", "dashboard", "logged in")
    assert trail.verify()[0] == 2, "a crash may come between the first line and its head"


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff\xfe", b"6:abc"])
def test_a_head_that_is_none_is_named(trail: Trail, content: bytes) -> None:
    head = trail.path.with_suffix(".head")
    head.write_bytes(content)
    with pytest.raises(RunFailed) as caught:
        trail.verify()
    assert caught.value.where == str(head)
    with pytest.raises(ConfigError):
        trail.note("grace", "dashboard", "logged in")


def test_any_flipped_bit_is_found(trail: Trail) -> None:
    rng, whole = random.Random(7), trail.path.read_bytes()
    for _ in range(300):
        at = rng.randrange(len(whole))
        trail.path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        with pytest.raises(RunFailed):
            trail.verify()


def test_a_trail_that_was_cut_with_its_head_is_found_by_a_head_noted_elsewhere(trail: Trail) -> None:
    noted = trail.verify()
    trail.path.write_bytes(b"".join(lines(trail)[:3]))
    trail.path.with_suffix(".head").write_text(f"3:{json.loads(lines(trail)[2])['digest']}\n")
    assert trail.verify()[0] == 3, "as far as anybody here knows"
    with pytest.raises(RunFailed) as caught:
        trail.verify(noted)
    assert caught.value.why == "it ends with line 3, and had 6"


def test_a_trail_that_was_written_anew_is_found_by_a_head_noted_elsewhere(trail: Trail, tmp_path: Path) -> None:
    noted = trail.verify()
    for path in (trail.path, trail.path.with_suffix(".head")):
        path.unlink()
    other = Trail(tmp_path, lambda: NOW + timedelta(seconds=1))
    for number in range(LINES):
        other.note("grace", "dashboard", "run submitted", f"run-{number}", project="heart")
    with pytest.raises(RunFailed) as caught:
        other.verify(noted)
    assert caught.value.why == "line 6 is another than the one that was noted"


def test_a_line_that_a_crash_cut_off_goes_and_the_next_follows_the_last_whole_one(trail: Trail) -> None:
    with trail.path.open("ab") as file:
        file.write(b'{"seq": 7, "at": "20')
    assert trail.note("grace", "dashboard", "logged out").seq == LINES + 1
    assert trail.verify()[0] == LINES + 1


def test_nothing_is_added_to_what_is_no_trail(trail: Trail) -> None:
    trail.path.write_bytes(b"no trail\n")
    with pytest.raises(ConfigError, match="no line of an audit trail"):
        trail.note("grace", "dashboard", "logged in")
    assert trail.path.read_bytes() == b"no trail\n"


def test_threads_and_processes_write_one_chain(tmp_path: Path) -> None:
    code = "import sys; from datetime import *; from pathlib import Path; from fedscale_server.trail import Trail\n"
    code += "t = Trail(Path(sys.argv[1]), lambda: datetime.now(UTC))\nfor n in range(20): t.note('other', 'command line', 'user added', str(n))"
    trail = Trail(tmp_path, lambda: NOW)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ) as process:
        threads = [threading.Thread(target=lambda: [trail.note("grace", "dashboard", "logged in") for _ in range(20)]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
    assert trail.verify()[0] == 60


def test_a_trail_without_lines_verifies(tmp_path: Path) -> None:
    assert Trail(tmp_path, lambda: NOW).verify() == (0, ORIGIN)


@pytest.mark.parametrize("text", ["", "3", "3:", "x:" + "a" * 64, "3:" + "a" * 63, "-3:" + "a" * 64])
def test_heads_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="NUMBER:HASH"):
        head_of(text)


# ---------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    assert fedscale("server", "init", "--home", folder).code == 0
    return folder


def test_the_verbs_verify_show_and_export(home: Path, tmp_path: Path) -> None:
    assert fedscale("audit", "tail", "--home", home).out == "nothing was done yet\n"
    for name in ("grace", "linus"):
        assert fedscale("server", "user", "add", name, "--role", "auditor", "--home", home).code == 0
    assert fedscale("server", "user", "remove", "grace", "--home", home).code == 0
    done = fedscale("audit", "tail", "--home", home, "--json").data
    assert [(deed["action"], deed["target"], deed["door"]) for deed in done] == [
        ("user added", "grace", "command line"),
        ("user added", "linus", "command line"),
        ("user removed", "grace", "command line"),
    ]
    assert len(fedscale("audit", "tail", "--home", home, "--lines", "1", "--json").data) == 1
    assert fedscale("audit", "tail", "--home", home, "--who", "nobody", "--json").data == []
    verified = fedscale("audit", "verify", "--home", home, "--json").data
    assert (verified["lines"], verified["head"]) == (3, f"3:{done[-1]['digest']}")
    target = tmp_path / "kept.jsonl"
    assert fedscale("audit", "export", target, "--home", home, "--json").data["head"] == verified["head"]
    assert [json.loads(line) for line in target.read_text().splitlines()] == done
    assert fedscale("audit", "export", target, "--home", home).code == 6


def test_verify_fails_with_what_is_wrong(home: Path) -> None:
    fedscale("server", "user", "add", "grace", "--role", "auditor", "--home", home)
    head = fedscale("audit", "verify", "--home", home, "--json").data["head"]
    (home / "audit.jsonl").write_bytes(b"")
    (home / "audit.head").unlink()
    assert fedscale("audit", "verify", "--home", home).code == 0
    failed = fedscale("audit", "verify", "--home", home, "--head", head, "--json").error
    assert (failed["exit_code"], failed["why"]) == (1, "it ends with line 0, and had 1")
    assert fedscale("audit", "verify", "--home", home / "nowhere").code == 2


def test_whatever_is_said_leaves_room_for_the_next_line(trail: Trail) -> None:
    long = "x" * 1_000_000
    deed = trail.note(long, "certificate", "run stop", long, reason=long)
    assert {len(deed.who), len(deed.target), len(deed.facts["reason"])} == {200}
    assert trail.note("grace", "dashboard", "logged in").seq == LINES + 2
    assert trail.verify()[0] == LINES + 2


def test_a_trail_that_was_cut_off_is_not_gone_on_with(trail: Trail) -> None:
    trail.path.write_bytes(b"".join(lines(trail)[:2]))
    with pytest.raises(ConfigError, match="ends before the head that was noted"):
        trail.note("grace", "dashboard", "logged in")
    trail.path.unlink()
    with pytest.raises(ConfigError, match="ends before the head that was noted"):
        trail.note("grace", "dashboard", "logged in")
    with pytest.raises(RunFailed):
        trail.verify()


def test_a_head_that_a_crash_left_behind_does_no_harm(trail: Trail) -> None:
    head = trail.path.with_suffix(".head")
    before = head.read_bytes()
    trail.note("grace", "dashboard", "logged in")
    head.write_bytes(before)
    assert trail.verify()[0] == LINES + 1
    assert trail.note("grace", "dashboard", "logged in").seq == LINES + 2


def test_a_line_that_a_crash_cut_off_is_none(trail: Trail) -> None:
    head = trail.verify()
    with trail.path.open("ab") as file:
        file.write(b'{"seq": 7, "who"')
    assert len(list(trail.read())) == LINES
    assert trail.verify() == head


def test_a_line_that_is_being_written_while_the_trail_is_read_is_none_and_nor_is_its_rest(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    *whole, last = lines(trail)
    monkeypatch.setattr(Path, "open", lambda *_: nullcontext(iter([*whole, last[:40], last[40:]])))
    assert [deed.seq for deed in trail.read()] == list(range(1, LINES))


def test_a_full_disk_leaves_no_half_of_a_line(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(OSError, match="No space left"):
        trail.note("grace", "dashboard", "logged in")
    monkeypatch.undo()
    assert trail.verify()[0] == LINES
    assert trail.note("grace", "dashboard", "logged in").seq == LINES + 1


@pytest.mark.parametrize("late", [False, True], ids=["before the head", "behind it"])
def test_what_a_full_disk_refuses_does_not_stand_in_the_trail(trail: Trail, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """The line had room and its head had none: whoever asked is refused, so nobody shall read later that it was done."""
    honest = files.write

    def refusing(path: Path, content: bytes) -> None:
        if late:
            honest(path, content)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write", refusing)
    with pytest.raises(Unreachable, match="No space left on device.*disk"):
        trail.insist("grace", "dashboard", "invited", "north")
    monkeypatch.undo()
    assert trail.verify()[0] == LINES + late, "a head that was written has its line"
    assert trail.note("grace", "dashboard", "logged in").seq == LINES + 1 + late
    assert trail.verify()[0] == LINES + 1 + late


def long_trail(folder: Path, count: int) -> Trail:
    """A trail of many lines of very different length, made without a disk write each."""
    made, digest, rng = Trail(folder, lambda: NOW), ORIGIN, random.Random(3)
    with made.path.open("wb") as file:
        for seq in range(1, count + 1):
            facts = {"reason": "x" * rng.choice((0, 10, 200)), "app": "y" * rng.choice((0, 64))}
            deed = Deed(seq, NOW.isoformat(), ("ada", "bob", "cyd")[seq % 3], "dashboard", "run pause", f"run-{seq}", facts, digest, "")
            deed = replace(deed, digest=deed.hashed())
            digest = deed.digest
            file.write(line_of(deed))
    made.path.with_suffix(".head").write_text(f"{count}:{digest}\n")
    return made


def test_lines_that_verified_are_read_again_only_where_a_byte_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that verifies each time costs what was added since; what is found is the same as by reading all of it."""
    trail, read = long_trail(tmp_path, 500), list[int]()
    parsed = deed_of

    def parsing(line: bytes, number: int, path: Path) -> Deed:
        read.append(number)
        return parsed(line, number, path)

    monkeypatch.setattr("fedscale_server.trail.deed_of", parsing)
    head = trail.verify()
    assert (head[0], len(read)) == (500, 500)
    assert (trail.verify(), len(read)) == (head, 500)
    read.clear()
    deed = trail.note("ada", "dashboard", "run stop")
    read.clear()
    assert (trail.verify(), read) == ((501, deed.digest), [501])
    whole, other = trail.path.read_bytes(), Trail(tmp_path, lambda: NOW)
    rng = random.Random(5)
    for _ in range(40):
        at = rng.randrange(len(whole))
        trail.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        told = []
        for each in (trail, other):
            with pytest.raises((RunFailed, ConfigError)) as caught:
                each.verify()
            told.append(str(caught.value))
        assert told[0] == told[1], "whatever was remembered"
    trail.path.write_bytes(whole)
    read.clear()
    assert (trail.verify((200, parsed(whole.splitlines()[199], 0, trail.path).digest)), len(read)) == ((501, deed.digest), 501), (
        "an older head is looked for"
    )
    trail.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:400]))
    with pytest.raises(RunFailed, match="it ends with line 400, and had 501"):
        trail.verify()


@pytest.mark.parametrize("cut", [b"", b'{"seq":2001,"at"'], ids=["whole", "cut off"])
def test_pages_of_a_long_trail_are_what_reading_all_of_it_gives(tmp_path: Path, cut: bytes) -> None:
    trail = long_trail(tmp_path, 2000)
    everything = list(trail.read())
    with trail.path.open("ab") as file:
        file.write(cut)
    assert trail.verify() == (2000, everything[-1].digest)
    for before in (0, 1, 2, 3, 41, 700, 701, 1333, 1999, 2000, 2001, 9999):
        wanted = [deed for deed in reversed(everything) if not before or deed.seq < before]
        assert trail.newest(40, before) == wanted[:40], before
        assert trail.newest(25, before, "bob") == [deed for deed in wanted if deed.who == "bob"][:25], before
    assert trail.newest(5000) == everything[::-1]
    assert trail.newest(10, who="nobody") == []


def test_page_after_page_leads_to_the_first_line(tmp_path: Path) -> None:
    trail, before, seen = long_trail(tmp_path, 1000), 0, list[int]()
    while page := trail.newest(300, before):
        before = page[-1].seq
        seen += [deed.seq for deed in page]
    assert seen == list(range(1000, 0, -1))


def test_a_page_reads_little_of_a_long_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trail, told = long_trail(tmp_path, 8000), list[int]()
    honest = deed_of

    def counting(line: bytes, number: int, path: Path) -> Deed:
        told.append(len(line))
        return honest(line, number, path)

    monkeypatch.setattr(fedscale_server.trail, "deed_of", counting)
    for before in (0, 5000, 3000, 100):
        told.clear()
        assert trail.newest(50, before)[0].seq == (before or 8001) - 1
        assert sum(told) < 3 * TAIL_BYTES < trail.path.stat().st_size / 8


def test_no_trail_has_no_lines(tmp_path: Path) -> None:
    trail = Trail(tmp_path, lambda: NOW)
    assert (trail.newest(10), list(trail.read()), trail.verify()) == ([], [], (0, ORIGIN))
