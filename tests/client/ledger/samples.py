"""Claims, caps and answers for the tests of the ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.privacy.events import Spend
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap, Claim, Parcel

DELTA = 1e-5
SPEND = Spend("gaussian", 4.0)
CLAIM = Claim("run-1", "train", 1, "heart", "heart", (SPEND,), "record", DELTA, "d" * 64, "e" * 64, "f" * 64, "testland at 127.0.0.1:1")
WIDE = Cap(1000.0, DELTA, "record")


def claim(number: int = 1, **changes: Any) -> Claim:
    return replace(CLAIM, number=number, **changes)


def parcel(content: str) -> Parcel:
    return Parcel(f"{content:0>64}", 8, (("w", (2,)),))


def home_at(folder: Path) -> NodeHome:
    return NodeHome(files.private_folder(folder))


def finish(ledger: Ledger, number: int, **changes: Any) -> int:
    """One task from beginning to end."""
    reservation = ledger.reserve(claim(number, **changes), None)
    ledger.release(reservation, parcel(str(number)))
    ledger.commit(reservation, "accepted")
    return reservation


@contextmanager
def opened_database(home: NodeHome) -> Iterator[sqlite3.Connection]:
    """The database without the rules that keep it from being changed."""
    with closing(sqlite3.connect(home.ledger / "ledger.db", isolation_level=None)) as connection:
        for rule in ("no_update", "no_delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {rule}")
        yield connection
