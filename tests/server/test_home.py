"""Home: made once, private, whole, and kept fresh."""

from __future__ import annotations

import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fedscale import files, identity
from fedscale.errors import ConfigError, Conflict
from fedscale.identity import Identity, Role
from fedscale_server import home as module
from fedscale_server.home import Home, load_authority
from fedscale_server.settings import Settings, load
from tests.server.samples import NOW

SETTINGS = Settings(hosts=("fl.example.org", "127.0.0.1", "::1"), port=9000, federation="north")
FILES = {"server.toml", "ca/key.pem", "ca/cert.pem", "server/key.pem", "server/cert.pem"}
PROFILE = {"admin/key.pem", "admin/cert.pem", "admin/ca.pem", "admin/address"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "server", SETTINGS, NOW)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def server_certificate(home: Home) -> x509.Certificate:
    return identity.load_certificate(home.server_pems()[1])


# --------------------------------------------------------------------------------------------------------------- making


def test_a_home_holds_what_a_server_needs(home: Home) -> None:
    assert set(contents(home.path)) == FILES | PROFILE
    assert load(home.path) == SETTINGS


def test_nobody_else_can_read_it(home: Home) -> None:
    modes = {path: oct(path.stat().st_mode & 0o777) for path in (home.path, *home.path.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert {mode for path, mode in modes.items() if path.is_file()} == {"0o600"}


def test_what_others_can_read_is_found_and_closed_by_the_command_that_is_named(home: Home) -> None:
    assert module.exposed(home.path) is None
    (home.path / "ca/cert.pem").chmod(0o644)
    assert module.exposed(home.path) is None, "a certificate is no secret"
    (home.path / "ca/key.pem").chmod(0o640)
    assert module.exposed(home.path) == home.path / "ca/key.pem"
    subprocess.run(shlex.split(module.closing(home.path)), check=True)
    assert module.exposed(home.path) is None


def test_the_servers_certificate_is_for_its_hosts(home: Home) -> None:
    key, certificate = home.server_pems()
    ca = identity.certificate_pem(home.authority.certificate)
    identity.verify_issued(certificate, ca, NOW + timedelta(days=89))
    leaf = server_certificate(home)
    assert leaf.public_key() == identity.load_key(key).public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["127.0.0.1", "::1"]
    assert leaf.not_valid_after_utc == pytest.approx(NOW + timedelta(days=90), abs=timedelta(seconds=1))


def test_the_profile_makes_its_holder_the_operator(home: Home) -> None:
    found = contents(home.profile)
    assert found["address"] == b"fl.example.org:9000\n"
    assert found["ca.pem"] == identity.certificate_pem(home.authority.certificate)
    assert identity.identity_of(found["cert.pem"]) == Identity("north", Role.COORDINATOR, "admin")
    identity.verify_issued(found["cert.pem"], found["ca.pem"], NOW + timedelta(days=364), identity.CLIENT_AUTH)
    assert identity.load_key(found["key.pem"]).public_key() == identity.load_certificate(found["cert.pem"]).public_key()


def test_a_home_is_opened_as_it_was_made(home: Home) -> None:
    again = Home.load(home.path)
    assert again.authority.to_pems() == home.authority.to_pems()
    assert again.authority.federation == "north"
    assert again.server_pems() == home.server_pems()


def test_two_homes_share_nothing(home: Home, tmp_path: Path) -> None:
    other = contents(Home.create(tmp_path / "other", SETTINGS, NOW).path)
    mine = contents(home.path)
    assert {name for name in mine if mine[name] == other[name]} == {"server.toml", "admin/address"}


def test_the_authoritys_key_is_not_shown(home: Home) -> None:
    assert "key" not in repr(home).replace(str(home.path), "")


def test_a_home_is_made_once(home: Home) -> None:
    before = contents(home.path)
    with pytest.raises(Conflict, match="there is a server here already; start it with: fedscale server start"):
        Home.create(home.path, Settings(), NOW)
    assert contents(home.path) == before


def test_a_folder_that_is_there_is_used_and_its_settings_are_kept(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("# ours\nport = 9001\n")
    tmp_path.chmod(0o755)
    Home.create(tmp_path, load(tmp_path), NOW)
    assert (tmp_path / "server.toml").read_text() == "# ours\nport = 9001\n"
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_settings_that_were_given_are_written(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("port = 9001\n")
    Home.create(tmp_path, load(tmp_path, {"port": 9002}), NOW)
    assert load(tmp_path).port == 9002


def test_a_host_that_cannot_be_certified_leaves_no_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a host name"):
        Home.create(tmp_path / "server", Settings(hosts=("not a host",)), NOW)
    with pytest.raises(ConfigError, match="there is no server here"):
        Home.load(tmp_path / "server")
    assert Home.create(tmp_path / "server", SETTINGS, NOW).server_pems()


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="the server's home cannot be written"):
        Home.create(tmp_path / "file" / "server", SETTINGS, NOW)


@pytest.mark.parametrize("writes", range(9))
def test_a_home_that_was_made_half_is_made_anew(tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after so many files."""
    done: list[Path] = []

    def write(path: Path, *arguments: Any) -> None:
        if len(done) == writes:
            raise OSError(28, "No space left on device")
        done.append(path)
        original(path, *arguments)

    original = files.write
    with monkeypatch.context() as patched:
        patched.setattr(files, "write", write)
        with pytest.raises(ConfigError, match="No space left on device"):
            Home.create(tmp_path / "server", SETTINGS, NOW)
    with pytest.raises(ConfigError, match="there is no server here"):
        Home.load(tmp_path / "server")
    home = Home.create(tmp_path / "server", SETTINGS, NOW)
    assert set(contents(home.path)) == FILES | PROFILE
    identity.verify_issued(home.server_pems()[1], contents(home.profile)["ca.pem"], NOW)
    assert Home.load(home.path).authority.to_pems() == home.authority.to_pems()


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no server here; make one with: fedscale server init"):
        Home.load(tmp_path)


@pytest.mark.parametrize("name", ["ca/key.pem", "ca/cert.pem"])
def test_a_damaged_authority_is_refused(home: Home, name: str) -> None:
    (home.path / name).write_bytes(b"damage")
    with pytest.raises(ConfigError, match="cannot be read"):
        Home.load(home.path)


def test_a_missing_file_is_named(home: Home) -> None:
    (home.path / "server" / "cert.pem").unlink()
    with pytest.raises(ConfigError, match=r"server/cert.pem: a file of the server's home cannot be read \(No such file or directory\)"):
        home.server_pems()


def test_the_authority_of_another_home_is_refused(home: Home, tmp_path: Path) -> None:
    other = Home.create(tmp_path / "other", SETTINGS, NOW)
    (home.path / "ca" / "cert.pem").write_bytes(identity.certificate_pem(other.authority.certificate))
    with pytest.raises(ConfigError, match="key does not belong to its certificate"):
        Home.load(home.path)


# ------------------------------------------------------------------------------------------------------------ refreshing


def test_a_clock_before_the_federations_time_is_refused(home: Home) -> None:
    """Nobody's certificate would be valid yet."""
    before = contents(home.path)
    with pytest.raises(ConfigError, match="this machine's clock is wrong") as raised:
        home.refresh(SETTINGS, NOW - timedelta(days=2))
    assert raised.value.why.startswith(f"it says {NOW - timedelta(days=2):%Y-%m-%d %H:%M} UTC")
    assert contents(home.path) == before


def test_nothing_is_renewed_that_is_fresh(home: Home) -> None:
    before = contents(home.path)
    assert not home.refresh(SETTINGS, NOW + timedelta(days=59))
    assert contents(home.path) == before


def test_the_servers_certificate_is_renewed_in_its_last_third(home: Home) -> None:
    key, old = home.server_pems()
    when = NOW + timedelta(days=61)
    assert home.refresh(SETTINGS, when)
    assert home.server_pems()[0] == key
    assert home.server_pems()[1] != old
    identity.verify_issued(home.server_pems()[1], contents(home.profile)["ca.pem"], when + timedelta(days=89))
    assert not home.refresh(SETTINGS, when)


@pytest.mark.parametrize("hosts", [("fl.example.org",), ("fl.example.org", "127.0.0.1", "::2"), ("new.example.org", "127.0.0.1", "::1")])
def test_other_hosts_need_another_certificate(home: Home, hosts: tuple[str, ...]) -> None:
    settings = SETTINGS.model_copy(update={"hosts": hosts})
    assert home.refresh(settings, NOW)
    assert module._hosts_of(server_certificate(home)) == set(hosts)
    assert not home.refresh(settings, NOW)


def test_the_same_hosts_in_other_words_do_not(home: Home) -> None:
    assert not home.refresh(SETTINGS.model_copy(update={"hosts": ("fl.example.org", "0:0:0:0:0:0:0:1", "127.0.0.1")}), NOW)


def test_the_profile_is_renewed_in_its_last_third(home: Home) -> None:
    before = contents(home.profile)
    when = NOW + timedelta(days=250)
    home.refresh(SETTINGS, when)
    after = contents(home.profile)
    assert {name for name in after if after[name] != before[name]} == {"cert.pem"}
    identity.verify_issued(after["cert.pem"], after["ca.pem"], when + timedelta(days=364), identity.CLIENT_AUTH)
    assert identity.identity_of(after["cert.pem"]).name == "admin"


def test_the_profile_follows_the_address(home: Home) -> None:
    before = contents(home.profile)
    assert not home.refresh(SETTINGS.model_copy(update={"port": 9999}), NOW)
    after = contents(home.profile)
    assert {name for name in after if after[name] != before[name]} == {"address"}
    assert after["address"] == b"fl.example.org:9999\n"


def test_a_profile_that_was_moved_away_is_not_made_again(home: Home, tmp_path: Path) -> None:
    home.profile.rename(tmp_path / "laptop")
    home.refresh(SETTINGS.model_copy(update={"port": 9999}), NOW + timedelta(days=300))
    assert not home.profile.exists()


def test_a_federation_keeps_its_name(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"the settings name the federation 'south' \(this home is of 'north'\)"):
        home.refresh(SETTINGS.model_copy(update={"federation": "south"}), NOW)


def test_nothing_outlives_the_authority(home: Home) -> None:
    """In its tenth year certificates get shorter, and after it there are none."""
    end = home.authority.certificate.not_valid_after_utc
    home.refresh(SETTINGS, end - timedelta(days=2))
    assert server_certificate(home).not_valid_after_utc == end
    with pytest.raises(ConfigError, match="would expire before it is issued"):
        home.refresh(SETTINGS, end + timedelta(days=1))


def test_a_home_is_made_without_what_only_a_running_server_needs(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom datetime import UTC, datetime\nfrom pathlib import Path\nfrom fedscale_server.home import Home\n"
        "from fedscale_server.settings import load\nhome = Path(sys.argv[1])\nHome.create(home, load(home), datetime.now(UTC))\n"
        "print(sorted({'sqlmodel', 'sqlalchemy', 'alembic', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "server")], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert Home.load(tmp_path / "server").authority.federation == "fedscale"


# --------------------------------------------------------------------------------------------------------- several homes


def test_a_home_is_used_by_one_process_at_a_time(home: Home) -> None:
    with home.locked() as token:
        assert len(token) == 32
        with pytest.raises(Conflict, match="a server is running in this home already"), home.locked():
            pass
    with Home.load(home.path).locked() as again:
        assert again == token


def test_homes_have_tokens_of_their_own(home: Home, tmp_path: Path) -> None:
    with home.locked() as one, Home.create(tmp_path / "other", SETTINGS, NOW, home.authority).locked() as other:
        assert one != other


def test_a_replica_has_the_authority_of_the_first(home: Home, tmp_path: Path) -> None:
    other = Home.create(tmp_path / "other", SETTINGS, NOW, load_authority(home.path / "ca"))
    assert (other.path / "ca" / "key.pem").read_bytes() == (home.path / "ca" / "key.pem").read_bytes()
    assert other.server_pems() != home.server_pems()
    identity.verify_issued(identity.certificate_pem(server_certificate(other)), identity.certificate_pem(home.authority.certificate), NOW)


def test_an_authority_serves_one_federation(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the authority is of 'north' \(the settings name the federation 'south'\)"):
        Home.create(tmp_path / "other", SETTINGS.model_copy(update={"federation": "south"}), NOW, home.authority)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_authority(tmp_path / "nowhere")


def test_the_profile_knows_all_coordinators_until_it_is_moved_away(home: Home) -> None:
    home.tell([SETTINGS.address, "two:1"])
    address = home.profile / "address"
    assert address.read_text() == f"{SETTINGS.address}\ntwo:1\n"
    home.refresh(SETTINGS, NOW)
    assert address.read_text() == f"{SETTINGS.address}\ntwo:1\n", "it is kept while the first one is right"
    home.refresh(SETTINGS.model_copy(update={"port": 9999}), NOW)
    assert address.read_text() == "fl.example.org:9999\n"
    for path in home.profile.iterdir():
        path.unlink()
    home.tell(["two:1"])
    assert list(home.profile.iterdir()) == []
