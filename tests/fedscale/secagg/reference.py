"""The masks of a round, written a second time from the description of the protocol, with nothing of ours but the inputs."""

from __future__ import annotations

import hashlib
import hmac
from itertools import pairwise
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PRIME = 2**256 - 189


def frame(label: str, *parts: bytes | int) -> bytes:
    fields = [b"fedscale/secagg/v1", label.encode(), *(p if isinstance(p, bytes) else p.to_bytes(8, "big") for p in parts)]
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def sha(label: str, *parts: bytes | int) -> bytes:
    return hashlib.sha256(frame(label, *parts)).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    key, block, out = hmac.digest(salt, secret, "sha256"), b"", b""
    for count in range(1, -(-size // 32) + 1):
        block = hmac.digest(key, block + info + bytes([count]), "sha256")
        out += block
    return out[:size]


def stream(key: bytes, count: int) -> list[int]:
    blocks = Cipher(algorithms.AES(key), modes.CTR((2).to_bytes(16, "big"))).encryptor().update(bytes(4 * count))
    return [int.from_bytes(blocks[at : at + 4], "little") for at in range(0, 4 * count, 4)]


def blob(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def shamir(points: dict[int, int]) -> int:
    total = 0
    for x, y in points.items():
        top, bottom = 1, 1
        for other in points:
            if other != x:
                top, bottom = top * other % PRIME, bottom * (other - x) % PRIME
        total += y * top * pow(bottom, -1, PRIME)
    return total % PRIME


class Reference:
    """Four nodes on the complete graph, all of whom shared."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.known, self.names = known, sorted(known["vectors"])
        self.number, self.everybody = 1, blob(b"\x0f")
        rows = [bytes.fromhex(keys)[5:] for keys in known["keys"]]
        self.curves = [row[8:40] for row in rows]
        columns = (b"".join(row[a:b] for row in rows) for a, b in pairwise((8, 40, 1224, 1288)))
        self.id = sha("session", sha("terms", bytes.fromhex(known["terms"])), self.everybody + b"".join(map(blob, columns)))
        self.drawn = [[bytes.fromhex(value) for value in known["drawn"][name]] for name in self.names]

    def pair_mask(self, low: int, high: int) -> bytes:
        text = bytes.fromhex(self.known["ciphertexts"][self.names[low]][str(high)])
        curve = X25519PrivateKey.from_private_bytes(self.drawn[low][0]).exchange(X25519PublicKey.from_public_bytes(self.curves[high]))
        secret = curve + MLKEM768PrivateKey.from_seed_bytes(self.drawn[high][1]).decapsulate(text)
        info = frame("pair", self.id, self.number, low, high, sha("ciphertext", text))
        return hkdf(secret, sha("stage", self.id, b"agreed", self.everybody), info, 96)[64:]

    def masked(self, seat: int) -> list[int]:
        words = list(self.known["vectors"][self.names[seat]])
        masks = [(hkdf(self.drawn[seat][2], self.id, frame("self mask", self.id, self.number, seat, seat), 32), 1)]
        masks += [(self.pair_mask(*sorted((seat, other))), 1 if seat < other else -1) for other in range(4) if other != seat]
        for key, sign in masks:
            words = [(word + sign * mask) % 2**32 for word, mask in zip(words, stream(key, len(words)), strict=True)]
        return words
