"""An answer that arrives in pieces: whatever came stays, only the whole is believed, and on disk nobody can read it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import files
from fedscale.errors import ProtocolError, Unreachable
from fedscale.ring import Extremes
from fedscale.wire.codec import digest_of
from fedscale_server import uploads
from fedscale_server.uploads import Upload, arrived
from fedscale_server.vault import Vault

BODY = os.urandom(5000)
DIGEST = digest_of(BODY)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "round.key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train-1-ada"


@pytest.mark.parametrize("offset", [0, 1, 2500, 4999])
def test_an_upload_shows_all_of_it_in_the_clear_also_what_an_earlier_attempt_has_brought(path: Path, vault: Vault, offset: int) -> None:
    whole, seen = Extremes(1200), Extremes(1200)
    whole.see(BODY)
    with closing(begin(path, vault)) as first:
        first.take(BODY[:4999])
    with closing(Upload(path, len(BODY), DIGEST, offset, vault.reading(path.name), seen=seen)) as upload:
        upload.resume()
        upload.take(BODY[offset:])
        upload.done(path.with_name("whole"))
    assert (seen.least, seen.most) == (whole.least, whole.most)
    assert seen.least < 0 < seen.most


def begin(path: Path, vault: Vault, offset: int = 0, size: int = len(BODY), digest: str = DIGEST) -> Upload:
    upload = Upload(path, size, digest, offset, vault.writing(path.name))
    try:
        upload.resume()
    except Unreachable:
        upload.close()
        raise
    return upload


def sent(path: Path, vault: Vault, upto: int) -> None:
    """An attempt that breaks off behind so many bytes."""
    with closing(begin(path, vault, arrived(path))) as upload:
        upload.take(BODY[arrived(path) : upto])


def plain(path: Path, vault: Vault, name: str) -> bytes:
    return vault.reading(name).update(path.read_bytes())


def test_a_frame_longer_than_what_is_enciphered_at_once_arrives_whole(path: Path, vault: Vault) -> None:
    body = os.urandom(2 * uploads.BLOCK + 5)
    with closing(begin(path, vault, size=len(body), digest=digest_of(body))) as upload:
        for part in (body[:3], body[3:]):
            upload.take(part)
        upload.done(path.with_name("whole"))
    assert plain(path.with_name("whole"), vault, path.name) == body


@given(cuts=st.lists(st.integers(0, len(BODY)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_an_answer_that_breaks_anywhere_any_number_of_times_arrives(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    vault, path = Vault(folder / "round.key"), folder / "train-1-ada"
    for cut in sorted(cuts):
        sent(path, vault, cut)
        assert arrived(path) == cut
    with closing(begin(path, vault, arrived(path))) as upload:
        upload.take(BODY[arrived(path) :])
        upload.done(folder / "whole")
    assert plain(folder / "whole", vault, path.name) == BODY
    assert arrived(path) == 0


def test_an_attempt_may_begin_before_the_end_of_the_last_one(path: Path, vault: Vault) -> None:
    sent(path, vault, 3000)
    with closing(begin(path, vault, 1234)) as upload:
        assert arrived(path) == 1234
        upload.take(BODY[1234:])
        upload.done(path.with_name("whole"))
    assert plain(path.with_name("whole"), vault, path.name) == BODY


def test_an_attempt_cannot_leave_a_hole(path: Path, vault: Vault) -> None:
    sent(path, vault, 3000)
    with pytest.raises(Unreachable, match="does not begin where the last one ended; ask for the offset again"):
        begin(path, vault, 3001)
    assert arrived(path) == 3000


def test_what_has_arrived_cannot_be_read_without_the_key(path: Path, vault: Vault) -> None:
    sent(path, vault, 4000)
    held = path.read_bytes()
    assert len(held) == 4000
    assert not any(BODY[at : at + 8] in held for at in range(0, 4000, 8))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_first_model_is_no_secret(path: Path) -> None:
    with closing(Upload(path, len(BODY), DIGEST, 0, None)) as upload:
        upload.take(BODY)
        upload.done(path.with_name("whole"))
    assert path.with_name("whole").read_bytes() == BODY


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([BODY, b"!"], "a stream is longer than it announced"),
        ([b"!" * len(BODY)], "a stream does not have the content it announced"),
    ],
)
def test_what_is_not_the_whole_leaves_nothing(path: Path, vault: Vault, parts: list[bytes], message: str) -> None:
    with closing(begin(path, vault)) as upload, pytest.raises(ProtocolError, match=message):  # noqa: PT012 - a frame or the end may be the fault
        for part in parts:
            upload.take(part)
        upload.done(path.with_name("whole"))
    assert [each.name for each in path.parent.iterdir()] == ["round.key"]


def test_a_stream_that_ends_too_early_may_have_broken_off_and_is_gone_on_with(path: Path, vault: Vault) -> None:
    """Whoever cancels a call, or loses its connection, sometimes looks like one that had no more to send."""
    for begun, end in ((0, 100), (100, 3000)):
        with closing(begin(path, vault, begun)) as upload:
            upload.take(BODY[begun:end])
            with pytest.raises(ProtocolError, match=f"a stream ended {len(BODY) - end} bytes too early"):
                upload.done(path.with_name("whole"))
        assert arrived(path) == end
    sent(path, vault, len(BODY))
    with closing(begin(path, vault, len(BODY))) as upload:
        upload.done(path.with_name("whole"))
    assert plain(path.with_name("whole"), vault, path.name) == BODY


@pytest.mark.parametrize("damage", [b"\0" * 3000, os.urandom(3000)])
def test_a_beginning_that_was_spoilt_costs_another_attempt_and_not_the_answer(path: Path, vault: Vault, damage: bytes) -> None:
    sent(path, vault, 3000)
    path.write_bytes(damage)
    with closing(begin(path, vault, 3000)) as upload:
        upload.take(BODY[3000:])
        with pytest.raises(Unreachable, match="does not fit its beginning"):
            upload.done(path.with_name("whole"))
    assert arrived(path) == 0
    sent(path, vault, len(BODY))
    with closing(begin(path, vault, len(BODY))) as upload:
        upload.done(path.with_name("whole"))
    assert plain(path.with_name("whole"), vault, path.name) == BODY


def test_a_full_disk_is_the_servers_fault_and_is_freed(path: Path, vault: Vault) -> None:
    sent(path, vault, 3000)
    with closing(begin(path, vault, 3000)) as upload:
        with Path("/dev/full").open("r+b", buffering=0) as full:
            file, upload._file = upload._file, full
            with pytest.raises(Unreachable, match=r"the server cannot store an answer \(No space left on device\)"):
                upload.take(BODY[3000:])
        upload._file = file
    assert arrived(path) == 0


@pytest.mark.parametrize("lasting", [True, False])
def test_what_is_to_last_goes_to_the_disk_while_more_arrives_and_is_there_before_it_has_a_name(
    path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch, *, lasting: bool
) -> None:
    told: list[tuple[object, ...]] = []
    target = path.with_name("whole")
    monkeypatch.setattr(uploads, "STRIDE", 1500)
    monkeypatch.setattr(files, "begin_sync", lambda _, *part: told.append(part))
    sent(path, vault, 500)
    monkeypatch.setattr(os, "fsync", lambda _: told.append(("sync", path.stat().st_size, target.exists())))
    with closing(Upload(path, len(BODY), DIGEST, 500, vault.reading(path.name), lasting=lasting)) as upload:
        upload.resume()
        for start in range(500, len(BODY), 1000):
            upload.take(BODY[start : start + 1000])
        upload.done(target)
    assert plain(target, vault, path.name) == BODY
    assert told == ([(500, 2000), (2500, 2000), ("sync", len(BODY), False)] if lasting else [])


def test_a_part_that_is_handed_to_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(BODY)
        files.begin_sync(file.fileno(), 1000, 3000)
        file.write(BODY)
        assert (tmp_path / "file").read_bytes() == BODY * 2


def test_a_disk_that_refuses_in_the_end_is_heard(path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: int) -> None:
        raise OSError(28, "No space left on device")

    with closing(begin(path, vault)) as upload:
        upload.take(BODY)
        monkeypatch.setattr(os, "fsync", refuses)
        with pytest.raises(OSError, match="No space left"):
            upload.done(path.with_name("whole"))
    assert not path.with_name("whole").exists()
