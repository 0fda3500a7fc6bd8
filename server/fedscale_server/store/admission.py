"""Who gets in: the rules for tickets and members, each applied inside one transaction of the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest

from sqlalchemy import or_, update
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


def open_ticket(session: Session, ticket_id: str, secret_hash: str, now: datetime) -> Ticket:
    """The ticket, if somebody who knows its secret can still use it.

    Raises:
        TicketError: unknown, another secret, used or expired.
    """
    ticket = session.get(Ticket, ticket_id)
    if ticket is None:
        raise TicketError("the ticket is unknown", why="this server did not issue it", hint=FRESH)
    if not compare_digest(ticket.secret_hash.encode(), secret_hash.encode()):
        raise TicketError("the ticket's secret is wrong", hint=FRESH)
    if ticket.used_at is not None:
        raise TicketError("the ticket was used before", why=f"by '{ticket.used_by}' at {ticket.used_at:%Y-%m-%d %H:%M} UTC", hint=FRESH)
    if ticket.expires_at <= now:
        raise TicketError("the ticket has expired", why=f"at {ticket.expires_at:%Y-%m-%d %H:%M} UTC", hint=FRESH)
    return ticket


def claim(session: Session, ticket_id: str, secret_hash: str, name: str, now: datetime) -> Ticket:
    """Use the ticket up for ``name``: one compare-and-set, so that of any number of callers one wins.

    Raises:
        TicketError: as ``open_ticket``, or made out for another name.
    """
    unused = update(Ticket).where(
        col(Ticket.id) == ticket_id,
        col(Ticket.secret_hash) == secret_hash,
        col(Ticket.used_at).is_(None),
        col(Ticket.expires_at) > now,
        or_(col(Ticket.name).is_(None), col(Ticket.name) == name),
    )
    if session.exec(unused.values(used_at=now, used_by=name)).rowcount == 0:
        ticket = open_ticket(session, ticket_id, secret_hash, now)
        raise TicketError("the ticket is made out for another name", why=f"for '{ticket.name}'", hint=f"join as '{ticket.name}'")
    return session.get_one(Ticket, ticket_id)


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
