"""Whoever makes a request to one of our pages."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from fedscale.identity import Role, secret_hash


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever makes a request; without a name, nobody is logged in."""

    token: str
    name: str = ""
    role: Role | None = None

    @property
    def proof(self) -> str:
        """What a page of ours sends along with every request that changes something; no other site can know it."""
        return secret_hash(f"proof of {self.token}")


def new_token() -> str:
    """A token for a cookie, of 256 random bits."""
    return secrets.token_urlsafe(32)
