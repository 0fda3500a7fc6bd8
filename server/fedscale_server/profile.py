"""Whom a command calls, and as whom."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedscale.errors import ConfigError

LOOPBACK = "127.0.0.1"
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - how such an address is dialled, not listened at


@dataclass(frozen=True, slots=True)
class Profile:
    """Who calls and whom: the folder that ``fedscale server init`` leaves for its operator.

    Args:
        folder: where it lies.
        address: ``host:port`` of the coordinator.
        key: private key, PEM.
        certificate: the caller's certificate, PEM.
        authority: the certificate of the authority that the coordinator must prove, PEM.
        others: addresses of other coordinators of the federation, any of which may lead.
        nearby: where the coordinator is dialled from its own machine, where its name may mean nothing or lead out and not back in.
    """

    folder: Path
    address: str
    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes
    others: tuple[str, ...] = ()
    nearby: str = ""

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """Read a profile; by default that of a coordinator in this folder, else the one in the home directory.

        Raises:
            ConfigError: there is none, or a part of it is missing.
        """
        here = Path("fedscale-server", "admin")
        folder = folder or (here if here.is_dir() else Path("~/.fedscale/admin").expanduser())
        try:
            key, certificate, authority, address = ((folder / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem", "address"))
        except OSError as error:
            why, hint = error.strerror or "", "name it with --profile, or make a coordinator with: fedscale server init"
            raise ConfigError("there is no profile to call a coordinator with", where=str(error.filename), why=why, hint=hint) from None
        first, *others = address.decode(errors="replace").split() or [""]
        return cls(folder, first, key, certificate, authority, tuple(others), _nearby(folder, first))


def _nearby(folder: Path, address: str) -> str:
    """The coordinator's address on this machine, for a profile that lies in its home; empty for one that was moved away."""
    try:
        listens = str(tomllib.loads((folder.absolute().parent / "server.toml").read_text("utf-8")).get("host", LOOPBACK))
    except (OSError, ValueError):
        return ""
    host = EVERYWHERE.get(listens, listens)
    return f"[{host}]:{address.rpartition(':')[2]}" if ":" in host else f"{host}:{address.rpartition(':')[2]}"
