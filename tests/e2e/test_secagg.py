"""Secure aggregation through real processes: the bits of a plain run, whoever dies at whichever step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedscale.data import from_csv
from fedscale.plan import Plan
from fedscale_simulations.simulator import simulate
from tests.e2e import trial
from tests.e2e.conftest import declared
from tests.e2e.federation import Federation

SITES = ("ann", "bob", "cid", "dot")
ALL = {"wait_for": 4, "min_per_round": 3, "deadline": 60.0, "rejoin": 60.0}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Path]) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("masked")) as made:
        made.join_all(tables, lambda name: declared(tables[name]))
        yield made


def test_a_masked_run_comes_to_the_bits_of_a_plain_one(
    federation: Federation, job: Callable[..., Path], expected: Callable[[Path], str], tables: dict[str, Path]
) -> None:
    file = job(rounds=3, clients=ALL, secagg={})
    run = federation.submit(file)
    events = federation.watch(run)
    assert events.wait().code == 0, federation.record(run).reason
    record = federation.record(run)
    assert record.model_digest == expected(file)
    data = {name: from_csv(path, "y", group="patient") for name, path in tables.items()}
    assert simulate(trial.app, data, plan=Plan.load(file)).digest == record.model_digest
    assert record.extra["secagg"] == {"mode": "protocol", "profile": "malicious"}
    assert {row.answered for row in record.rounds} == {SITES}
    assert [row.sites for row in record.rounds] == [{}] * len(record.rounds)


def test_a_server_that_is_killed_at_any_step_goes_on_to_the_same_bits(
    federation: Federation, job: Callable[..., Path], expected: Callable[[Path], str]
) -> None:
    file = job(rounds=5, epochs=4, clients={**ALL, "min_per_round": len(SITES)}, secagg={})
    run = federation.submit(file)
    events = federation.watch(run)
    for number, step in enumerate(("keys", "shares", "", "consent", "opening"), 1):
        if step:
            events.event("spoke", phase="train", number=number, detail={"step": step})
        else:
            events.event("answered", phase="train", number=number)
        federation.server.kill()
        federation.start_server()
    assert events.wait().code == 0, federation.record(run).reason
    record = federation.record(run)
    assert {row.answered for row in record.rounds} == {SITES}
    assert record.model_digest == expected(file)


def test_a_node_that_dies_or_refuses_is_left_out_and_named(federation: Federation, job: Callable[..., Path]) -> None:
    file = job(rounds=3, epochs=30, clients=ALL, secagg={})
    run = federation.submit(file)
    events = federation.watch(run)
    # Its secrets die with it: back again it says why it cannot answer, and the others go on.
    federation.at_work("dot", run, 2)
    events.event("spoke", node="dot", phase="train", number=2, detail={"step": "shares"})
    federation.nodes["dot"].kill()
    federation.start_node("dot")
    back = events.event("failed", node="dot", phase="train", number=2)
    assert back["detail"]["cause"] == "policy"
    # Its vector is in the sum; the others open it without its help, as soon as it says that it cannot.
    events.event("spoke", node="dot", phase="train", number=3, detail={"step": "consent"})
    federation.nodes["dot"].kill()
    policy = federation.node_home("ann") / "policy.toml"
    federation.start_node("dot")
    assert events.wait().code == 0, federation.record(run).reason
    rounds = {row.number: row for row in federation.record(run).rounds if row.phase == "train"}
    assert rounds[2].answered == SITES[:3]
    assert "dot" in rounds[3].answered

    policy.write_text("min_cohort = 5\n")
    try:
        run = federation.submit(file, "strategy.rounds=1", "train.epochs=1")
        events = federation.watch(run)
        refusal = events.event("failed", node="ann", phase="train", number=1)
        assert events.wait().code == 0, federation.record(run).reason
    finally:
        policy.unlink()
    assert refusal["detail"]["cause"] == "policy"
    assert "the site asks for at least 5" in refusal["detail"]["what"]
    assert federation.record(run).rounds[0].answered == SITES[1:]
