"""The home of a node: what is read from it, how it is written, and that only one node lives in it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedscale import files, identity
from fedscale.errors import AccessDenied, ConfigError, Conflict
from fedscale_client import home as home_module
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings, open_private, parse, read_toml, write_toml

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)
SETTINGS = {"name": "a", "federation": "f", "project": "p", "address": "host:1"}


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path)
    write_toml(made.settings_file, dict(SETTINGS))
    return made


@pytest.fixture
def credentials() -> Credentials:
    authority, key = identity.new_authority("f", NOW), identity.new_key()
    who = identity.Identity("f", identity.Role.NODE, "a")
    certificate = authority.issue(identity.new_request(key, "a"), who, NOW, hours=24)
    return Credentials(identity.key_pem(key), identity.certificate_pem(certificate), identity.certificate_pem(authority.certificate))


def test_settings_with_defaults(home: NodeHome) -> None:
    settings = home.settings()
    assert settings.model_dump(include=set(SETTINGS)) == SETTINGS
    assert (settings.workers, settings.cache_bytes, settings.server_name) == (2, 8 << 30, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addres": "x:1"}, r"addres: Extra inputs.*known: name, federation"),
        ({"address": "nowhere"}, "address: String should match"),
        ({"workers": 0}, "workers: Input should be greater"),
        ({"name": 3}, "name: Input should be a valid string"),
    ],
)
def test_settings_that_are_wrong(home: NodeHome, change: dict[str, object], words: str) -> None:
    write_toml(home.settings_file, {**SETTINGS, **change})
    with pytest.raises(ConfigError, match=words) as caught:
        home.settings()
    assert caught.value.where == str(home.settings_file)


def test_settings_that_are_no_toml(home: NodeHome) -> None:
    home.settings_file.write_text("name = ")
    with pytest.raises(ConfigError, match=r"node\.toml: not valid TOML"):
        home.settings()


def test_a_home_that_has_not_joined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not joined.*fedscale node join TICKET"):
        NodeHome(tmp_path).settings()
    with pytest.raises(ConfigError, match="certificate cannot be read.*No such file"):
        Credentials.of(NodeHome(tmp_path))


def test_credentials_come_back(home: NodeHome, credentials: Credentials) -> None:
    for path, data in (
        (home.key_file, credentials.key),
        (home.certificate_file, credentials.certificate),
        (home.authority_file, credentials.authority),
    ):
        files.write(path, data)
    assert Credentials.of(home) == credentials
    assert b"PRIVATE KEY" not in repr(Credentials.of(home)).encode()


def test_the_life_of_a_certificate(credentials: Credentials) -> None:
    begins = identity.load_certificate(credentials.certificate).not_valid_before_utc
    assert credentials.expires() == NOW + timedelta(hours=24)
    assert credentials.renewable() == begins + (NOW + timedelta(hours=24) - begins) / 2
    credentials.check(NOW + timedelta(hours=23))
    with pytest.raises(AccessDenied, match=r"has expired.*ended on 2030-05-02 12:00 UTC, and this .* clock says 2030-05-02 12:00 UTC.*new ticket"):
        credentials.check(NOW + timedelta(hours=24))


def test_a_key_of_somebody_else(credentials: Credentials) -> None:
    other = Credentials(identity.key_pem(identity.new_key()), credentials.certificate, credentials.authority)
    with pytest.raises(ConfigError, match="does not belong to its certificate"):
        other.check(NOW)


def test_one_node_a_home(home: NodeHome) -> None:
    with home.locked(), pytest.raises(Conflict, match="running in this home already"), home.locked():
        pass
    with home.locked():
        assert (home.path / "lock").stat().st_mode & 0o777 == 0o600


def test_asking_whether_a_home_is_held_disturbs_nobody(home: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "START_SECONDS", 60.0)
    with ExitStack() as asking:
        lock = asking.enter_context(open_private(home.path / "lock"))
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not home.is_held(), "two may ask at once"
        answered = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        answered.start()
        with home.locked():
            assert home.is_held()
        answered.join()
    assert not home.is_held()


def test_a_crash_frees_the_home(home: NodeHome) -> None:
    script = (
        "import os, pathlib, sys\nfrom fedscale_client.home import NodeHome\nNodeHome(pathlib.Path(sys.argv[1])).locked().__enter__()\nos._exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", script, home.path], check=False).returncode == 3
    with home.locked():
        assert home.path.exists()


def test_a_private_file_is_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("old")
    path.chmod(0o644)
    files.write(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    path.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        files.write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_private_descriptors_and_folders(tmp_path: Path) -> None:
    folder = files.private_folder(tmp_path / "a/b")
    with open_private(folder / "log", os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"one")
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert (folder.stat().st_mode & 0o777, (folder / "log").stat().st_mode & 0o777) == (0o700, 0o600)
    assert files.private_folder(folder) == folder


def test_toml_comes_back(tmp_path: Path) -> None:
    tree = {"heart": {"kind": "csv", "columns": ["a", "b"]}}
    write_toml(tmp_path / "x.toml", tree)
    assert read_toml(tmp_path / "x.toml") == tree
    with pytest.raises(ConfigError, match="cannot be read.*Is a directory"):
        read_toml(tmp_path)


def test_a_problem_of_the_whole_has_no_field() -> None:
    with pytest.raises(ConfigError, match=r"^here: Input should be a valid dictionary"):
        parse(NodeSettings, [], "here")
