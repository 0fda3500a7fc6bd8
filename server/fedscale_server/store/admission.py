"""Who gets in: the rules for tickets and members, each applied inside one transaction of the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from sqlalchemy import update
from sqlmodel import Session, col

from fedscale.errors import Conflict, TicketError
from fedscale_server.store.tables import Member, Ticket

FRESH = "ask the coordinator for a new ticket"


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a node says when it connects: the datasets it offers, its release, and the identity key that it has proved to hold, if any."""

    name: str
    datasets: tuple[str, ...]
    version: str
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whoever comes with a ticket: which one, and the hashes of its secret and of the public key that is to be certified."""

    ticket: str
    secret_hash: str
    key: str


def known_ticket(session: Session, ticket_id: str, secret_hash: str) -> Ticket:
    """The ticket, used or not, for whoever knows its secret.

    Raises:
        TicketError: unknown, or another secret.
    """
    ticket = session.get(Ticket, ticket_id)
    if ticket is None:
        raise TicketError("the ticket is unknown", why="this server did not issue it", hint=FRESH)
    if not compare_digest(ticket.secret_hash.encode(), secret_hash.encode()):
        raise TicketError("the ticket's secret is wrong", hint=FRESH)
    return ticket


def _open_ticket(session: Session, bearer: Bearer, now: datetime) -> Ticket:
    """The ticket of a bearer who can still use it.

    One that was used is good once more for who used it and has never been seen: the reply may have been lost on its way.

    Raises:
        TicketError: unknown, another secret, used or expired.
    """
    ticket = known_ticket(session, bearer.ticket, bearer.secret_hash)
    if ticket.used_at is not None and not (ticket.used_key == bearer.key and _unseen(session, ticket)):
        raise _used(ticket)
    if ticket.expires_at <= now:
        raise TicketError("the ticket has expired", why=f"at {ticket.expires_at:%Y-%m-%d %H:%M} UTC", hint=FRESH)
    return ticket


def _unseen(session: Session, ticket: Ticket) -> bool:
    """Whether the member that a ticket has made is still the one it was and has not been there yet."""
    member = session.get(Member, ticket.used_by)
    return member is not None and (member.joined_at, member.last_seen, member.revoked_at) == (ticket.used_at, None, None)


def _used(ticket: Ticket) -> TicketError:
    return TicketError("the ticket was used before", why=f"by '{ticket.used_by}' at {ticket.used_at:%Y-%m-%d %H:%M} UTC", hint=FRESH)


def claim(session: Session, bearer: Bearer, name: str, now: datetime) -> tuple[Ticket, bool]:
    """Use a ticket up for ``name``: one compare-and-set, so that of any number of callers one wins.

    Returns:
        The ticket, and whether its bearer may take the place of a member of that name.

    Raises:
        TicketError: unknown, another secret, used, expired, or made out for another name.
    """
    ticket = _open_ticket(session, bearer, now)
    if ticket.used_by not in (None, name):
        raise _used(ticket)
    if ticket.name not in (None, name):
        raise TicketError("the ticket is made out for another name", why=f"for '{ticket.name}'", hint=f"join as '{ticket.name}'")
    again = name in (ticket.name, ticket.used_by)
    same = update(Ticket).where(col(Ticket.id) == ticket.id, col(Ticket.used_at) == ticket.used_at)
    if session.exec(same.values(used_at=now, used_by=name, used_key=bearer.key)).rowcount == 0:
        session.refresh(ticket)
        raise _used(ticket)
    return ticket, again


def enrol(session: Session, member: Member, *, again: bool) -> Member:
    """Enter a member.

    Args:
        session: the transaction.
        member: the new row.
        again: whether it may take the place of a member of the same name, role and project.

    Raises:
        Conflict: the name belongs to somebody else who is not revoked.
    """
    holder = session.get(Member, member.name)
    if holder is None:
        session.add(member)
        return member
    same = (holder.role, holder.project) == (member.role, member.project)
    if holder.revoked_at is None and not (same and again):
        hint = f"choose another name, or ask for a ticket made out for '{member.name}'" if same else "choose another name"
        raise Conflict(f"the name '{member.name}' is taken", why=f"by a {holder.role}", hint=hint)
    return session.merge(member)
