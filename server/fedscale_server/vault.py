"""The key under which the answers of a round lie on disk; it is destroyed with the round, and they cannot be read any more.

Each file has a key stream of its own: AES-256 in counter mode under HMAC-SHA-256 of the round's key and the file's name.
It begins anywhere, so an upload can be resumed. That an answer is whole and right is not the cipher's business: everything
here is known by the SHA-256 of what it says.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from fedscale import files
from fedscale.errors import NotFound
from fedscale_server.store.depot import Shelf

KEY_BYTES, BLOCK = 32, 16
KEY = "round.key"


class Vault:
    """The key of the round that is open.

    Args:
        path: the key's file.
        lasting: whether the key survives the process; one that does not is never written down.
        shelf: where other servers find it as ``KEY``; ``None`` where it is nobody else's business.
    """

    def __init__(self, path: Path, *, lasting: bool = True, shelf: Shelf | None = None) -> None:
        self._path, self._lasting, self._shelf = path, lasting, shelf
        self._secret = bytearray(path.read_bytes()) if lasting and path.exists() else bytearray()
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether there is a key, so that what is on disk can be read."""
        return bool(self._secret)

    def writing(self, name: str) -> CipherContext:
        """The key stream of a file from its beginning; the round's first one makes the key."""
        with self._lock:
            if not self._secret:
                secret = bytearray(secrets.token_bytes(KEY_BYTES))
                if self._lasting:
                    files.write(self._path, memoryview(secret))
                if self._shelf:
                    self._shelf.put(KEY, self._path)
                # Only now: a key that could not be written down would open nothing after a crash.
                self._secret = secret
        return self.reading(name)

    def reading(self, name: str, block: int = 0) -> CipherContext:
        """The key stream of a file that was written before, from a block of 16 bytes on.

        Raises:
            NotFound: its key is gone.
        """
        with self._lock:
            if not self._secret:
                raise NotFound("the key of an answer is gone", where=name)
            secret = hmac.digest(self._secret, name.encode(), "sha256")
        return Cipher(algorithms.AES256(secret), modes.CTR(block.to_bytes(BLOCK, "big"))).encryptor()

    def destroy(self) -> None:
        """Forget the key, on disk and in memory."""
        with self._lock:
            self._secret[:] = bytes(len(self._secret))
            self._secret = bytearray()
            if self._shelf:
                self._shelf.delete(KEY)
            for draft in self._path.parent.glob(f".{self._path.name}.*"):  # left by a crash while a key was written down
                draft.unlink(missing_ok=True)
            if not self._path.exists():
                return
            with self._path.open("r+b") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            self._path.unlink()
            files.sync(self._path.parent)
