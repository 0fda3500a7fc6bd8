"""Several coordinators: one leads, another one takes over, and whoever led before writes nothing more."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest

from tests.e2e.conftest import declared
from tests.e2e.federation import until
from tests.e2e.replicas import NAMES, Replicas, bucket, object_store
from tests.server.conftest import running_postgres

SITES = ("ann", "bob", "cid")
ALL = {"wait_for": 3, "min_per_round": 3, "deadline": 90.0, "rejoin": 90.0}
MOST_SECONDS = 10.0  # from the end of a lease to the next one
pytestmark = pytest.mark.requires("postgresql", "object-store")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store() as url:
        yield url


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Path], endpoint: str) -> Iterator[Replicas]:
    with running_postgres() as postgres, Replicas(tmp_path_factory.mktemp("replicas"), postgres, endpoint) as made:
        made.join_all(tables, lambda name: declared(tables[name]))
        yield made


def test_another_coordinator_takes_over_from_a_killed_one(
    replicas: Replicas, job: Callable[..., Path], expected: Callable[[Path], str], endpoint: str
) -> None:
    file = job(rounds=4, epochs=4, clients=ALL, strategy={"name": "fedadam", "rounds": 4, "lr": 0.5})
    run = replicas.submit(file)
    events = replicas.watch(run)
    # In the middle of a round, with an answer in that only the leader has heard of.
    events.event("answered", phase="train", number=2)
    killed, epoch, _ = replicas.lease()
    replicas.coordinators[killed].kill()
    successor, seconds = replicas.taken(epoch)
    sys.stdout.write(f"{seconds:.2f} s from the end of the lease to the next leader\n")
    assert successor in set(NAMES) - {killed}
    assert seconds <= MOST_SECONDS

    assert events.wait().code == 0
    record = replicas.record(run)
    assert (record.status, record.reason, len(record.rounds)) == ("completed", "", 5)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    sequence = [event["sequence"] for event in events.events() if event["sequence"]]
    assert sequence == list(range(1, len(sequence) + 1)), "a watcher turns to the next leader, misses nothing and hears nothing twice"
    assert {writer for writer, _, at in replicas.writers() if at >= epoch} == {killed, successor}
    stored = [found["path"] for page in obstore.list(bucket(endpoint), f"trial/runs/{run}") for found in page]
    assert any(record.model_digest in path for path in stored)
    replicas.start(killed)


def test_a_frozen_leader_writes_nothing_when_it_goes_on(replicas: Replicas, job: Callable[..., Path], expected: Callable[[Path], str]) -> None:
    file = job(rounds=4, epochs=4, clients=ALL)
    run = replicas.submit(file)
    events = replicas.watch(run)
    events.event("answered", phase="train", number=2)
    frozen, epoch, _ = replicas.lease()
    zombie = replicas.coordinators[frozen]
    zombie.send(signal.SIGSTOP)
    try:
        successor, seconds = replicas.taken(epoch)
        sys.stdout.write(f"{seconds:.2f} s from the end of the lease to the next leader\n")
        assert successor != frozen
        assert seconds <= MOST_SECONDS
    finally:
        zombie.send(signal.SIGCONT)
    until(lambda: "leads no more" in zombie.told(), "the frozen coordinator to step down")

    assert events.wait().code == 0
    record = replicas.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    assert zombie.alive
    writes = replicas.writers()
    assert [write for write in writes if write[0] != write[1]] == [], "whoever wrote did not hold the lease"
    assert {write[0] for write in writes if write[2] > epoch} == {successor}
    status = replicas.manage("server", "status")
    assert (status["address"], status["epoch"]) == (replicas.addresses[successor], replicas.lease()[1])
    assert set(status["replicas"]) == set(replicas.addresses.values())
