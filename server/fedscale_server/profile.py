"""Whom a command calls, and as whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedscale.errors import ConfigError


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
    """

    folder: Path
    address: str
    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes
    others: tuple[str, ...] = ()

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
        return cls(folder, first, key, certificate, authority, tuple(others))
