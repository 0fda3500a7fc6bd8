"""The lease: one holder at a time, and nobody else writes, whatever kept them from noticing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from fedscale.clock import ManualClock
from fedscale.identity import Role
from fedscale_server.store import database
from fedscale_server.store.admission import Arrival
from fedscale_server.store.leases import FOREVER
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Account, Login, Table, Ticket
from tests.server.samples import NOW, add_member, add_run, add_ticket, later, redeem

LONG, FOR_EVER = 3600.0, float("inf")
PATIENCE = 60.0
RACERS = 16

WRITES: dict[str, Callable[[Store], object]] = {
    "create_project": lambda store: store.create_project("clinic", NOW),
    "add_ticket": lambda store: store.add_ticket(Ticket(id="t2", project="ward", role="node", secret_hash="x", expires_at=NOW)),
    "enrol": lambda store: store.enrol("beta", "ward", Role.NODE, "5e", NOW, NOW),
    "redeem": lambda store: redeem(store, "beta"),
    "seen": lambda store: store.seen([Arrival("alpha", ("x",), "1")], later(9)),
    "renewed": lambda store: store.renewed("alpha", "77", later(9)),
    "revoke": lambda store: store.revoke("alpha", later(9)),
    "put_account": lambda store: store.put_account(Account(name="ada", role="auditor", password="x", created=NOW)),
    "drop_account": lambda store: store.drop_account("grace"),
    "open_login": lambda store: store.open_login(Login(token_hash="b", account="grace", role="auditor", created=NOW, expires_at=later(9))),
    "close_login": lambda store: store.close_login("b"),
    "create_run": lambda store: add_run(store, "second"),
    "set_status": lambda store: store.set_status("first", "paused"),
    "finish": lambda store: store.finish("first", "completed", "", {}, NOW),
    "append": lambda store: store.append("first", "lost", {}, NOW),
    "append_all": lambda store: store.append_all("first", [("lost", {}, None), ("lost", {}, None)], NOW),
    "checkpoint": lambda store: store.checkpoint("first", 1, 1, "train", {}, "m", {}, None, NOW),
}
READS = {
    "projects", "ticket", "member", "members", "revoked", "account", "accounts", "login", "run", "runs", "unfinished", "journal",
    "before_last", "last_checkpoint", "lines", "lines_of_ended", "outcomes", "holders", "record", "ends",
}  # fmt: skip
OTHERS = {"open", "close", "epoch", "stands_by", "fence", "of_term"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def full(store: Store) -> Store:
    """A store with something of each kind in it."""
    add_ticket(store)
    add_member(store)
    add_run(store, "first")
    store.put_account(Account(name="grace", role="auditor", password="x", created=NOW))
    store.open_login(Login(token_hash="a", account="grace", role="auditor", created=NOW, expires_at=later(60)))
    return store


def rows(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Everything in the database."""
    with store._engine.connect() as connection:
        return {name: sorted(map(tuple, connection.execute(table.select())), key=repr) for name, table in Table.metadata.tables.items()}


def expire(store: Store) -> None:
    """Let the lease end, as time would, on whichever clock it is measured."""
    with store._writer.begin() as connection:
        connection.execute(text("UPDATE lease SET lease_until = :past"), {"past": "2020-01-01 00:00:00+00:00" if postgresql(store) else "2020-01-01"})


def postgresql(store: Store) -> bool:
    return store._engine.dialect.name == "postgresql"


# -------------------------------------------------------------------------------------------------------------- holders


def test_nobody_leads_before_somebody_does(store: Store, clock: ManualClock) -> None:
    assert store.leases.held() is None
    assert store.leases.take("a:1", "red", clock, LONG) == 1
    lease = store.leases.held()
    assert lease is not None
    assert (lease.holder, lease.token, lease.epoch) == ("a:1", "red", 1)


def test_a_lease_that_lasts_is_nobody_elses(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, LONG)
    assert store.leases.take("b:1", "blue", clock, LONG) is None
    assert store.leases.take("a:1", "red", clock, LONG) is None
    assert store.leases.take("b:1", "blue", clock, LONG, back=True) is None


def test_whoever_died_with_a_lease_takes_it_back_in_a_new_epoch(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, FOR_EVER)
    lease = store.leases.held()
    assert lease is not None
    assert lease.lease_until == FOREVER
    assert store.leases.take("a:1", "red", clock, LONG, back=True) == 2


def test_an_expired_lease_goes_to_the_next(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, LONG)
    expire(store)
    assert store.leases.take("b:1", "blue", clock, LONG) == 2
    assert not store.leases.renew(1, clock, LONG)
    assert not store.leases.free("red", clock)
    assert store.leases.renew(2, clock, LONG)


def test_an_expired_lease_that_nobody_took_is_renewed(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, LONG)
    expire(store)
    assert store.leases.renew(1, clock, LONG)
    assert store.leases.take("b:1", "blue", clock, LONG) is None


def test_a_lease_that_was_let_go_is_free_at_once(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, LONG)
    assert store.leases.free("red", clock)
    assert store.leases.take("b:1", "blue", clock, LONG) == 2


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_time_is_the_servers_where_the_database_has_none(store: Store, clock: ManualClock) -> None:
    store.leases.take("a:1", "red", clock, 10)
    clock.advance(9.9)
    assert store.leases.take("b:1", "blue", clock, 10) is None
    clock.advance(0.1)
    assert store.leases.take("b:1", "blue", clock, 10) == 2


@pytest.mark.requires("postgresql")
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_time_is_the_databases_where_it_has_a_clock(store: Store, clock: ManualClock) -> None:
    """Two servers whose clocks are years apart agree on who leads."""
    store.leases.take("a:1", "red", ManualClock(NOW - timedelta(days=9999)), LONG)
    assert store.leases.take("b:1", "blue", ManualClock(NOW + timedelta(days=9999)), LONG) is None


def test_of_many_that_try_at_once_one_leads(store: Store, clock: ManualClock) -> None:
    together = threading.Barrier(RACERS)

    def run(racer: int) -> int | None:
        together.wait(PATIENCE)
        return store.leases.take(f"r:{racer}", f"racer-{racer}", clock, LONG)

    with ThreadPoolExecutor(RACERS) as pool:
        epochs = list(pool.map(run, range(RACERS)))
    assert [epoch for epoch in epochs if epoch] == [1]
    lease = store.leases.held()
    assert lease is not None
    assert lease.token == f"racer-{epochs.index(1)}"


def test_servers_know_each_other(store: Store, clock: ManualClock) -> None:
    store.leases.appear("red", "a:1", "a:2", clock)
    clock.advance(100)
    store.leases.appear("blue", "b:1", "b:2", clock)
    store.leases.appear("red", "a:9", "a:2", clock)
    assert [(row.token, row.address, row.enrolment) for row in store.leases.replicas(NOW)] == [("red", "a:9", "a:2"), ("blue", "b:1", "b:2")]
    clock.advance(100)
    store.leases.appear("blue", "b:1", "b:2", clock)
    assert [row.token for row in store.leases.replicas(later(150))] == ["blue"]


# ------------------------------------------------------------------------------------------------------------ the fence


def test_every_method_of_the_store_is_known_to_write_or_to_read() -> None:
    assert {name for name in vars(Store) if not name.startswith("_")} == set(WRITES) | READS | OTHERS


def test_whoever_led_before_writes_nothing(full: Store, url: str, opened: Callable[[str], Store], clock: ManualClock) -> None:
    zombie, successor = full, opened(url)
    zombie.fence(zombie.leases.take("a:1", "red", clock, LONG) or 0)
    expire(zombie)
    successor.fence(successor.leases.take("b:1", "blue", clock, LONG) or 0)
    before = rows(successor)
    for write in WRITES.values():
        with pytest.raises(PermissionError, match="another coordinator leads"):
            write(zombie)
    assert rows(successor) == before


def test_whoever_leads_writes(full: Store, clock: ManualClock) -> None:
    """What the fence keeps others from would have changed something."""
    full.fence(full.leases.take("a:1", "red", clock, LONG) or 0)
    for name, write in WRITES.items():
        before = rows(full)
        if name != "redeem":  # the ticket was claimed just before
            write(full)
            assert rows(full) != before, name


def test_whoever_stands_by_reads_and_writes_nothing(full: Store) -> None:
    full.fence(0)
    assert full.stands_by
    with pytest.raises(PermissionError, match="stands by"):
        full.append("first", "lost", {}, NOW)
    assert full.run("first").status == "running"


def test_what_belongs_to_one_term_does_not_write_in_the_next(full: Store, clock: ManualClock) -> None:
    """A step that hangs in a thread while its server loses the lease, and takes it again, is of a run that was read anew since."""
    full.fence(full.leases.take("a:1", "red", clock, LONG) or 0)
    former = full.of_term()
    assert former.append("first", "lost", {}, NOW) == 1
    full.fence(full.leases.take("a:1", "red", clock, LONG, back=True) or 0)
    with pytest.raises(PermissionError):
        former.append("first", "lost", {}, NOW)
    assert full.append("first", "lost", {}, NOW) == 2


@pytest.mark.requires("postgresql")
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_takeover_waits_for_a_write_that_has_begun(full: Store, url: str, opened: Callable[[str], Store], clock: ManualClock) -> None:
    """Between the check and the end of a transaction nobody else comes to lead: else both would have written."""
    successor = opened(url)
    full.fence(full.leases.take("a:1", "red", clock, LONG) or 0)
    expire(full)
    with ThreadPoolExecutor(1) as pool:
        with full._write() as session:
            taking = pool.submit(successor.leases.take, "b:1", "blue", clock, LONG)
            until_blocked(successor, taking)
            session.execute(text("UPDATE run SET reason = 'in time' WHERE id = 'first'"))
        assert taking.result(PATIENCE) == 2
    assert successor.run("first").reason == "in time"


def until_blocked(store: Store, work: Future[int | None]) -> None:
    """Wait until a transaction waits for another one."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        assert not work.done(), "it did not wait"
        with store._engine.connect() as connection:
            if connection.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")):
                return
        time.sleep(0.01)
    raise AssertionError("nothing waits")


@pytest.mark.requires("postgresql")
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_whoever_stops_in_the_middle_of_a_write_holds_nobody_up(
    full: Store, url: str, opened: Callable[[str], Store], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE", database.IDLE.replace("8s", "500ms"))
    zombie, successor = opened(url), full
    zombie.fence(zombie.leases.take("a:1", "red", clock, LONG) or 0)
    expire(zombie)
    taken: list[int | None] = []

    def write() -> None:
        with zombie._write() as session:
            session.execute(text("UPDATE run SET reason = 'too late' WHERE id = 'first'"))
            # The database ends the transaction of whoever says nothing in the middle of it; only then can the lease be taken.
            taken.append(successor.leases.take("b:1", "blue", clock, LONG))

    with pytest.raises(SQLAlchemyError):
        write()
    assert taken == [2]
    assert successor.run("first").reason == ""
