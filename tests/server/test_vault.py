"""The round's key: a stream for each file that begins anywhere, and nothing to be read once it is destroyed."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedscale.errors import NotFound
from fedscale_server.vault import KEY_BYTES, Vault

TEXT = b"a patient of 93 with a rare disease" * 9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "round.key"


def test_what_was_written_is_read_by_the_next_process(path: Path) -> None:
    hidden = Vault(path).writing("train-1-ada").update(TEXT)
    assert TEXT[:16] not in hidden
    assert Vault(path).reading("train-1-ada").update(hidden) == TEXT


def test_the_stream_is_counter_mode_under_a_key_of_the_files_own(path: Path) -> None:
    hidden = Vault(path).writing("train-1-ada").update(TEXT)
    key = hmac.digest(path.read_bytes(), b"train-1-ada", "sha256")
    assert Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).decryptor().update(hidden) == TEXT


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 100])
def test_a_stream_goes_on_behind_what_it_has_read(path: Path, cut: int) -> None:
    vault = Vault(path)
    whole = vault.writing("x").update(TEXT)
    resumed = vault.writing("x")
    assert resumed.update(whole[:cut]) == TEXT[:cut]
    assert resumed.update(TEXT[cut:]) == whole[cut:]


def test_no_two_files_or_rounds_share_a_stream(path: Path) -> None:
    vault, seen = Vault(path), set()
    for _ in range(3):
        seen |= {vault.writing(name).update(bytes(32)) for name in ("ada", "ben", "ada")}
        vault.destroy()
    assert len(seen) == 6


def test_a_destroyed_key_is_nowhere(path: Path) -> None:
    vault = Vault(path)
    vault.writing("x")
    secret = vault._secret
    before = bytes(secret)
    # Whoever has the file open, as a link of another name, sees it overwritten and not only unlinked.
    path.with_name("link").hardlink_to(path)
    vault.destroy()
    assert not path.exists()
    assert path.with_name("link").read_bytes() not in (before, b"")
    assert bytes(secret) == bytes(KEY_BYTES)
    assert not vault.open
    with pytest.raises(NotFound, match="the key of an answer is gone"):
        vault.reading("x")
    vault.destroy()


def test_a_key_that_a_crash_has_left_half_written_goes_with_the_others(path: Path) -> None:
    draft, other = path.with_name(f".{path.name}.0a1b"), path.with_name("other")
    for left in (draft, other):
        left.write_bytes(bytes(KEY_BYTES))
    Vault(path).destroy()
    assert list(path.parent.iterdir()) == [other]


def test_a_key_that_does_not_last_is_never_written_down(path: Path) -> None:
    vault = Vault(path, lasting=False)
    hidden = vault.writing("x").update(TEXT)
    assert vault.reading("x").update(hidden) == TEXT
    assert list(path.parent.iterdir()) == []
    assert not Vault(path, lasting=False).open


def test_the_key_is_for_its_owner_only(path: Path) -> None:
    Vault(path).writing("x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == KEY_BYTES
