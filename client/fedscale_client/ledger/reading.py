"""The ledger for those who only look: every line is verified, nothing is written, and no database library is loaded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import fields
from urllib.parse import quote

from fedscale.errors import ConfigError
from fedscale_client.home import NodeHome
from fedscale_client.keys import identity_key
from fedscale_client.ledger.chain import Signer, flaw
from fedscale_client.ledger.head import LOOK, Head, HeadFile
from fedscale_client.ledger.lines import Line
from fedscale_client.ledger.state import Item, State

COLUMNS = ", ".join(each.name for each in fields(Line))
BUSY_SECONDS = 120


def lines(home: NodeHome) -> tuple[Line, ...]:
    """All entries as they are stored, unverified; none before there is a ledger.

    Raises:
        ConfigError: the database is damaged, gone, or busy for minutes.
    """
    path = home.ledger / "ledger.db"
    if not home.ledger.exists():
        return ()
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
            return tuple(Line(*row) for row in connection.execute(f"SELECT {COLUMNS} FROM entry ORDER BY seq"))  # noqa: S608 - names of a class
    except sqlite3.Error as error:
        raise ConfigError("the privacy ledger of this site cannot be used", where=str(path), why=str(error), hint=LOOK) from None


def items(home: NodeHome) -> tuple[Item, ...]:
    """All reservations with what became of them, in their order; none before there is a ledger.

    Raises:
        ConfigError: the ledger does not verify.
    """
    problem, state = _verified(home)
    if problem:
        raise ConfigError("the privacy ledger of this site cannot be used", where=str(home.ledger / "ledger.db"), why=problem, hint=LOOK)
    return tuple(state.items.values())


def verify(home: NodeHome, known: Head | None = None) -> tuple[str, Head]:
    """The first thing that is wrong with the ledger, empty when nothing is, and where it ends.

    Args:
        home: whose ledger.
        known: an end that was noted elsewhere and that this ledger must contain.
    """
    try:
        problem, state = _verified(home, known)
    except ConfigError as error:
        return error.why, Head(0, "")
    return problem, Head(*state.last)


def _verified(home: NodeHome, known: Head | None = None) -> tuple[str, State]:
    """The first problem and what the lines before it come to."""
    signer = Signer(identity_key(home))
    state = State((0, signer.origin))
    if not home.ledger.exists():
        return "", state
    # The head first: what is added while the lines are read makes them longer than it says, never shorter.
    head = HeadFile(home.ledger_head, signer).read()
    path = home.ledger / "ledger.db"
    if head and head.seq == 0 and (not path.exists() or path.stat().st_size == 0):
        return "", state  # whoever began it was stopped before the first entry
    stored = lines(home)
    for line in stored:
        if problem := flaw(signer, state.last, line) or state.take(line):
            return problem, state
    if head is None:
        return "the head is gone or was changed", state
    return next(filter(None, (missed(stored, signer, end) for end in (head, known) if end)), ""), state


def missed(stored: Iterable[Line], signer: Signer, known: Head) -> str:
    """What is wrong when these lines should have an entry; empty when they have it."""
    if known.seq == 0:
        return "" if known.digest == signer.origin else "the head is that of another ledger"
    return known.misfit(next((line.digest for line in stored if line.seq == known.seq), None))
