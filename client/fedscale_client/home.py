"""The folder of a node: its key, its certificate, what it is called, what it offers and what it keeps.

``key.pem`` ``cert.pem`` ``ca.pem`` prove who the node is, ``node.toml`` says where it belongs and ``servers`` where else to
ask, ``datasets.toml`` what it offers and ``policy.toml`` what it allows; ``ledger/`` and ``ledger.head`` say what has left
it, ``cache/`` holds what can be fetched again and ``log/`` what must not leave the site. Everything is readable by its
owner only.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscale import files
from fedscale.errors import ConfigError, Conflict

ADDRESS, MOST_SERVERS = r"[^\s]+:[0-9]{1,5}", 16
JOIN = "join with a ticket from the coordinator: fedscale node join TICKET"
# A question whether the home is held takes a moment of its lock; a node that starts then has only to wait for it.
START_SECONDS, LOOK_SECONDS = 1.0, 0.02
Model = TypeVar("Model", bound=BaseModel)


class NodeSettings(BaseModel):
    """The file ``node.toml``.

    Args:
        name: what the federation calls this node.
        federation: the federation it belongs to.
        project: the project it takes part in.
        address: ``host:port`` of the server.
        server_name: a name in the server's certificate, where ``address`` is not one of them.
        cache_bytes: most bytes of models and bundles kept.
        workers: most worker processes, at work or kept warm.
        rate_limit: most bytes a second sent and received in bulk; 0 for no limit.
        quiet_hours: ``HH:MM-HH:MM`` in the site's own time, when nothing is sent or received in bulk; empty for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    federation: str
    project: str
    address: str = Field(pattern=f"^{ADDRESS}$")
    server_name: str = ""
    cache_bytes: int = Field(8 << 30, ge=1 << 20)
    workers: int = Field(2, ge=1, le=64)
    rate_limit: int = Field(0, ge=0)
    quiet_hours: str = Field("", pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$")


@dataclass(frozen=True, slots=True)
class NodeHome:
    """The folder of one node; nothing is read before it is asked for."""

    path: Path

    @property
    def key_file(self) -> Path:
        """The private key; it never leaves this folder."""
        return self.path / "key.pem"

    @property
    def joining_file(self) -> Path:
        """The private key of a node that has not yet seen its certificate: the ticket may be used up, for this key only."""
        return self.path / "joining.pem"

    @property
    def certificate_file(self) -> Path:
        """The node's certificate."""
        return self.path / "cert.pem"

    @property
    def authority_file(self) -> Path:
        """The certificate of the federation's authority."""
        return self.path / "ca.pem"

    @property
    def settings_file(self) -> Path:
        """``node.toml``; written last, so its presence means that the node has joined."""
        return self.path / "node.toml"

    @property
    def servers_file(self) -> Path:
        """The addresses of all coordinators of the federation, one a line; absent where there is one."""
        return self.path / "servers"

    @property
    def datasets_file(self) -> Path:
        """``datasets.toml``; absent until the first dataset is declared."""
        return self.path / "datasets.toml"

    @property
    def policy_file(self) -> Path:
        """``policy.toml``; absent until the site sets a limit."""
        return self.path / "policy.toml"

    @property
    def ledger(self) -> Path:
        """The privacy ledger and its key; must never be deleted, rolled back or copied to another node."""
        return self.path / "ledger"

    @property
    def ledger_head(self) -> Path:
        """Where the ledger ends, kept apart from it."""
        return self.path / "ledger.head"

    @property
    def identity_file(self) -> Path:
        """The identity key for secure aggregation; other sites know this node by it, so it outlives certificates."""
        return self.path / "identity.pem"

    @property
    def secagg(self) -> Path:
        """What secure aggregation must remember: the identity keys of other sites, and how far this one has gone in each run."""
        return self.path / "secagg"

    @property
    def cache(self) -> Path:
        """Models, bundles and answers, and what apps of led runs remember; may be deleted while the node is down and no such run goes on."""
        return self.path / "cache"

    @property
    def log_file(self) -> Path:
        """What apps print and their full error messages: for the site's eyes only."""
        return self.path / "log" / "worker.log"

    def settings(self) -> NodeSettings:
        """Read ``node.toml``.

        Raises:
            ConfigError: the node has not joined, or the file is not valid.
        """
        if not self.settings_file.exists():
            raise ConfigError("this node has not joined a federation", where=str(self.path), hint=JOIN)
        return parse(NodeSettings, read_toml(self.settings_file), str(self.settings_file))

    def servers(self) -> tuple[NodeSettings, ...]:
        """The settings for each coordinator, any of which may lead; that of ``node.toml`` first.

        Raises:
            ConfigError: the node has not joined, or a file is not valid.
        """
        own, file = self.settings(), self.servers_file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        others = (parse(NodeSettings, {**own.model_dump(), "address": line, "server_name": ""}, str(file)) for line in lines if line != own.address)
        return own, *others

    def remember(self, addresses: Iterable[str]) -> None:
        """Keep what a coordinator says of where the others are; what cannot be an address is left out."""
        told = [address for address in addresses if re.fullmatch(ADDRESS, address)][:MOST_SERVERS]
        text = "".join(f"{address}\n" for address in told)
        if told and not (self.servers_file.exists() and self.servers_file.read_text(encoding="utf-8") == text):
            files.write(self.servers_file, text.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make sure that no other process uses this home; a crash frees it.

        Raises:
            Conflict: another one does.
        """
        taken = Conflict("a node is running in this home already", where=str(self.path), hint="stop it first, or use another --home")
        with exclusive(self.path / "lock", START_SECONDS, taken):
            yield

    def is_held(self) -> bool:
        """Whether a process uses this home; any number may ask at once, those too who may only read it."""
        try:
            with (self.path / "lock").open("rb") as file:
                return not _flocked(file.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False


@contextmanager
def open_private(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of a file that is made with mode 0600 if need be."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, seconds: float, busy: Conflict) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be, against all other processes and threads; a crash frees it.

    Args:
        path: the file.
        seconds: how long to wait for it.
        busy: raised when somebody else has it all that time.
    """
    with open_private(path) as descriptor:
        deadline = time.monotonic() + seconds
        while not _flocked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(LOOK_SECONDS)
        yield


def _flocked(descriptor: int, kind: int) -> bool:
    """Whether a lock could be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_toml(path: Path, tree: Mapping[str, object]) -> None:
    """Replace a TOML file."""
    files.write(path, tomli_w.dumps(tree).encode())


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file.

    Raises:
        ConfigError: unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("a file cannot be read", where=str(path), why=error.strerror or "") from None
    except ValueError as error:
        raise ConfigError("not valid TOML", where=str(path), why=str(error)) from None


def parse(model: type[Model], tree: object, where: str) -> Model:
    """Validate settings.

    Raises:
        ConfigError: with the first problem.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}: {message}" if name else message, where=where, hint=f"known: {', '.join(model.model_fields)}") from None
