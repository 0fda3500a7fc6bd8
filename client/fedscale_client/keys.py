"""The identity key of a node, which signs its ledger and by which other sites know it."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from fedscale import files
from fedscale.errors import ConfigError
from fedscale_client.home import NodeHome


def identity_key(home: NodeHome) -> Ed25519PrivateKey:
    """The identity key of a node, made when there is none yet.

    Raises:
        ConfigError: it cannot be read or made.
    """
    file = home.identity_file
    try:
        if not file.exists():
            fresh = Ed25519PrivateKey.generate()
            files.write(file, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("the node's identity key cannot be read", where=str(file), why=type(error).__name__) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("the node's identity key is of another kind", where=str(file))
    return key
