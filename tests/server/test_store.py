"""Projects, tickets and members, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from threading import Barrier

import pytest
from sqlalchemy.exc import StatementError

from fedscale.errors import Conflict, NotFound, TicketError
from fedscale.identity import Role, secret_hash
from fedscale_server.store.admission import Arrival
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Member, Ticket
from tests.server.samples import KEY, NOW, SECRET, add_member, add_run, add_ticket, later, redeem

HASH = secret_hash(SECRET)
RACERS = 64


# ------------------------------------------------------------------------------------------------------------- projects


def test_a_project_exists_once_it_is_made(store: Store) -> None:
    assert store.projects() == [("ward", 0, 0)]


def test_a_project_is_made_once(store: Store) -> None:
    with pytest.raises(Conflict, match="project 'ward' exists already"):
        store.create_project("ward", later(1))


def test_projects_count_their_own_active_nodes_and_runs(store: Store) -> None:
    store.create_project("clinic", NOW)
    for name in ("a", "b", "c"):
        add_member(store, name)
    add_member(store, "person", role=Role.RESEARCHER)
    add_member(store, "elsewhere", project="clinic")
    store.revoke("c", NOW)
    add_run(store, "one")
    add_run(store, "two")
    assert store.projects() == [("clinic", 1, 0), ("ward", 2, 2)]


# -------------------------------------------------------------------------------------------------------------- tickets


def test_a_ticket_comes_back_as_it_was_stored(store: Store) -> None:
    add_ticket(store, name="alpha")
    row = store.ticket("t1", HASH)
    expected = Ticket(id="t1", secret_hash=HASH, project="ward", role="node", name="alpha", expires_at=later(60))
    assert row.model_dump() == expected.model_dump()


def test_a_ticket_needs_its_project(store: Store) -> None:
    with pytest.raises(NotFound, match="no project 'wards'; did you mean 'ward'"):
        add_ticket(store, project="wards")


def test_redeeming_uses_a_ticket_up(store: Store) -> None:
    add_ticket(store)
    member = redeem(store, at=later(3))
    assert (member.name, member.project, member.role, member.serial) == ("alpha", "ward", "node", "5e")
    assert store.members() == [member]
    for name, key in (("beta", "key-2"), ("beta", KEY), ("alpha", "key-2")):
        with pytest.raises(TicketError, match=r"used before \(by 'alpha' at 2026-01-02 03:04 UTC\)"):
            redeem(store, name, later(4), key=key)


def test_whose_reply_was_lost_asks_again_with_the_same_key(store: Store) -> None:
    add_ticket(store)
    redeem(store, at=later(3))
    assert (redeem(store, at=later(4), serial="6f").serial, redeem(store, at=later(5), serial="7a").serial) == ("6f", "7a")
    with pytest.raises(TicketError, match="expired"):
        redeem(store, at=later(60))


@pytest.mark.parametrize("event", ["seen", "revoked", "again"])
def test_a_ticket_is_over_once_its_member_has_been_there(store: Store, event: str) -> None:
    """Or has been shut out, or has joined with another ticket: the old one is no way back."""
    add_ticket(store)
    redeem(store)
    if event == "seen":
        store.seen([Arrival("alpha", ("icu",), "0.1.0")], later(1))
    elif event == "revoked":
        store.revoke("alpha", later(1))
    else:
        add_ticket(store, "t2", name="alpha")
        redeem(store, "alpha", later(1), "t2", key="key-2")
    with pytest.raises(TicketError, match="used before"):
        redeem(store, at=later(2))


@pytest.mark.parametrize(
    ("ticket_id", "secret", "name", "after", "message"),
    [
        ("t2", SECRET, "alpha", 0, "the ticket is unknown"),
        ("t1", "guess", "alpha", 0, "the ticket's secret is wrong"),
        ("used", SECRET, "alpha", 0, "was used before (by 'beta' at 2026-01-02 03:04 UTC)"),
        ("used", "guess", "alpha", 0, "the ticket's secret is wrong"),
        ("t1", SECRET, "alpha", 60, "has expired (at 2026-01-02 03:05 UTC)"),
        ("t1", SECRET, "beta", 0, "made out for another name (for 'alpha'); join as 'alpha'"),
    ],
)
def test_a_refused_claim_says_why(store: Store, ticket_id: str, secret: str, name: str, after: float, message: str) -> None:
    add_ticket(store, name="alpha")
    add_ticket(store, "used")
    redeem(store, "beta", ticket="used")
    with pytest.raises(TicketError) as caught:
        redeem(store, name, later(after), ticket_id, secret, "key-2")
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_refused_claim_leaves_the_ticket_as_it_was(store: Store) -> None:
    before = add_ticket(store, name="alpha")
    for secret, name in (("guess", "alpha"), (SECRET, "beta")):
        with pytest.raises(TicketError):
            redeem(store, name, secret=secret)
    assert store.ticket("t1", HASH) == before


def test_a_ticket_expires_at_its_last_moment(store: Store) -> None:
    add_ticket(store)
    assert store.ticket("t1", HASH).used_at is None
    with pytest.raises(TicketError, match="expired"):
        redeem(store, at=later(60))
    assert redeem(store, at=later(59.999)).name == "alpha"


def test_of_many_who_claim_at_once_one_wins(store: Store) -> None:
    add_ticket(store)
    start = Barrier(RACERS)

    def race(number: int) -> str:
        start.wait(30)
        try:
            return redeem(store, f"node-{number}", key=f"key-{number}").name
        except TicketError as error:
            return error.what

    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(pool.map(race, range(RACERS)))
    winners = [answer for answer in answers if answer.startswith("node-")]
    assert len(winners) == 1
    assert answers.count("the ticket was used before") == RACERS - 1
    assert store.ticket("t1", HASH).used_by == winners[0]


def test_processes_that_claim_at_once_do_not_both_win(store: Store, url: str, opened: Callable[[str], Store]) -> None:
    """Two stores share no lock but the database's own."""
    stores = [store, *(opened(url) for _ in range(3))]
    for number in range(10):
        add_ticket(store, f"t-{number}")
        start = Barrier(len(stores))

        def race(mine: Store, ticket: str = f"t-{number}", start: Barrier = start) -> bool:
            start.wait(30)
            try:
                redeem(mine, ticket, ticket=ticket, key=f"key-{stores.index(mine)}")
            except TicketError:
                return False
            return True

        with ThreadPoolExecutor(len(stores)) as pool:
            assert sum(pool.map(race, stores)) == 1


# -------------------------------------------------------------------------------------------------------------- members


def test_a_member_comes_back_as_it_was_enrolled(store: Store) -> None:
    add_member(store)
    row = store.member("alpha")
    expected = Member(name="alpha", project="ward", role="node", serial="5e", expires_at=later(86_400), joined_at=NOW)
    assert row is not None
    assert row.model_dump() == expected.model_dump()
    assert store.member("beta") is None


def test_a_member_needs_its_project_unless_it_has_none(store: Store) -> None:
    with pytest.raises(NotFound, match="no project 'clinic'"):
        add_member(store, project="clinic")
    assert add_member(store, "admin", project="").project == ""


def test_a_taken_name_is_refused(store: Store) -> None:
    add_member(store)
    with pytest.raises(Conflict, match=r"the name 'alpha' is taken \(by a node\); .*a ticket made out for 'alpha'"):
        add_member(store, serial="6f")
    found = store.member("alpha")
    assert found is not None
    assert found.serial == "5e"


@pytest.mark.parametrize("other", [{"role": Role.AUDITOR}, {"project": "clinic"}])
def test_nobody_joins_again_as_somebody_else(store: Store, other: dict[str, str]) -> None:
    store.create_project("clinic", NOW)
    add_member(store)
    with pytest.raises(Conflict, match=r"choose another name$"):
        add_member(store, again=True, **other)


def test_joining_again_begins_anew(store: Store) -> None:
    add_member(store)
    store.seen([Arrival("alpha", ("icu",), "0.1.0")], NOW)
    add_member(store, serial="6f", now=later(5), again=True)
    row = store.member("alpha")
    assert row is not None
    assert (row.serial, row.joined_at, row.last_seen, row.datasets, row.version) == ("6f", later(5), None, [], "")


def test_the_name_of_a_revoked_member_is_free(store: Store) -> None:
    add_member(store)
    store.revoke("alpha", later(1))
    assert store.revoked() == {"alpha"}
    add_member(store, role=Role.RESEARCHER, now=later(2))
    row = store.member("alpha")
    assert row is not None
    assert (row.role, row.revoked_at) == ("researcher", None)
    assert store.revoked() == frozenset()


def test_redeeming_for_a_taken_name_leaves_the_ticket_open(store: Store) -> None:
    add_member(store)
    ticket = add_ticket(store)
    with pytest.raises(Conflict, match="taken"):
        redeem(store)
    assert store.ticket("t1", HASH) == ticket
    assert redeem(store, "beta").name == "beta"


def test_a_ticket_made_out_for_a_member_lets_it_join_again(store: Store) -> None:
    add_member(store)
    add_ticket(store, name="alpha")
    assert redeem(store, at=later(1)).joined_at == later(1)


def test_what_a_node_says_is_remembered(store: Store) -> None:
    add_member(store)
    store.seen([Arrival("alpha", ("icu", "ward-7"), "0.1.0\0")], later(7))
    row = store.member("alpha")
    assert row is not None
    assert (row.last_seen, row.datasets, row.version) == (later(7), ["icu", "ward-7"], "0.1.0\N{REPLACEMENT CHARACTER}")


def test_nodes_that_arrive_together_are_written_down_together(store: Store) -> None:
    add_member(store)
    add_member(store, name="beta")
    arrivals = [Arrival("alpha", ("icu",), "1"), Arrival("gamma", (), ""), Arrival("beta", (), "2", "bb" * 32)]
    found = store.seen(arrivals, later(7))
    told = {name: (row.datasets, row.version, row.identity) for name, row in found.items()}
    assert told == {"alpha": (["icu"], "1", None), "beta": ([], "2", "bb" * 32)}
    assert [row for row in store.members() if row.last_seen == later(7)] == [found["alpha"], found["beta"]]


def test_a_renewed_certificate_is_remembered(store: Store) -> None:
    add_member(store)
    store.renewed("alpha", "6f", later(99))
    row = store.member("alpha")
    assert row is not None
    assert (row.serial, row.expires_at, row.joined_at) == ("6f", later(99), NOW)


def test_the_first_revocation_counts(store: Store) -> None:
    add_member(store)
    store.revoke("alpha", later(1))
    store.revoke("alpha", later(2))
    row = store.member("alpha")
    assert row is not None
    assert row.revoked_at == later(1)


@pytest.mark.parametrize("change", ["renewed", "revoke"])
def test_changing_a_member_that_is_not_there(store: Store, change: str) -> None:
    add_member(store)
    arguments = {"renewed": ("", NOW), "revoke": (NOW,)}[change]
    with pytest.raises(NotFound, match="no member 'alpa'; did you mean 'alpha'"):
        getattr(store, change)("alpa", *arguments)


def test_members_are_listed_by_name_and_project(store: Store) -> None:
    store.create_project("clinic", NOW)
    for name, project in (("c", "ward"), ("a", "ward"), ("b", "clinic")):
        add_member(store, name, project=project)
    store.revoke("a", NOW)
    assert [member.name for member in store.members()] == ["a", "b", "c"]
    assert [member.name for member in store.members("ward")] == ["a", "c"]


def test_rows_are_values(store: Store) -> None:
    row = add_member(store)
    row.role = "coordinator"
    found = store.member("alpha")
    assert found is not None
    assert found.role == "node"


# ---------------------------------------------------------------------------------------------------------------- times


def test_times_are_kept_in_utc_to_the_microsecond(store: Store) -> None:
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    add_member(store, now=NOW.astimezone(kathmandu))
    found = store.member("alpha")
    assert found is not None
    assert found.joined_at == NOW
    assert found.joined_at.utcoffset() == timedelta()


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StatementError, match="a time without a time zone"):
        store.create_project("clinic", NOW.replace(tzinfo=None))
    assert [name for name, _, _ in store.projects()] == ["ward"]
