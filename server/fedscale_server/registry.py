"""Registry: hands out tickets, turns them into certificates, and knows at every call who is in and who is out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509

from fedscale.clock import Clock
from fedscale.errors import AccessDenied, ConfigError, FedscaleError, NotFound
from fedscale.identity import (
    SKEW,
    Authority,
    Identity,
    Role,
    Ticket,
    certificate_pem,
    identity_of,
    load_certificate,
    new_ticket,
    requested_key,
    secret_hash,
    serial_of,
    spki_hash,
    valid_name,
)
from fedscale_server.home import OPERATOR, OPERATOR_DAYS
from fedscale_server.store import tables
from fedscale_server.store.admission import Arrival, Bearer
from fedscale_server.store.store import Note, Store

LONGEST_TICKET = timedelta(days=30)
NODE_HOURS = 24  # a node renews by itself at half of it
PERSON_HOURS = 30 * 24  # nobody renews a person's certificate while they are away


class Registry:
    """Members of one federation.

    Args:
        store: where tickets and members are kept.
        authority: signs certificates.
        clock: tells when something expires.
    """

    def __init__(self, store: Store, authority: Authority, clock: Clock) -> None:
        self.authority = authority
        self._store, self._clock = store, clock
        self._federation = authority.federation
        self._turn = threading.Lock()
        self._members: dict[str, tables.Member] = {}
        if not store.stands_by:
            self.open()

    def open(self) -> None:
        """Learn who is in, from now on the only one who changes it; the operator is from the beginning."""
        if self._store.member(OPERATOR) is None:
            born = self.authority.certificate.not_valid_before_utc
            self._store.enrol(OPERATOR, "", Role.COORDINATOR, "", born + timedelta(days=OPERATOR_DAYS), born)
        with self._turn:
            self._members = {member.name: member for member in self._store.members()}

    # -------------------------------------------------------------------------------------------------------- enrolment

    def invite(self, project: str, name: str | None, role: str, ttl: float, address: str, note: Note = lambda: None) -> Ticket:
        """A ticket for one new member, or for one that has lost its key.

        Args:
            project: what it joins.
            name: whom the ticket is made out for; ``None`` lets the bearer choose.
            role: what the bearer will be.
            ttl: for how many seconds it can be used.
            address: ``host:port`` of the enrolment port.
            note: told before the ticket is good for anything; what it raises prevents that.

        Raises:
            NotFound: no such project.
            ConfigError: the name, role or time is not valid.
            TicketError: the address is not ``host:port``.
        """
        if role not in set(Role):
            raise ConfigError(f"no role '{role}'", hint=f"use one of {', '.join(Role)}")
        if not 0 < ttl <= LONGEST_TICKET.total_seconds():
            raise ConfigError("a ticket cannot be valid for that long", why=f"it must expire, within {LONGEST_TICKET.days} days")
        ticket = new_ticket(address, spki_hash(self.authority.key.public_key()))
        until = self._clock.now() + timedelta(seconds=ttl)
        made_out = valid_name(name) if name else None
        row = tables.Ticket(id=ticket.id, secret_hash=secret_hash(ticket.secret), project=project, role=role, name=made_out, expires_at=until)
        self._store.add_ticket(row, note)
        return ticket

    def join(
        self, ticket_id: str, secret: str, name: str, csr_pem: bytes, note: Callable[[tables.Member], object] = lambda _: None
    ) -> tuple[bytes, tables.Member]:
        """Trade a ticket for a certificate. Nothing is used up unless all of it succeeds; whose reply was lost may ask again with the same key.

        Args:
            ticket_id: which ticket.
            secret: its secret.
            name: the wanted name; may be empty when the ticket is made out for one.
            csr_pem: certificate request, signed by the new member's key.
            note: told of the member before anything is used up for good; what it raises prevents that.

        Returns:
            The certificate in PEM and the member.

        Raises:
            TicketError: unknown, wrong secret, used, expired, or made out for another name.
            ConfigError: the name is not valid.
            ProtocolError: the request is malformed.
            Conflict: the name is taken.
        """
        now, digest = self._clock.now(), secret_hash(secret)
        ticket = self._store.ticket(ticket_id, digest)  # of whoever has none nothing more is read
        bearer = Bearer(ticket_id, digest, spki_hash(requested_key(csr_pem)))
        name = valid_name(name or ticket.name or "")
        certificate = self._issue(Identity(self._federation, Role(ticket.role), name), csr_pem, now)
        member = self._store.redeem(bearer, name, serial_of(certificate), certificate.not_valid_after_utc, now, note)
        self._refresh(name)
        return certificate_pem(certificate), member

    def renew(self, identity: Identity, csr_pem: bytes) -> bytes:
        """A fresh certificate for a member, in PEM.

        Raises:
            AccessDenied: not a member, or revoked.
            ProtocolError: the request is malformed.
        """
        self.check(identity)
        certificate = self._issue(identity, csr_pem, self._clock.now())
        self._store.renewed(identity.name, serial_of(certificate), certificate.not_valid_after_utc)
        return certificate_pem(certificate)

    def _issue(self, identity: Identity, csr_pem: bytes, now: datetime) -> x509.Certificate:
        """A certificate as long-lived as the role allows."""
        hours = NODE_HOURS if identity.role is Role.NODE else PERSON_HOURS
        return self.authority.issue(csr_pem, identity, now, hours)

    # --------------------------------------------------------------------------------------------------------- who is in

    def admit(self, cert_pem: bytes) -> Identity:
        """Whom a certificate names, if it still speaks for them: one from before its member joined again does not.

        TLS has checked already that the federation's authority issued it.

        Raises:
            AccessDenied: malformed, replaced, or as ``check``.
        """
        identity = identity_of(cert_pem)
        member = self.check(identity)
        issued = load_certificate(cert_pem, AccessDenied).not_valid_before_utc + SKEW
        if issued < member.joined_at.replace(microsecond=0):
            raise AccessDenied(f"this certificate of '{identity.name}' was replaced", why="its member has joined again since")
        return identity

    def check(self, identity: Identity) -> tables.Member:
        """The member behind an identity; from memory, so it may be asked at every call.

        Raises:
            AccessDenied: not a member of this federation in this role, or revoked.
        """
        member = self._members.get(identity.name) or self._refresh(identity.name)
        if member is None or (identity.federation, identity.role) != (self._federation, member.role):
            raise AccessDenied(f"'{identity.uri}' is not a member", hint="join with a ticket from the coordinator")
        if member.revoked_at is not None:
            raise AccessDenied(f"'{identity.name}' was revoked", why=f"at {member.revoked_at:%Y-%m-%d %H:%M} UTC", hint="ask the coordinator")
        return member

    def member(self, name: str) -> tables.Member:
        """A member as the database has it now, revoked or not.

        Raises:
            NotFound: there is none.
        """
        member = self._refresh(name)
        if member is None:
            raise NotFound(f"no member '{name}'")
        return member

    def seen(self, arrivals: Sequence[Arrival]) -> list[tables.Member | FedscaleError]:
        """Note of nodes that have connected what each offers, and the identity key that it has proved to hold.

        Returns:
            For each the member as it is now, or why it is not let in: it had another key before, another has this one, or nobody is called so.
        """
        with self._turn:
            # From memory: to read everybody at every arrival would cost the square of a federation that comes back at once.
            keys = {name: member.identity for name, member in self._members.items() if member.identity}
            holders = {key: name for name, key in keys.items()}
            faults = [_claim(each, keys, holders) for each in arrivals]
            found = self._store.seen([each for each, fault in zip(arrivals, faults, strict=True) if not fault], self._clock.now())
            self._members |= found
        return [fault or found.get(each.name) or NotFound(f"no member '{each.name}'") for each, fault in zip(arrivals, faults, strict=True)]

    def revoke(self, name: str, note: Note = lambda: None) -> None:
        """Shut a member out, from the next call on, unless ``note`` raises; streams that are open are the caller's to close.

        Raises:
            NotFound: no such member.
        """
        self._store.revoke(name, self._clock.now(), note)
        self._refresh(name)

    def _refresh(self, name: str) -> tables.Member | None:
        """Read one member again; under a lock, so that an older answer never takes the place of a newer one."""
        with self._turn:
            member = self._store.member(name)
            if member is not None:
                self._members[name] = member
            return member


def _claim(arrival: Arrival, keys: dict[str, str], holders: dict[str, str]) -> AccessDenied | None:
    """Enter a member's identity key, if it has one, among those of all; why that cannot be."""
    name, key = arrival.name, arrival.identity
    if key and holders.setdefault(key, name) != name:
        return AccessDenied(f"the identity key of '{name}' is that of another member", hint="give each node a home of its own")
    if key and keys.setdefault(name, key) != key:
        why = "whoever joins again may bring a new one"
        return AccessDenied(f"'{name}' was known by another identity key", why=why, hint="bring identity.pem back, or ask for a new ticket")
    return None
