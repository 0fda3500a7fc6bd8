"""Secure aggregation in the simulator: the bits of a plain run, by the protocol or labelled as the exact sum without it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale import Secagg
from fedscale.errors import Cause, Failure, PlanError
from fedscale.events import Answered, Failed, Spoke, Tell
from fedscale.learner import Phase, Result, Work
from fedscale.names import Names
from fedscale.plan import Plan
from fedscale.record import summary
from fedscale_simulations import masks
from fedscale_simulations.masks import Identities, ground_of, wanted_of
from fedscale_simulations.simulator import simulate


class Drift:
    """Moves the model to the mean of a client's numbers; a client whose first number is negative breaks down."""

    def run(self, work: Work) -> Result:
        if work.arrays is None:
            return Result({"w": np.zeros(4, np.float32)}, 0)
        model, rows = work.arrays["w"], np.asarray(work.data, np.float32)
        if rows[0] < 0:
            raise ValueError("broken")
        loss = {"loss": np.array([float(np.square(rows - model[0]).sum())])}
        if work.phase is Phase.EVALUATE:
            return Result(None, len(rows), loss)
        return Result({"w": model + np.float32(0.5) * (rows.mean() - model)}, len(rows), loss)


DATA = {f"c{at}": [at / 8, at / 4, 0.3][: 2 + at % 2] for at in range(7)}
KEPT: dict[str, Any] = {"rounds": 3, "engine": "sequential"}


@pytest.fixture(scope="module")
def plain() -> str:
    """The digest of the model without masks."""
    return simulate(Drift(), DATA, **KEPT).digest


@pytest.mark.parametrize("secagg", [True, "protocol", Secagg(profile="curious"), {"dropout": 0.1}])
def test_the_protocol_gives_the_bits_of_a_plain_run(secagg: Any, plain: str) -> None:
    ended = simulate(Drift(), DATA, secagg=secagg, **KEPT)
    assert (ended.status, ended.digest) == ("completed", plain)
    assert ended.record.extra["secagg"]["mode"] == "protocol"  # type: ignore[index,call-overload]
    assert summary(ended.record)["secagg"] == "protocol"
    assert "secagg    protocol (" in ended.summary()
    assert [row.sites for row in ended.record.rounds] == [{}] * 6


@pytest.mark.timeout(600)
def test_a_thousand_clients_run_the_protocol_and_a_tenth_drops_out_at_random_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the random graph; the model is that of a plain run of those whose vectors arrived."""
    rng, stages = random.Random(5), ("keys", "agreement", "shares", "vector", "opening")
    data = {f"c{at:04}": [at / 1000, at / 2000] for at in range(1000)}
    drops = {name: rng.choice(stages) for name in rng.sample(sorted(data), 100)}
    lost, hear, mask = Failure(Cause.LOST, "the device dropped out"), masks.Circle.hear, masks.Circle.mask

    def faltering(self: masks.Circle, tell: Tell) -> Spoke | Failed | None:
        return Failed(tell.node, lost) if drops.get(tell.node) == tell.step != "vector" else hear(self, tell)

    def missing(self: masks.Circle, answer: Answered) -> Answered | Failed:
        return mask(self, answer) if drops.get(answer.node, "opening") == "opening" else Failed(answer.node, lost)

    monkeypatch.setattr(masks.Circle, "hear", faltering)
    monkeypatch.setattr(masks.Circle, "mask", missing)
    tables = {"clients": {"min_per_round": 800, "deadline": 600.0}, "evaluate": {"every": 0}, "strategy": {"rounds": 1}}
    secret = {"profile": "curious", "adversarial": 0.05, "dropout": 0.1}
    plan = Plan.model_validate({"job": {"name": "thousand"}, "secagg": secret, **tables})
    ended = simulate(Drift(), data, plan=plan, secagg="protocol", engine="sequential")
    assert ended.status == "completed", ended.record.reason
    [row] = ended.record.rounds
    assert set(row.answered) == {name for name in data if drops.get(name, "opening") == "opening"}
    monkeypatch.undo()
    there = {name: data[name] for name in row.answered}
    bare = Plan.model_validate({"job": {"name": "thousand"}, **tables})
    assert ended.digest == simulate(Drift(), there, plan=bare, engine="sequential").digest


def test_the_exact_mode_gives_them_too_and_says_what_it_is(plain: str) -> None:
    ended = simulate(Drift(), DATA, secagg="exact", **KEPT)
    assert ended.digest == plain
    assert "secagg    exact (asked for)" in ended.summary()
    assert [row.sites for row in ended.record.rounds] == [{}] * 6


def test_a_plain_run_says_nothing_of_masks(plain: str) -> None:
    ended = simulate(Drift(), DATA, secagg=False, **KEPT)
    assert ended.digest == plain
    assert "secagg" not in ended.record.extra
    assert "secagg" not in ended.summary()
    assert "secagg" not in summary(ended.record)


def test_a_narrow_ring_sends_less_and_comes_close() -> None:
    plan: dict[str, Any] = {"aggregate": {"weight_cap": 4.0}}
    wide, narrow = (simulate(Drift(), DATA, secagg=Secagg(bits=bits), **KEPT, **plan) for bits in (32, 24))
    # Four coordinates and two numbers of five limbs: 14 words to train, 10 to evaluate.
    assert (wide.record.bytes_up, narrow.record.bytes_up) == (16 + 3 * 7 * (56 + 40), 16 + 3 * 7 * (44 + 32))
    assert np.abs(wide.model["w"] - narrow.model["w"]).max() < 1e-3
    assert wide.digest != narrow.digest


def test_clients_that_break_down_are_left_out_and_named() -> None:
    data = {**DATA, "c9": [-1.0, 2.0]}
    masked, plain = (simulate(Drift(), data, secagg=secagg, clients={"min_per_round": 3}, **KEPT) for secagg in (True, None))
    assert (masked.status, masked.digest) == ("completed", plain.digest)
    assert {row.failures["c9"].cause for row in masked.record.rounds} == {Cause.CODE}


def test_too_many_that_break_down_end_the_run() -> None:
    data = {**DATA, "c7": [-1.0], "c8": [-1.0], "c9": [-1.0], "d1": [-2.0]}
    ended = simulate(Drift(), data, secagg=True, **KEPT)
    assert ended.status == "failed"
    assert "the sum cannot be opened" in ended.record.reason


def test_devices_that_drop_out_are_survived_in_virtual_time() -> None:
    kept: dict[str, Any] = {**KEPT, "rounds": 2, "devices": {"dropout": 0.1}, "clients": {"min_per_round": 3, "rejoin": 1.0}}
    data = {f"c{at:02}": [at / 8, 0.5] for at in range(16)}
    masked, plain = (simulate(Drift(), data, secagg=secagg, **kept) for secagg in (True, None))
    assert masked.status == "completed"
    assert masked.digest == plain.digest
    assert any(row.failures for row in masked.record.rounds)


def test_resuming_goes_on_under_masks(tmp_path: Path, plain: str) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.closed and (progress.closed.phase, progress.closed.number) == ("train", 2):
            raise Enough

    with pytest.raises(Enough):
        simulate(Drift(), DATA, secagg=True, folder=tmp_path, on_progress=stop, **KEPT)
    assert simulate(Drift(), DATA, secagg=True, resume=tmp_path, **KEPT).digest == plain


def test_the_default_needs_three_and_too_few_clients_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^clients\.min_per_round: 3 clients are needed and there are only 2; simulate more"):
        simulate(Drift(), dict(list(DATA.items())[:2]), secagg=True, clients={"deadline": 5.0}, **KEPT)
    with pytest.raises(PlanError, match="secure aggregation needs at least 3"):
        simulate(Drift(), DATA, secagg=True, clients={"min_per_round": 2}, **KEPT)


def test_modes_are_told_apart() -> None:
    assert wanted_of(None) == wanted_of(False) == (None, "auto")
    assert wanted_of(True) == (Secagg(), "auto")
    assert wanted_of("exact") == (Secagg(), "exact")
    assert wanted_of({"bits": 24}) == ({"bits": 24}, "auto")
    with pytest.raises(PlanError, match="there is no secure aggregation 'quick'; known: auto, protocol, exact"):
        wanted_of("quick")  # type: ignore[arg-type]
    plan = Plan.model_validate({"job": {"name": "p"}})
    with pytest.raises(PlanError, match="secure aggregation 'exact' is asked for and the plan has none"):
        simulate(Drift(), DATA, plan=plan, secagg="exact")
    with pytest.raises(PlanError, match="a plan is given and 'secagg' as well"):
        simulate(Drift(), DATA, plan=plan, secagg=True)


@pytest.mark.parametrize(
    ("clients", "tables", "mode"),
    [
        (masks.FEW, {}, "protocol"),
        (masks.FEW + 1, {}, "exact"),
        (1000, {"clients": {"select": 5, "min_per_round": 3}, "evaluate": {"select": 8}}, "protocol"),
        (1000, {"clients": {"select": 5, "min_per_round": 3}}, "exact"),
        (1000, {"clients": {"select": 5, "min_per_round": 3}, "evaluate": {"every": 0}}, "protocol"),
    ],
)
def test_large_cohorts_take_the_exact_sum(clients: int, tables: dict[str, Any], mode: str) -> None:
    plan = Plan.model_validate({"job": {"name": "p"}, "secagg": {}, "clients": {"min_per_round": 3}} | tables)
    facts: dict[str, Any] = {}
    assert ground_of(plan, clients, "auto", facts).protocol is (mode == "protocol")
    assert facts["secagg"]["mode"] == mode


def test_identities_are_made_when_they_are_asked_for() -> None:
    names = Names.of(("b", "a"))
    known, again = Identities(names, 3), Identities(names, 3)
    assert (known["a"], len(known), sorted(known)) == (again["a"], 2, ["a", "b"])
    assert len({known["a"], known["b"], Identities(names, 4)["a"]}) == 3
    assert len(bytes.fromhex(known["a"])) == 32
    assert ("a" in known, "z" in known) == (True, False)
