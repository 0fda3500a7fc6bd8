"""How a supernode proves who it is: the time of day, signed with its key. Without TLS whoever hears it can say it again.

Source: flwr, ``node_auth_http_interceptor`` and ``node_auth_client_interceptor``.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedscale.errors import AccessDenied, ConfigError

KEY, SIGNATURE, TIME = "flwr-public-key", "flwr-signature", "flwr-timestamp"
BINARY = "-bin"
AHEAD, BEHIND = -5.0, 305.0


def of_headers(headers: Any) -> dict[str, bytes]:
    """What a request over HTTP brings: time, key and signature."""
    found = {TIME: headers.get(TIME, "").encode()}
    for name in (KEY, SIGNATURE):
        try:
            found[name] = b64decode(headers.get(name, ""), validate=True)
        except ValueError:
            raise AccessDenied("a supernode's signature cannot be read") from None
    return found


def of_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, bytes]:
    """What a call over gRPC brings: time, key and signature."""
    pairs = {name.removesuffix(BINARY): value.encode() if isinstance(value, str) else value for name, value in metadata}
    return {name: pairs.get(name, b"") for name in (TIME, KEY, SIGNATURE)}


class Check:
    """Tells whose signature it is.

    Args:
        known: public keys, in PEM; nobody else is let in where there are any.
    """

    def __init__(self, known: frozenset[bytes]) -> None:
        self._known = known

    def __call__(self, signed: Mapping[str, bytes]) -> bytes:
        """The public key, as its holder sent it.

        Raises:
            AccessDenied: there is no signature, it is not of that key, it is too old, or the key is not known.
        """
        try:
            key = _loaded(signed[KEY])
            age = (datetime.now(UTC) - datetime.fromisoformat(signed[TIME].decode("ascii"))).total_seconds()
            key.verify(signed[SIGNATURE], signed[TIME], ec.ECDSA(hashes.SHA256()))
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise AccessDenied("a supernode's signature is not valid", why=type(error).__name__) from None
        if not AHEAD < age < BEHIND:
            raise AccessDenied("a supernode's signature is not of this time", hint="set the clocks")
        if self._known and _pem(key) not in self._known:
            raise AccessDenied("a supernode's key is not known here", hint="give its file with keys=")
        return signed[KEY]


def read(path: Path) -> bytes:
    """A public key of a file, in PEM.

    Raises:
        ConfigError: it cannot be read, or is none of an elliptic curve.
    """
    try:
        return _pem(_loaded(path.read_bytes()))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("a supernode's public key cannot be read", where=str(path), why=type(error).__name__) from None


def _loaded(content: bytes) -> ec.EllipticCurvePublicKey:
    """A key in PEM or in OpenSSH's form; ValueError for any other."""
    key = load_pem_public_key(content) if content.lstrip().startswith(b"-----") else load_ssh_public_key(content)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not a key of an elliptic curve")
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
