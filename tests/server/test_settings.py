"""Settings: every key has a default, and every mistake is named with file and line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedscale.errors import ConfigError
from fedscale_server.settings import Settings, load


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def given(home: Path, text: str) -> Path:
    (home / "server.toml").write_text(text)
    return home / "server.toml"


def test_without_a_file_all_is_at_its_default(home: Path) -> None:
    assert load(home) == load(home / "not there yet") == Settings()
    assert Settings().model_dump() == {
        "host": "127.0.0.1",
        "port": 8470,
        "enrolment_port": 8471,
        "web": True,
        "web_host": "127.0.0.1",
        "web_port": 8472,
        "hosts": ("localhost", "127.0.0.1"),
        "database": "",
        "uploads_at_once": 4,
        "upload_bytes": 1 << 30,
        "durability": "spool",
        "replicas": False,
        "lease_seconds": 10.0,
        "blobs": "",
        "blobs_endpoint": "",
        "sinks": (),
        "mlflow_uri": "",
        "federation": "fedscale",
    }


def test_the_file_wins_over_the_default_and_an_option_over_the_file(home: Path) -> None:
    given(home, 'port = 9000\nhosts = ["fl.example.org"]\nfederation = "north"\n')
    found = load(home, {"port": 9001, "host": None, "database": None})
    assert (found.port, found.hosts, found.federation, found.host) == (9001, ("fl.example.org",), "north", "127.0.0.1")


def test_what_is_written_is_what_is_read(home: Path) -> None:
    settings = Settings(host="::", port=0, enrolment_port=1, hosts=("fl.example.org", "::1"), database="postgresql://a@b/c", federation="north")
    given(home, settings.to_toml())
    assert load(home) == settings


def test_the_file_explains_each_setting() -> None:
    lines = Settings().to_toml().splitlines()
    for key, field in Settings.model_fields.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{key} ="))
        assert lines[place - 1] == f"# {field.description}"
    assert list(tomllib.loads("\n".join(lines))) == list(Settings.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nprot = 1\n", "server.toml:2: 'prot' is not a setting; did you mean 'port'?"),
        ("colour = 'red'\n", "server.toml:1: 'colour' is not a setting; known: host, port,"),
        ("host = '::'\nport = 'many'\n", "server.toml:2: 'port' is not valid (input should be a valid integer"),
        ("port = 65536\n", "server.toml:1: 'port' is not valid (input should be less than or equal to 65535)"),
        ("port = -1\n", "server.toml:1: 'port' is not valid"),
        ("host = ''\n", "server.toml:1: 'host' is not valid"),
        ("hosts = []\n", "server.toml:1: 'hosts' is not valid"),
        ("hosts = 'localhost'\n", "server.toml:1: 'hosts' is not valid"),
        ("hosts = [1]\n", "server.toml:1: 'hosts' is not valid"),
        ("uploads_at_once = 0\n", "server.toml:1: 'uploads_at_once' is not valid"),
        ("upload_bytes = 1\n", "server.toml:1: 'upload_bytes' is not valid"),
        ('durability = "hope"\n', "server.toml:1: 'durability' is not valid"),
        ("port = 8471\n", "server.toml: 'port' and 'enrolment_port' are the same; each listens on its own"),
        ("federation = 'St. Mary'\n", "'St. Mary' is not a valid name"),
        ("port = \n", "server.toml: the settings cannot be read (Invalid value (at line 1"),
        ("[port]\nx = 1\n", "server.toml: 'port' is not valid"),
    ],
)
def test_mistakes_are_named_with_their_place(home: Path, text: str, message: str) -> None:
    given(home, text)
    with pytest.raises(ConfigError) as caught:
        load(home)
    assert str(caught.value).removeprefix(f"{home}/").startswith(message)


def test_a_mistake_in_an_option_is_not_blamed_on_the_file(home: Path) -> None:
    given(home, "port = 9000\n")
    with pytest.raises(ConfigError, match=r"^options: 'port' is not valid"):
        load(home, {"port": 70_000})


def test_a_file_that_is_no_text(home: Path) -> None:
    (home / "server.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="the settings cannot be read"):
        load(home)


def test_a_folder_in_the_files_place(home: Path) -> None:
    (home / "server.toml").mkdir()
    with pytest.raises(ConfigError, match=r"the settings cannot be read .*Is a directory"):
        load(home)


def test_both_ports_may_be_left_to_the_system() -> None:
    found = load(Path("nowhere"), {"port": 0, "enrolment_port": 0})
    assert (found.port, found.enrolment_port) == (0, 0)


def test_a_password_is_not_shown(home: Path) -> None:
    secret = "postgresql://fedscale:hunter2@host/fedscale"
    assert "hunter2" not in repr(load(home, {"database": secret}))
    given(home, f"database = ['{secret}']\n")
    with pytest.raises(ConfigError) as caught:
        load(home)
    assert "hunter2" not in str(caught.value)


def test_settings_are_a_value() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
    assert Settings(port=1) == Settings(port=1) != Settings()


@pytest.mark.parametrize(
    ("hosts", "address", "enrolment"),
    [
        (("fl.example.org", "10.0.0.1"), "fl.example.org:8470", "fl.example.org:8471"),
        (("10.0.0.1",), "10.0.0.1:8470", "10.0.0.1:8471"),
        (("2001:db8::1",), "[2001:db8::1]:8470", "[2001:db8::1]:8471"),
    ],
)
def test_addresses_are_those_of_the_first_host(hosts: tuple[str, ...], address: str, enrolment: str) -> None:
    settings = Settings(hosts=hosts)
    assert (settings.address, settings.enrolment_address) == (address, enrolment)


def test_the_database_is_in_the_home_unless_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert Settings().url(Path("server")) == f"sqlite:///{home}/server/server.db"
    assert Settings(database="postgresql://a@b/c").url(home) == "postgresql://a@b/c"
