"""Values that the tests of the server share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fedscale.identity import Role, secret_hash
from fedscale_server.store.admission import Bearer
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Member, RunRow, Ticket

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
SECRET, KEY = "only-for-tests", "key-1"


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def add_ticket(store: Store, ticket_id: str = "t1", **values: Any) -> Ticket:
    """An open ticket for a node of project ``ward``, with changes."""
    row = {"project": "ward", "role": Role.NODE, "secret_hash": secret_hash(SECRET), "expires_at": later(60), **values}
    store.add_ticket(Ticket(id=ticket_id, **row))
    return store.ticket(ticket_id, row["secret_hash"])


def redeem(
    store: Store, name: str = "alpha", at: datetime = NOW, ticket: str = "t1", secret: str = SECRET, key: str = KEY, serial: str = "5e"
) -> Member:
    """Use that ticket, by default the one that ``add_ticket`` makes."""
    return store.redeem(Bearer(ticket, secret_hash(secret), key), name, serial, later(86_400), at)


def add_member(store: Store, name: str = "alpha", **values: Any) -> Member:
    """A node of project ``ward``, with changes."""
    facts = {"project": "ward", "role": Role.NODE, "serial": "5e", "expires_at": later(86_400), "now": NOW, **values}
    return store.enrol(name, **facts)


def add_run(store: Store, run: str = "sepsis-0a1b2c", **values: Any) -> RunRow:
    """A run of project ``ward`` that was just submitted, with changes."""
    facts = {"project": "ward", "name": "sepsis", "plan": "[job]", "plan_hash": "aa", "bundle": "bb", "key": "", "now": NOW, **values}
    return store.create_run(run, **facts)
