"""Registry: one ticket lets one member in, once; a member that is shut out is out at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Event

import pytest
from cryptography import x509

from fedscale import identity
from fedscale.clock import ManualClock
from fedscale.errors import AccessDenied, ConfigError, Conflict, FedscaleError, NotFound, ProtocolError, TicketError
from fedscale.identity import Authority, Identity, Role, Ticket
from fedscale_server import home, settings
from fedscale_server.registry import Registry
from fedscale_server.store.admission import Arrival
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Member
from tests.server.samples import NOW, later

ADDRESS = "fl.example.org:8471"
KEY = identity.new_key()
REQUEST = identity.new_request(KEY, "anybody")
DAY = 86_400.0
ALPHA = Identity("fedscale", Role.NODE, "alpha")
ADMIN = Identity("fedscale", Role.COORDINATOR, "admin")
RACERS = 64


@pytest.fixture(scope="module")
def authority() -> Authority:
    return identity.new_authority("fedscale", NOW)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(later(1))


@pytest.fixture
def registry(store: Store, authority: Authority, clock: ManualClock) -> Registry:
    return Registry(store, authority, clock)


def invite(registry: Registry, name: str | None = None, role: Role = Role.NODE, ttl: float = DAY) -> Ticket:
    return registry.invite("ward", name, role, ttl, ADDRESS)


def join(registry: Registry, ticket: Ticket, name: str = "alpha") -> bytes:
    return registry.join(ticket.id, ticket.secret, name, REQUEST)[0]


def expiry(pem: bytes) -> float:
    """Seconds from ``NOW`` to the end of a certificate."""
    return (identity.load_certificate(pem).not_valid_after_utc - NOW).total_seconds()


# ----------------------------------------------------------------------------------------------------------- invitation


def test_a_ticket_names_the_server_and_pins_its_authority(registry: Registry, authority: Authority) -> None:
    ticket = Ticket.parse(str(invite(registry)))
    assert ticket.address == ADDRESS
    assert ticket.ca_hash == identity.spki_hash(authority.key.public_key())


def test_the_database_does_not_hold_the_secret(registry: Registry, url: str, tmp_path: Path, backend: str) -> None:
    secrets = [invite(registry).secret.encode() for _ in range(5)]
    if backend == "sqlite":
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert not any(secret in stored for secret in secrets)
    assert len(set(secrets)) == 5


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), float("inf"), 31 * DAY])
def test_a_ticket_must_expire_soon(registry: Registry, ttl: float) -> None:
    with pytest.raises(ConfigError, match="a ticket cannot be valid for that long"):
        invite(registry, ttl=ttl)


def test_invitations_that_make_no_sense(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no project 'wards'; did you mean 'ward'"):
        registry.invite("wards", None, Role.NODE, DAY, ADDRESS)
    with pytest.raises(ConfigError, match="no role 'king'; use one of node, coordinator, researcher, auditor"):
        registry.invite("ward", None, "king", DAY, ADDRESS)
    with pytest.raises(ConfigError, match="not a valid name"):
        registry.invite("ward", "St. Mary's", Role.NODE, DAY, ADDRESS)
    with pytest.raises(TicketError, match="bad address"):
        registry.invite("ward", None, Role.NODE, DAY, "no port")


# -------------------------------------------------------------------------------------------------------------- joining


def test_joining_gives_a_certificate_of_the_authority(registry: Registry, authority: Authority) -> None:
    ticket = invite(registry)
    pem, member = registry.join(ticket.id, ticket.secret, "alpha", REQUEST)
    assert identity.identity_of(pem) == ALPHA
    identity.verify_issued(pem, identity.certificate_pem(authority.certificate), later(2), identity.CLIENT_AUTH)
    certificate = identity.load_certificate(pem)
    assert certificate.public_key() == KEY.public_key()
    assert (member.name, member.project, member.role, member.joined_at) == ("alpha", "ward", "node", later(1))
    assert (member.serial, member.expires_at) == (identity.serial_of(certificate), certificate.not_valid_after_utc)


@pytest.mark.parametrize(("role", "hours"), [(Role.NODE, 24), (Role.RESEARCHER, 720), (Role.AUDITOR, 720), (Role.COORDINATOR, 720)])
def test_the_role_of_the_ticket_is_the_role_of_the_member(registry: Registry, role: Role, hours: int) -> None:
    pem = join(registry, invite(registry, role=role))
    assert identity.identity_of(pem).role is role
    assert expiry(pem) == pytest.approx(hours * 3600, abs=2)
    assert registry.check(Identity("fedscale", role, "alpha")).role == role


def test_the_name_in_the_ticket_is_used_when_none_is_asked_for(registry: Registry) -> None:
    assert identity.identity_of(join(registry, invite(registry, "alpha"), "")) == ALPHA
    with pytest.raises(ConfigError, match="not a valid name"):
        join(registry, invite(registry), "")


def refused(registry: Registry, ticket_id: str, secret: str, name: str, request: bytes = REQUEST) -> FedscaleError:
    with pytest.raises(FedscaleError) as caught:
        registry.join(ticket_id, secret, name, request)
    assert not secret or secret not in str(caught.value)
    return caught.value


def test_a_ticket_is_used_once(registry: Registry) -> None:
    ticket = invite(registry)
    join(registry, ticket)
    error = refused(registry, ticket.id, ticket.secret, "beta")
    assert isinstance(error, TicketError)
    assert str(error).startswith("the ticket was used before (by 'alpha' at 2026-01-02 03:04 UTC)")


def test_refusals_say_why_and_use_nothing_up(registry: Registry, clock: ManualClock) -> None:
    join(registry, invite(registry), "taken")
    ticket, named = invite(registry, ttl=60), invite(registry, "alpha", ttl=60)
    cases = [
        (refused(registry, "0" * 16, ticket.secret, "alpha"), TicketError, "the ticket is unknown"),
        (refused(registry, ticket.id, named.secret, "alpha"), TicketError, "the ticket's secret is wrong"),
        (refused(registry, ticket.id, "", "alpha"), TicketError, "the ticket's secret is wrong"),
        (refused(registry, ticket.id, ticket.secret, "Alpha"), ConfigError, "'Alpha' is not a valid name"),
        (refused(registry, ticket.id, ticket.secret, "taken"), Conflict, "the name 'taken' is taken"),
        (refused(registry, ticket.id, ticket.secret, "admin"), Conflict, "the name 'admin' is taken"),
        (refused(registry, ticket.id, ticket.secret, "alpha", b"nonsense"), ProtocolError, "a certificate request cannot be read"),
        (refused(registry, named.id, named.secret, "beta"), TicketError, "the ticket is made out for another name"),
    ]
    for error, kind, what in cases:
        assert (type(error), error.what) == (kind, what)
    clock.advance(59)
    join(registry, ticket, "beta")
    join(registry, named)
    assert registry.check(ALPHA).name == "alpha"


def test_an_expired_ticket_is_refused(registry: Registry, clock: ManualClock) -> None:
    ticket = invite(registry, ttl=60)
    clock.advance(60)
    error = refused(registry, ticket.id, ticket.secret, "alpha")
    assert isinstance(error, TicketError)
    assert error.what == "the ticket has expired"


def test_of_many_who_join_at_once_one_wins(registry: Registry, store: Store) -> None:
    ticket = invite(registry)
    start = Barrier(RACERS)

    def race(number: int) -> str | TicketError:
        start.wait(30)
        try:
            return identity.identity_of(join(registry, ticket, f"node-{number}")).name
        except TicketError as error:
            return error

    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(pool.map(race, range(RACERS)))
    winners = [answer for answer in answers if isinstance(answer, str)]
    assert len(winners) == 1
    assert {error.what for error in answers if isinstance(error, TicketError)} == {"the ticket was used before"}
    assert [member.name for member in store.members("ward")] == winners


def test_of_many_who_take_one_name_one_wins(registry: Registry, store: Store) -> None:
    tickets = [invite(registry) for _ in range(16)]
    start = Barrier(16)

    def race(ticket: Ticket) -> bool:
        start.wait(30)
        try:
            join(registry, ticket)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(race, tickets)) == 1
    assert [member.name for member in store.members("ward")] == ["alpha"]


# ---------------------------------------------------------------------------------------------------------- joining again


def test_a_lost_key_is_replaced_with_a_ticket_made_out_for_the_member(registry: Registry, clock: ManualClock) -> None:
    old = join(registry, invite(registry))
    clock.advance(10)
    new = join(registry, invite(registry, "alpha"))
    assert registry.admit(new) == ALPHA
    with pytest.raises(AccessDenied, match="this certificate of 'alpha' was replaced"):
        registry.admit(old)


def test_an_open_ticket_does_not_replace_a_member(registry: Registry, clock: ManualClock) -> None:
    old = join(registry, invite(registry))
    clock.advance(10)
    with pytest.raises(Conflict, match="ask for a ticket made out for 'alpha'"):
        join(registry, invite(registry))
    assert registry.admit(old) == ALPHA


def test_a_revoked_member_that_joins_again_does_not_bring_its_old_key_back(registry: Registry, clock: ManualClock) -> None:
    stolen = join(registry, invite(registry))
    registry.revoke("alpha")
    clock.advance(10)
    new = join(registry, invite(registry))
    assert registry.admit(new) == ALPHA
    with pytest.raises(AccessDenied, match="replaced"):
        registry.admit(stolen)


def test_a_ticket_for_a_node_does_not_replace_the_operator(registry: Registry) -> None:
    with pytest.raises(Conflict, match=r"the name 'admin' is taken \(by a coordinator\); choose another name"):
        join(registry, invite(registry, "admin"), "admin")
    assert registry.check(ADMIN).role == "coordinator"


# -------------------------------------------------------------------------------------------------------------- renewal


def test_a_certificate_is_renewed_for_the_same_identity(registry: Registry, store: Store, clock: ManualClock) -> None:
    old = join(registry, invite(registry))
    clock.advance(DAY / 2)
    new = registry.renew(ALPHA, REQUEST)
    assert identity.identity_of(new) == ALPHA
    assert expiry(new) == pytest.approx(expiry(old) + DAY / 2, abs=2)
    row = store.member("alpha")
    assert row is not None
    assert row.serial == identity.serial_of(identity.load_certificate(new))
    assert [registry.admit(pem) for pem in (old, new)] == [ALPHA, ALPHA], "until it expires the old one may still be in use"


def test_only_members_renew(registry: Registry) -> None:
    join(registry, invite(registry))
    with pytest.raises(AccessDenied, match="is not a member"):
        registry.renew(Identity("fedscale", Role.NODE, "beta"), REQUEST)
    with pytest.raises(ProtocolError, match="cannot be read"):
        registry.renew(ALPHA, b"nonsense")
    registry.revoke("alpha")
    with pytest.raises(AccessDenied, match="'alpha' was revoked"):
        registry.renew(ALPHA, REQUEST)


# ------------------------------------------------------------------------------------------------------------ who is in


@pytest.mark.parametrize(
    "stranger",
    [
        Identity("fedscale", Role.NODE, "beta"),
        Identity("other", Role.NODE, "alpha"),
        Identity("fedscale", Role.COORDINATOR, "alpha"),
        Identity("fedscale", Role.NODE, "admin"),
    ],
)
def test_strangers_are_refused(registry: Registry, stranger: Identity) -> None:
    join(registry, invite(registry))
    with pytest.raises(AccessDenied, match=f"'{stranger.uri}' is not a member"):
        registry.check(stranger)


def test_a_member_is_known_from_memory(registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    join(registry, invite(registry))
    monkeypatch.setattr(store, "_read", None)
    assert registry.check(ALPHA).name == "alpha"


def test_revocation_works_at_once(registry: Registry, store: Store) -> None:
    pem = join(registry, invite(registry))
    registry.revoke("alpha")
    for ask in (lambda: registry.check(ALPHA), lambda: registry.admit(pem)):
        with pytest.raises(AccessDenied, match=r"'alpha' was revoked \(at 2026-01-02 03:04 UTC\)"):
            ask()
    assert store.revoked() == {"alpha"}
    assert registry.check(ADMIN).name == "admin", "nobody else is touched"


def test_revoking_somebody_unknown(registry: Registry) -> None:
    join(registry, invite(registry))
    with pytest.raises(NotFound, match="no member 'alfa'; did you mean 'alpha'"):
        registry.revoke("alfa")


def test_revocation_wins_against_an_older_answer(registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was read before a revocation, and arrives after it, must not take its place."""
    join(registry, invite(registry))
    read, revoked = Event(), Event()

    def slow(name: str) -> Member | None:
        row = quick(name)
        if not read.is_set():
            read.set()
            revoked.wait(0.3)  # in vain while the registry takes one answer after the other
        return row

    quick = store.member
    monkeypatch.setattr(store, "member", slow)
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(registry.member, "alpha")
        assert read.wait(30)
        registry.revoke("alpha")
        revoked.set()
        assert older.result(30).revoked_at is None
    with pytest.raises(AccessDenied, match="revoked"):
        registry.check(ALPHA)


def test_a_restart_forgets_nothing(registry: Registry, store: Store, authority: Authority, clock: ManualClock) -> None:
    ticket = invite(registry, "gamma")
    pems = [join(registry, invite(registry), name) for name in ("alpha", "beta")]
    registry.revoke("beta")
    again = Registry(store, authority, clock)
    assert again.admit(pems[0]) == ALPHA
    with pytest.raises(AccessDenied, match="revoked"):
        again.admit(pems[1])
    assert identity.identity_of(join(again, ticket, "gamma")).name == "gamma"


def test_who_joined_through_another_server_of_the_same_database(registry: Registry, store: Store, authority: Authority, clock: ManualClock) -> None:
    pem = join(Registry(store, authority, clock), invite(registry))
    assert registry.admit(pem) == ALPHA


def seen(registry: Registry, name: str, identity: str = "", *, datasets: tuple[str, ...] = (), version: str = "") -> Member:
    """A single arrival."""
    (found,) = registry.seen([Arrival(name, datasets, version, identity)])
    if isinstance(found, FedscaleError):
        raise found
    return found


def test_what_a_node_says_is_remembered(registry: Registry) -> None:
    join(registry, invite(registry))
    row = seen(registry, "alpha", datasets=("icu",), version="0.1.0")
    assert (row.datasets, row.version, row.last_seen) == (["icu"], "0.1.0", later(1))
    assert registry.member("alpha") == row
    for ask in (lambda: seen(registry, "beta"), lambda: registry.member("beta")):
        with pytest.raises(NotFound, match="no member 'beta'"):
            ask()


def test_an_identity_key_stays_with_its_member_until_it_joins_again(registry: Registry) -> None:
    join(registry, invite(registry, "alpha"))
    assert seen(registry, "alpha").identity is None
    assert seen(registry, "alpha", "aa" * 32).identity == "aa" * 32
    assert seen(registry, "alpha", "aa" * 32).identity == "aa" * 32
    assert seen(registry, "alpha").identity == "aa" * 32, "an older release says nothing of keys"
    with pytest.raises(AccessDenied, match="'alpha' was known by another identity key"):
        seen(registry, "alpha", "bb" * 32, datasets=("other",))
    assert registry.member("alpha").datasets == []
    join(registry, invite(registry, "alpha"))
    assert seen(registry, "alpha", "bb" * 32).identity == "bb" * 32


def test_no_two_members_have_one_identity_key(registry: Registry) -> None:
    for name in ("alpha", "beta"):
        join(registry, invite(registry), name)
    seen(registry, "alpha", "aa" * 32)
    with pytest.raises(AccessDenied, match="the identity key of 'beta' is that of another member; give each node a home of its own"):
        seen(registry, "beta", "aa" * 32)
    assert seen(registry, "beta", "cc" * 32).identity == "cc" * 32


def test_an_arrival_does_not_read_everybody(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alpha", "beta"):
        join(registry, invite(registry), name)
    seen(registry, "alpha", "aa" * 32)
    read: list[object] = []
    monkeypatch.setattr(registry._store, "members", lambda *_: read.append(1))
    assert seen(registry, "beta", "bb" * 32).identity == "bb" * 32
    with pytest.raises(AccessDenied, match="is that of another member"):
        seen(registry, "beta", "aa" * 32)
    assert read == []


def test_of_nodes_that_arrive_together_each_is_judged_by_itself(registry: Registry) -> None:
    for name in ("alpha", "beta", "gamma"):
        join(registry, invite(registry), name)
    seen(registry, "alpha", "aa" * 32)
    named = [("alpha", "aa" * 32), ("beta", "aa" * 32), ("beta", "bb" * 32), ("gamma", "bb" * 32), ("gamma", ""), ("delta", ""), ("beta", "cc" * 32)]
    told = [str(found) if isinstance(found, FedscaleError) else found.identity for found in registry.seen([Arrival(n, (), "", i) for n, i in named])]
    taken, changed = "is that of another member; give each node a home of its own", "was known by another identity key"
    assert told[:1] == ["aa" * 32]
    assert told[1] == f"the identity key of 'beta' {taken}"
    assert told[2] == "bb" * 32
    assert told[3] == f"the identity key of 'gamma' {taken}"
    assert told[4:6] == [None, "no member 'delta'"]
    assert str(told[6]).startswith(f"'beta' {changed}")
    assert registry.member("beta").identity == "bb" * 32


def test_a_certificate_without_an_identity_is_refused(registry: Registry, authority: Authority) -> None:
    server = authority.issue_server(KEY.public_key(), ["localhost"], NOW)
    with pytest.raises(AccessDenied, match="names no member"):
        registry.admit(identity.certificate_pem(server))
    with pytest.raises(AccessDenied, match="cannot be read"):
        registry.admit(b"nonsense")


# --------------------------------------------------------------------------------------------------------- the operator


def test_the_operator_is_a_member_from_the_start(store: Store, tmp_path: Path, clock: ManualClock) -> None:
    made = home.Home.create(tmp_path / "server", settings.Settings(), NOW)
    registry = Registry(store, made.authority, clock)
    assert registry.admit((made.profile / "cert.pem").read_bytes()) == ADMIN
    assert registry.check(ADMIN).project == ""
    assert registry.check(ADMIN).expires_at == pytest.approx(NOW + timedelta(days=365), abs=timedelta(minutes=6))
    assert store.members("ward") == []


def test_the_operator_can_be_shut_out_for_good(store: Store, authority: Authority, clock: ManualClock) -> None:
    Registry(store, authority, clock).revoke("admin")
    with pytest.raises(AccessDenied, match="'admin' was revoked"):
        Registry(store, authority, clock).check(ADMIN)


def test_the_operator_renews_like_anybody(registry: Registry) -> None:
    pem = registry.renew(ADMIN, REQUEST)
    assert registry.admit(pem) == ADMIN
    assert isinstance(identity.load_certificate(pem), x509.Certificate)
