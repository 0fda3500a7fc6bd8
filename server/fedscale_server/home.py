"""Home: the folder a server lives in, with the authority's key, the server's certificate and the operator's profile.

::

    server.toml                          settings
    ca/{key,cert}.pem                    the authority; whoever has this key can name anybody
    server/{key,cert}.pem                what the server proves itself with
    admin/{key,cert,ca}.pem, address     the operator's profile, which may be moved to another machine
    token, lock                          what tells this home from others, and that one process uses it
    server.db, runs/, bundles/           what the server remembers

Folders are 0700 and files 0600. The authority's key is written last: a home without it is no home yet.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedscale import files
from fedscale.errors import ConfigError, Conflict
from fedscale.identity import (
    Authority,
    Identity,
    PrivateKey,
    Role,
    certificate_pem,
    key_pem,
    load_certificate,
    load_key,
    new_authority,
    new_key,
    new_request,
)
from fedscale_server.settings import FILE, Settings, load

OPERATOR = "admin"
OPERATOR_DAYS = 365
SERVER_DAYS = 90
KEY, CERTIFICATE, AUTHORITY, ADDRESS, TOKEN = "key.pem", "cert.pem", "ca.pem", "address", "token"
SECRETS = ("ca", "server", "admin", "web")
TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Home:
    """A home that exists; ``create`` makes one, ``load`` opens one."""

    path: Path
    authority: Authority = field(repr=False)

    @classmethod
    def create(cls, path: Path, settings: Settings, now: datetime, authority: Authority | None = None) -> Home:
        """Make a home; a half-made one is made anew.

        Args:
            path: its folder.
            settings: of the server.
            now: the time.
            authority: that of the other replicas; by default a new one.

        Raises:
            Conflict: there is one already.
            ConfigError: the folder cannot be written, a host name cannot stand in a certificate, or the authority is of another federation.
        """
        if authority is not None and authority.federation != settings.federation:
            raise ConfigError(f"the authority is of '{authority.federation}'", why=f"the settings name the federation '{settings.federation}'")
        if (path / "ca" / KEY).exists():
            raise Conflict("there is a server here already", where=str(path), hint="start it with: fedscale server start")
        home = cls(path, authority or new_authority(settings.federation, now))
        ca_key, ca_certificate = home.authority.to_pems()
        try:
            for folder in (path, path / "ca", path / "server", home.profile):
                files.private_folder(folder)
            if not (path / FILE).exists() or load(path) != settings:
                files.write(path / FILE, settings.to_toml().encode())
            home._certify(settings, now)
            home._certify_operator(now)
            files.write(home.profile / AUTHORITY, ca_certificate)
            files.write(home.profile / ADDRESS, _line(settings.address).encode())
            files.write(path / "ca" / CERTIFICATE, ca_certificate)
            files.write(path / "ca" / KEY, ca_key)
        except OSError as error:
            raise ConfigError("the server's home cannot be written", where=str(path), why=error.strerror or type(error).__name__) from None
        return home

    @classmethod
    def load(cls, path: Path) -> Home:
        """Open a home.

        Raises:
            ConfigError: there is none, or its authority cannot be read.
        """
        if not (path / "ca" / KEY).exists():
            raise ConfigError("there is no server here", where=str(path), hint="make one with: fedscale server init")
        return cls(path, load_authority(path / "ca"))

    @contextmanager
    def locked(self) -> Iterator[str]:
        """The home's token, while it is sure that no other process uses the home; a crash frees it.

        Raises:
            Conflict: another one does.
            ConfigError: the home cannot be written.
        """
        path = self.path / TOKEN
        try:
            if not path.exists():
                files.write(path, secrets.token_hex(TOKEN_BYTES).encode())
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError("the server's home cannot be written", where=str(self.path), why=error.strerror or type(error).__name__) from None
        with os.fdopen(descriptor):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "stop it first, or use another --home"
                raise Conflict("a server is running in this home already", where=str(self.path), hint=hint) from None
            yield _read(path).decode()

    @property
    def profile(self) -> Path:
        """The operator's profile: key, certificate, the authority's certificate and the server's address."""
        return self.path / "admin"

    def server_pems(self) -> tuple[bytes, bytes]:
        """The server's private key and certificate, each in PEM.

        Raises:
            ConfigError: they cannot be read.
        """
        return _read(self.path / "server" / KEY), _read(self.path / "server" / CERTIFICATE)

    def refresh(self, settings: Settings, now: datetime) -> bool:
        """Renew what has used up two thirds of its life or no longer fits the settings; for the start and once a day.

        A profile that was moved away is not made again.

        Returns:
            Whether the server's certificate is new.

        Raises:
            ConfigError: the settings name another federation, a certificate cannot be read or made, or the clock is before the federation's time.
        """
        if settings.federation != self.authority.federation:
            why = f"this home is of '{self.authority.federation}'"
            raise ConfigError(f"the settings name the federation '{settings.federation}'", where=str(self.path / FILE), why=why)
        if now < (begins := self.authority.certificate.not_valid_before_utc):
            why = f"it says {now:%Y-%m-%d %H:%M} UTC, and the federation's authority is valid from {begins:%Y-%m-%d %H:%M} UTC"
            raise ConfigError("this machine's clock is wrong", where=str(self.path), why=why, hint="set it; until then nobody could connect")
        if (self.profile / CERTIFICATE).exists():
            if _due(load_certificate(_read(self.profile / CERTIFICATE)), now):
                self._certify_operator(now)
            if _read(self.profile / ADDRESS).decode().split()[:1] != [settings.address]:
                self.tell([settings.address])
        server = load_certificate(self.server_pems()[1])
        stale = _due(server, now) or _hosts_of(server) != {_canonical(host) for host in settings.hosts}
        if stale:
            self._certify(settings, now)
        return stale

    def tell(self, addresses: Sequence[str]) -> None:
        """Note in the operator's profile where the coordinators are, this one first; nothing in one that was moved away.

        Raises:
            OSError: it cannot be written.
        """
        if (self.profile / CERTIFICATE).exists():
            files.write(self.profile / ADDRESS, "".join(map(_line, addresses)).encode())

    def _certify(self, settings: Settings, now: datetime) -> None:
        """Give the server a new certificate for its key."""
        certificate = self.authority.issue_server(_own_key(self.path / "server").public_key(), settings.hosts, now, SERVER_DAYS)
        files.write(self.path / "server" / CERTIFICATE, certificate_pem(certificate))

    def _certify_operator(self, now: datetime) -> None:
        """Give the operator a new certificate for its key."""
        identity = Identity(self.authority.federation, Role.COORDINATOR, OPERATOR)
        request = new_request(_own_key(self.profile), OPERATOR)
        certificate = self.authority.issue(request, identity, now, OPERATOR_DAYS * 24)
        files.write(self.profile / CERTIFICATE, certificate_pem(certificate))


def exposed(home: Path) -> Path | None:
    """A file in a coordinator's home that proves something and that others on this machine can read."""
    paths = (path for folder in SECRETS for path in sorted((home / folder).glob("**/*")) if path.suffix != ".pem" or path.name == KEY)
    return next((path for path in paths if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077), None)


def closing(home: Path) -> str:
    """The command that lets only the owner in."""
    return f"chmod -R go= {shlex.quote(str(home))}"


def load_authority(folder: Path) -> Authority:
    """The authority whose key and certificate lie in a folder.

    Raises:
        ConfigError: they cannot be read.
    """
    return Authority.load(_read(folder / KEY), _read(folder / CERTIFICATE))


def _own_key(folder: Path) -> PrivateKey:
    """The key in a folder, made when there is none."""
    path = folder / KEY
    if not path.exists():
        files.write(path, key_pem(new_key()))
    return load_key(_read(path))


def _read(path: Path) -> bytes:
    """A file of the home."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("a file of the server's home cannot be read", where=str(path), why=error.strerror or type(error).__name__) from None


def _line(address: str) -> str:
    """A line of the profile's address file."""
    return f"{address}\n"


def _due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of a certificate's life are over."""
    until = certificate.not_valid_after_utc
    return now > until - (until - certificate.not_valid_before_utc) / 3


def _hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses in a server's certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def _canonical(host: str) -> str:
    """A host as ``_hosts_of`` gives it."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
