"""Whole clients hidden while many are trained at once: the changes, the norms, the bits and the noise of clients one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

import fedscale as fs
from fedscale.data import from_arrays
from fedscale.learner import Phase
from fedscale.privacy import rounds
from fedscale.privacy.clip import BIT, norm_of
from fedscale.task import layout_for
from fedscale.torch_learner import blocks, one_thread
from fedscale_simulations.engines import desk, forms
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Alone, together
from fedscale_simulations.simulator import simulate
from tests.simulations.zoo import KINDS, ZOO, Stand, stand, summed, trained_together, updates

NODE: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "unit": "node"}
TREE = NODE | {"mechanism": "ftrl", "tree_rounds": 1}
SHARES: dict[str, Any] = {"secagg": {"enabled": True}, "clients": {"min_per_round": 3}}
SETTINGS = [
    ({"lr": 0.1}, 0.0),
    ({"lr": 0.1, "momentum": 0.9}, 0.3),
    ({"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}, 0.0),
]
TOGETHER = [name for name, kind in ZOO.items() if kind.together]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, whatever is asked for."""
    for module in (desk, forms):
        monkeypatch.setattr(module, "noise_of", lambda *_: None)


def half(norms: dict[str, float]) -> float:
    """A clip that half of the clients stay within, and none reaches to the digit."""
    below, above = sorted(norms.values())[len(norms) // 2 - 1 : len(norms) // 2 + 1]
    return (below + above) / 2


def norms_alone(name: str, **tables: Any) -> dict[str, float]:
    """The norm of what each client learns by itself."""
    here = stand(ZOO[name], **tables)
    return {task.node: norm_of(update.delta) for task, update in zip(here.tasks, updates(here), strict=True)}


def errors(name: str, privacy: dict[str, Any] = TREE, **tables: Any) -> tuple[float, float]:
    """How far norms and sums of clipped changes of blocks are from those of clients alone, relative to norms and largest coordinate."""
    norms = norms_alone(name, **tables)
    here = stand(ZOO[name], privacy=privacy | {"clip": half(norms)}, **tables)
    alone, form = {task.node: update for task, update in zip(here.tasks, updates(here), strict=True)}, trained_together(here)
    off, apart = 0.0, 0.0
    groups = [group for block in form.blocks(here.tasks) for group in form.alike(block)[0]]
    assert max(len(group.rows) for group in groups) > 1
    for group in groups:
        learnt, weights = form.trained(group, here.model)
        assert weights == [1.0] * len(group.rows)
        expected = np.mean([alone[node].delta.astype(np.float64) for node in group.tasks.nodes], axis=0)
        off = max(off, *np.abs(learnt.norms / [norms[node] for node in group.tasks.nodes] - 1))
        apart = max(apart, float(np.abs(learnt.delta - expected).max() / np.abs(expected).max()))
    return off, apart


@pytest.mark.parametrize(("optimizer", "proximal"), SETTINGS, ids=["plain", "momentum-pull", "momentum-decay"])
@pytest.mark.parametrize("name", TOGETHER)
def test_clipped_blocks_are_the_clipped_clients_alone(name: str, optimizer: dict[str, float], proximal: float) -> None:
    strategy = {"name": "fedprox", "mu": proximal} if proximal else {"name": "fedavg"}
    off, apart = errors(name, train={"batch_size": 10, "epochs": 2, "optimizer": optimizer, "device": "cpu"}, strategy=strategy)
    assert off <= 1e-5
    assert apart <= 1e-5


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(("epochs", "steps"), [(2, None), (1, None), (3, 4)])
def test_both_forms_of_a_layer_are_clipped_alike(epochs: int, steps: int | None, *, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "factors", lambda *_, **__: wanted)
    train = {"batch_size": 4, "epochs": epochs, "max_steps": steps, "optimizer": SETTINGS[2][0], "device": "cpu"}
    off, apart = errors("deep", train=train, strategy={"name": "fedprox", "mu": 0.2})
    assert off <= 1e-5
    assert apart <= 1e-5


def test_a_clip_that_nobody_reaches_changes_nothing() -> None:
    equal: dict[str, Any] = {"strategy": {"name": "fedavg", "weighting": "equal"}}
    plain, clipped = stand(ZOO["deep"], **equal), stand(ZOO["deep"], **equal, privacy=TREE | {"clip": 1e3})
    for group in trained_together(plain).alike(plain.tasks)[0]:
        with_clip, without = (trained_together(here).trained(group, here.model)[0] for here in (clipped, plain))
        assert np.abs(with_clip.delta - without.delta).max() <= 1e-6 * np.abs(without.delta).max()
        assert len(without.norms) == 0


# ----------------------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("name", ["written", "reader", "tokens"])
def test_a_sum_has_the_weight_and_the_changes_of_clients_alone(name: str) -> None:
    here = stand(ZOO[name], privacy=TREE | {"clip": half(norms_alone(name))})
    layout = here.tasks.layout
    one, many = (summed(here, form) for form in (Alone(here.desk), trained_together(here)))
    assert one[1] == many[1] == []
    assert layout.tail(one[0]) == layout.tail(many[0]) == (len(here.tasks), {})
    means = [layout.mean(total, len(here.tasks)) for total, _ in (one, many)]
    assert np.abs(means[0] - means[1]).max() <= 1e-5 * np.abs(means[0]).max() + 2.0**-layout.format.exponent


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("moved", [0.0, 0.4, 1.5])
def test_as_many_say_that_they_are_within_a_moving_clip(moved: float) -> None:
    norms = norms_alone("written")
    clip = half(norms)
    here = stand(ZOO["written"], privacy=NODE | {"clip": clip, "clip_quantile": 0.5}, **SHARES)
    layout = layout_for(here.plan, Phase.TRAIN, here.schema.size, len(here.tasks), moved * clip)
    here = replace(here, tasks=replace(here.tasks, layout=layout))
    clip = moved * clip or clip
    inside = sum(norm <= clip for norm in norms.values())
    expected = BIT * clip * (2 * inside - len(norms)) / len(norms)
    for form in (Alone(here.desk), trained_together(here)):
        total, failed = summed(here, form)
        assert failed == []
        mean = layout.mean(total, len(here.tasks))
        assert mean.shape == (here.schema.size + 1,)
        assert mean[-1] == pytest.approx(expected, rel=1e-4, abs=2.0 ** -(layout.format.exponent - 1))
        assert np.linalg.norm(mean[:-1]) <= clip


def noise_in(here: Stand, monkeypatch: pytest.MonkeyPatch, *, many: bool) -> np.ndarray[Any, Any]:
    """What is in a sum beyond the changes, in steps of the ring."""
    form = trained_together(here) if many else Alone(here.desk)
    loud, _ = summed(here, form)
    with monkeypatch.context() as patched:
        for module in (desk, forms):
            patched.setattr(module, "noise_of", lambda *_: None)
        quiet, _ = summed(here, form)
    return (loud - quiet)[: here.tasks.layout.size].view(np.int32).astype(np.float64)


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("moving", [{}, {"clip_quantile": 0.5}])
def test_a_sum_has_the_noise_of_every_clients_share(moving: dict[str, float], monkeypatch: pytest.MonkeyPatch, *, many: bool) -> None:
    here = stand(ZOO["deep"], privacy=NODE | moving, **SHARES)
    task, (plan, dp) = here.tasks.task(here.tasks.nodes[0]), (here.plan, here.plan.privacy)
    private = here.desk.private(task)
    assert dp is not None
    assert private is not None
    each = rounds.in_shares(private, rounds.reach(dp, plan.train), task.layout.size, task.layout.format.exponent, plan.shares)
    found = noise_in(here, monkeypatch, many=many)
    assert found.std() == pytest.approx(each * len(here.tasks) ** 0.5, rel=0.05)
    assert abs(found.mean()) < 5 * found.std() / len(found) ** 0.5
    assert np.mean(found**4) / found.var() ** 2 == pytest.approx(3.0, rel=0.2)
    again = noise_in(here, monkeypatch, many=many)
    assert (found == again).all(), "a simulation can be repeated"


def test_a_tree_leaves_the_noise_to_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not noise_in(stand(ZOO["deep"], privacy=TREE), monkeypatch, many=True).any()


# --------------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize("privacy", [{"privacy": TREE}, {"privacy": NODE, **SHARES}], ids=["tree", "shares"])
def test_a_block_with_a_client_that_fails_is_done_one_by_one(privacy: dict[str, Any]) -> None:
    here = stand(ZOO["softmax"], rows=(20, 20, 20), **privacy)
    broken = here.desk.data["client-0001"]
    data = {**here.desk.data, "client-0001": replace(broken, y=np.full_like(broken.y, KINDS))}
    here = replace(here, desk=Desk(here.plan, here.desk.strategy, here.desk.learner, data))
    one, many = (summed(here, form) for form in (Alone(here.desk), trained_together(here)))
    assert [failure.node for failure in one[1]] == ["client-0001"]
    assert one[1] == many[1]
    assert (one[0] == many[0]).all()


def test_a_norm_that_is_no_number_passes_no_clip() -> None:
    here = stand(ZOO["written"], privacy=TREE, train={"batch_size": 10, "epochs": 2, "optimizer": {"lr": 1e30}, "device": "cpu"})
    failed = []
    for form in (Alone(here.desk), trained_together(here)):
        total, told = summed(here, form)
        assert not total.any()
        failed.append(sorted((failure.node, failure.failure.what) for failure in told))
    assert failed[0] == failed[1]
    assert len(failed[0]) == len(here.tasks)


def test_a_ring_too_coarse_for_the_noise_is_refused_for_everybody() -> None:
    here = stand(ZOO["deep"], privacy=NODE, **SHARES)
    layout = layout_for(here.plan, Phase.TRAIN, here.schema.size, 1 << 16)
    here = replace(here, tasks=replace(here.tasks, layout=layout))
    for form in (Alone(here.desk), trained_together(here)):
        total, failed = summed(here, form)
        assert not total.any()
        assert {failure.node for failure in failed} == set(here.desk.data)
        assert all(failure.failure.what.startswith("the ring is too coarse for noise in shares") for failure in failed)


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_rows_are_hidden_by_each_client_itself(unit: str) -> None:
    here = stand(ZOO["softmax"], privacy=NODE | {"unit": unit})
    assert together(here.desk) == (None, "the plan hides the rows of each client")


# ---------------------------------------------------------------------------------------------------------------- whole runs


def ran(engine: str, workers: int = 1, **how: Any) -> Any:
    rng = np.random.default_rng(5)
    labels = np.arange(600) % 2
    data = from_arrays(rng.normal(size=(600, 8)) + labels[:, None], labels).partition("quantity", 20, 5, alpha=2.0)
    app = fs.App(model=lambda: nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 2)), loss=nn.functional.cross_entropy)
    run = simulate(app, data, rounds=3, engine=engine, workers=workers, evaluate={"every": 0}, **how)
    assert run.status == "completed", run.record.reason
    return run


def test_a_run_says_and_learns_the_same_in_blocks() -> None:
    dp = fs.DP(epsilon=500, delta=1e-5, unit="node", mechanism="ftrl", tree_rounds=1, clip=0.1)
    one, many, two = (ran(engine, workers, privacy=dp) for engine, workers in (("sequential", 1), ("vectorized", 1), ("vectorized", 2)))
    assert one.record.extra["engine"]["form"] == "sequential"
    assert many.record.extra["engine"]["form"] == "vectorized"
    assert many.record.extra["privacy"] == one.record.extra["privacy"]
    assert many.digest == two.digest != one.digest
    for name, array in one.model.items():
        assert np.abs(array - many.model[name]).max() <= 1e-5 * np.abs(array).max()


def test_a_moving_clip_moves_alike_in_blocks() -> None:
    dp = fs.DP(epsilon=5000, delta=1e-5, unit="node", clip=0.3, clip_quantile=0.4)
    runs = [ran(engine, privacy=dp, secagg="exact") for engine in ("sequential", "vectorized")]
    clips = [[row.metrics["clip"] for row in run.record.rounds] for run in runs]
    assert clips[0] == pytest.approx(clips[1], rel=0.02)
    assert len(set(clips[0])) == 3
    assert runs[0].record.extra["privacy"] == runs[1].record.extra["privacy"]


def test_without_a_word_nothing_is_done_in_blocks() -> None:
    dp = fs.DP(epsilon=500, delta=1e-5, unit="node", mechanism="ftrl", tree_rounds=1)
    assert ran("auto", privacy=dp).record.extra["engine"]["form"] == "sequential"
