"""A node's key and certificates, as they lie in its home."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from fedscale.errors import AccessDenied, ConfigError
from fedscale.identity import load_certificate, load_key
from fedscale_client.home import JOIN, NodeHome


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves a node to the server and the server to the node, each in PEM."""

    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes

    @classmethod
    def of(cls, home: NodeHome) -> Credentials:
        """Read key and certificates.

        Raises:
            ConfigError: one of them cannot be read.
        """
        try:
            return cls(home.key_file.read_bytes(), home.certificate_file.read_bytes(), home.authority_file.read_bytes())
        except OSError as error:
            raise ConfigError("the node's certificate cannot be read", where=str(error.filename), why=error.strerror or "", hint=JOIN) from None

    def expires(self) -> datetime:
        """When the node's certificate ends."""
        return load_certificate(self.certificate).not_valid_after_utc

    def renewable(self) -> datetime:
        """Half of the certificate's life: from then on a new one is asked for."""
        certificate = load_certificate(self.certificate)
        return certificate.not_valid_before_utc + (certificate.not_valid_after_utc - certificate.not_valid_before_utc) / 2

    def check(self, now: datetime) -> None:
        """Refuse what no server would accept.

        Raises:
            ConfigError: unreadable, or key and certificate do not belong together.
            AccessDenied: the certificate has expired.
        """
        certificate = load_certificate(self.certificate)
        if load_key(self.key).public_key() != certificate.public_key():
            raise ConfigError("the node's key does not belong to its certificate", hint=JOIN)
        if certificate.not_valid_after_utc <= now:
            why = f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
            raise AccessDenied("the node's certificate has expired", why=why, hint=f"if the clock is right, ask for a new ticket and {JOIN}")
