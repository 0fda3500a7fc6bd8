"""Coordinator and nodes on hosts of their own: tickets and TLS over real addresses, cables that are pulled out, and an address that moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import declared
from tests.e2e.federation import until
from tests.e2e.hosts import Hosts, Switch, address, heard

SITES = ("ann", "bob", "cid")
ALL = {"wait_for": 3, "min_per_round": 3, "deadline": 120.0, "rejoin": 120.0}
pytestmark = [pytest.mark.requires("ip", "netns"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Path]) -> Iterator[Hosts]:
    with Switch() as switch, Hosts(tmp_path_factory.mktemp("hosts"), switch, SITES) as made:
        made.join_all(tables, lambda name: declared(tables[name]))
        yield made


def test_a_node_whose_cable_was_out_comes_back_to_its_round(hosts: Hosts, job: Callable[..., Path], expected: Callable[[Path], str]) -> None:
    # It works for many seconds, so that the cable is out long before it has done, however slow this machine is.
    file = job(rounds=1, epochs=100, clients=ALL)
    run = hosts.submit(file)
    events = hosts.watch(run)
    hosts.at_work("bob", run, 1)
    connected = heard(hosts.nodes["bob"], "connected")
    hosts.switch.pull("bob")
    try:
        # Nothing tells either side that the other one is gone: both find out by themselves.
        events.event("lost", node="bob")
    finally:
        hosts.switch.plug("bob")
    events.event("returned", node="bob")
    assert events.wait().code == 0, hosts.record(run).reason
    record = hosts.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    assert heard(hosts.nodes["bob"], "connected") > connected
    assert hosts.manage("server", "status")["address"].startswith(address(1))


def test_the_coordinators_host_dies_and_another_one_takes_its_address(
    hosts: Hosts, job: Callable[..., Path], expected: Callable[[Path], str]
) -> None:
    """Its disk is all that the new host has of it; the nodes go on sending to the address that they know."""
    file = job(rounds=2, epochs=60, clients=ALL)
    run = hosts.submit(file)
    events = hosts.watch(run)
    events.event("answered", phase="train", number=1)
    hosts.switch.pull(hosts.coordinator)
    hosts.server.kill()
    hosts.switch.host("two", 100)
    hosts.switch.give("two", 1)
    hosts.coordinator = "two"
    hosts.start_server()
    assert events.wait().code == 0, hosts.record(run).reason
    record = hosts.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)
    until(lambda: all(site["connected"] for site in hosts.manage("server", "status")["nodes"]), "all nodes at the new host")
