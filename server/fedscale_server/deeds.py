"""Deeds: what a line of the audit trail says, and whether it can stand where it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from fedscale.errors import ConfigError

CONTEXT = b"fedscale/audit/v1\0"
ORIGIN = hashlib.sha256(CONTEXT).hexdigest()
LOOK = "look at it: fedscale audit verify"
Head: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Deed:
    """One line.

    Args:
        seq: its number, from 1.
        at: when, in ISO 8601.
        who: the account, the certificate's name, or ``system user NAME`` at the command line.
        door: by which it came in: ``dashboard``, ``certificate`` or ``command line``.
        action: what was done, such as ``run submitted``.
        target: to what.
        facts: what belongs to it; never a secret.
        previous: SHA-256 of the line before.
        digest: of this one.
    """

    seq: int
    at: str
    who: str
    door: str
    action: str
    target: str
    facts: Mapping[str, Any]
    previous: str
    digest: str

    def hashed(self) -> str:
        """The digest that everything it says comes to."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "digest"}
        return hashlib.sha256(CONTEXT + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def head_of(text: str, where: str = "--head") -> Head:
    """Read ``NUMBER:HASH``.

    Raises:
        ConfigError: anything else.
    """
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(digest) == 64):
        raise ConfigError("the end of an audit trail is written NUMBER:HASH", where=where, hint="as 'fedscale audit verify' prints it")
    return int(number), digest


def line_of(deed: Deed) -> bytes:
    """A deed as it is written."""
    return json.dumps(asdict(deed), separators=(",", ":")).encode() + b"\n"


def deed_of(line: bytes, number: int, path: Path) -> Deed:
    """Read one line.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Deed(**json.loads(line))
    except (ValueError, TypeError):
        where = f"{path}:{number}" if number else str(path)
        raise ConfigError("this is no line of an audit trail", where=where, hint=LOOK) from None


def flaw(deed: Deed, last: Head) -> str:
    """Why a line cannot stand behind the last one; empty when it can."""
    if deed.seq != last[0] + 1:
        return f"line {last[0] + 1} is missing or stands elsewhere"
    if deed.digest != deed.hashed():
        return f"line {deed.seq} was edited"
    return "" if deed.previous == last[1] else f"line {deed.seq} does not follow the one before it"


def other(deed: Deed, heads: Iterable[Head]) -> str:
    """That a line is not the one that was noted under its number; empty when it is."""
    return next((f"line {deed.seq} is another than the one that was noted" for head in heads if head[0] == deed.seq and head[1] != deed.digest), "")
