"""Several coordinators: one leads, another one takes over, and whoever led before writes nothing more."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import pytest

from tests.e2e.conftest import declared, plan_of, write_job
from tests.e2e.federation import until
from tests.e2e.replicas import LEASE_SECONDS, NAMES, Replicas, bucket, object_store
from tests.server.conftest import running_postgres

SITES = ("ann", "bob", "cid")
ALL = {"wait_for": 3, "min_per_round": 3, "deadline": 90.0, "rejoin": 90.0}
MOST_SECONDS = 2 * LEASE_SECONDS  # from the end of a lease to the next one
STEPS = ("vector", "opening", "keys", "agreement", "shares", "consent")
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


def given(replicas: Replicas, site: str, run: str) -> list[str]:
    """The tasks of a run that a site has given an answer to, by its own receipts."""
    receipts = replicas.ask("node", "receipts", "--run", run, "--home", replicas.node_home(site))
    return sorted(f"{receipt['phase']} {receipt['round']}" for receipt in receipts if receipt["phase"] != "init")


def given_again(replicas: Replicas, site: str, run: str) -> bool:
    """Whether a site has answered its first task of a run twice, by its own log."""
    return replicas.nodes[site].told().count(f" key={run}/train/1 node={site} reason= verdict=accepted") == 2


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


@pytest.mark.timeout(600)
def test_a_round_under_masks_goes_on_at_whichever_step_its_leader_dies(
    replicas: Replicas, job: Callable[..., Path], expected: Callable[[Path], str], endpoint: str, *, release: bool
) -> None:
    """A masked vector is given once, so it must not die with whoever has received it: the next leader opens the very sum that was begun."""
    steps = STEPS if release else STEPS[:2]
    file = job(rounds=len(steps), epochs=4, clients=ALL, secagg={})
    run = replicas.submit(file)
    events = replicas.watch(run)
    epoch = replicas.lease()[1]
    for number, step in enumerate(steps, 1):
        told = {"kind": "answered"} if step == "vector" else {"kind": "spoke", "detail": {"step": step}}
        events.event(phase="train", number=number, **told)
        killed, epoch, _ = replicas.lease()
        replicas.coordinators[killed].kill()
        replicas.taken(epoch)
        replicas.start(killed)
    assert events.wait().code == 0, replicas.record(run).reason
    record = replicas.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    assert replicas.lease()[1] == epoch + 1, "each step met one takeover"
    heard = [each for each in events.events() if each["kind"] in ("spoke", "answered")]
    said = [(each["phase"], each["number"], each["node"], each["detail"].get("step", "vector")) for each in heard]
    assert len(said) == len(set(said)) == len(SITES) * len(STEPS) * (len(steps) + 1), "everybody is heard once at each step"
    assert [write for write in replicas.writers() if write[0] != write[1]] == []
    tasks = [f"evaluate {len(steps)}", *(f"train {number + 1}" for number in range(len(steps)))]
    assert [given(replicas, site, run) for site in SITES] == [tasks] * len(SITES), "nobody gives a second vector"
    left = [found["path"] for page in obstore.list(bucket(endpoint), f"trial/answers/{run}") for found in page]
    assert left == []


# A site that waits in its first step for a file: the others have answered by then, and its round is open for as long as the test wants.
WAITING = """
import os, time
from pathlib import Path
import torch
from fedscale import App

def loss(output, target):
    while "sites/{site}" in Path("/proc", str(os.getppid()), "cmdline").read_text() and not Path("{file}").exists():
        time.sleep(0.05)
    return torch.nn.functional.binary_cross_entropy_with_logits(output, target)

app = App(model=lambda: torch.nn.Linear(4, 1), loss=loss)
"""


@pytest.mark.requires("torch")
@pytest.mark.timeout(600)
def test_a_takeover_costs_no_site_more_privacy(replicas: Replicas, tmp_path: Path) -> None:
    """Whether a site that has answered is asked for its answer again or not: it spends once for each round."""
    ways: dict[str, dict[str, Any]] = {
        "asked-again": {"privacy": {"epsilon": 3.0, "delta": 1e-5}},
        "under-masks": {"privacy": {"epsilon": 30.0, "delta": 1e-5, "unit": "node"}, "secagg": {}},
    }
    *quick, slow = SITES
    file = tmp_path / "go on"
    jobs = {name: write_job(tmp_path / name, plan_of(clients=ALL, evaluate={"every": 0}, **tables)) for name, tables in ways.items()}
    for job in jobs.values():
        (job.parent / "trial.py").write_text(WAITING.format(site=slow, file=file))
    runs = {name: replicas.submit(job) for name, job in jobs.items()}
    watched = {name: replicas.watch(run) for name, run in runs.items()}
    for events in watched.values():
        for site in quick:
            events.event("answered", phase="train", number=1, node=site)
    killed, epoch, _ = replicas.lease()
    replicas.coordinators[killed].kill()
    replicas.taken(epoch)
    replicas.start(killed)
    for site in quick:
        until(partial(given_again, replicas, site, runs["asked-again"]), f"{site} to answer again")
    file.touch()
    assert [events.wait().code for events in watched.values()] == [0, 0]
    for name, run in runs.items():
        assert [given(replicas, site, run) for site in SITES] == [["train 1", "train 2", "train 3"]] * len(SITES)
        stated = [replicas.ask("privacy", "statement", run, "--home", replicas.node_home(site))["epsilon"] for site in SITES]
        assert stated == pytest.approx([ways[name]["privacy"]["epsilon"]] * len(SITES), rel=1e-2)
