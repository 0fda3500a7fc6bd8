from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fedscale.aggregate import Mean
from fedscale.data import from_arrays
from fedscale.learner import Phase
from fedscale.ring import WORD, Words
from fedscale.sampling import derived_seed
from fedscale.strategy import fed_avg
from fedscale.task import layout_for
from fedscale.torch_learner import TorchLearner, blocks, one_thread
from fedscale.torch_learner.blocks import Blocks, Trainer
from fedscale.torch_learner.stacked import Stacked
from fedscale_simulations.engines.desk import Desk, keep
from fedscale_simulations.engines.forms import Alone, Waves, together
from tests.simulations.zoo import KINDS, ZOO, Kind, Stand, stand, summed, trained_together, updates

CONVOLVING = ("depthwise", "residual")
SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1},
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def mean(here: Stand, total: Words) -> tuple[np.ndarray[Any, Any], float, float]:
    """The weighted mean of the changes, the weight and the loss behind a sum."""
    layout = here.tasks.layout
    weight, sums = layout.tail(total)
    return layout.mean(total, weight), weight, float(sums["loss"][0])


def difference(here: Stand) -> float:
    """How far blocks are from clients alone, relative to the largest change of a weight; rounding of the ring left out."""
    form, alone = trained_together(here), {task.node: update for task, update in zip(here.tasks, updates(here), strict=True)}
    worst, largest = 0.0, max(float(np.abs(update.delta).max()) for update in alone.values())
    groups = [group for block in form.blocks(here.tasks) for group in form.alike(block)[0]]
    assert sum(len(group.rows) for group in groups) == len(here.tasks)
    for group in groups:
        learnt, _ = form.trained(group, here.model)
        mine = [alone[node] for node in group.tasks.nodes]
        weights = np.array([update.weight for update in mine])
        expected = sum(weight * update.delta.astype(np.float64) for weight, update in zip(weights, mine, strict=True)) / weights.sum()
        losses = np.array([update.metrics["loss"][0] for update in mine]) / weights
        worst = max(worst, float(np.abs(learnt.delta - expected).max()) / largest, float(np.abs(learnt.losses - losses).max()))
    return worst


# ------------------------------------------------------------------------------------------------------------------ alone


@pytest.mark.parametrize("name", ZOO)
def test_a_sum_is_the_bits_of_the_answers_one_by_one(name: str) -> None:
    here = stand(ZOO[name])
    expected = np.zeros(here.tasks.layout.length, WORD)
    for update in updates(here):
        expected += here.tasks.layout.encode(update)
    total, failed = summed(here, Alone(here.desk))
    assert failed == []
    assert (total == expected).all()


def by_hand(kind: Kind, here: Stand, seed: int) -> np.ndarray[Any, Any]:
    """The change that the loop which a user would write makes at the only client."""
    module, data = kind.model(), here.desk.data["client-0000"]
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in here.schema.unpack(here.model).items()}, strict=False)
    optimizer, bits = torch.optim.SGD(module.parameters(), 0.1), np.random.Philox(key=seed)
    torch.manual_seed(seed)
    for _ in range(here.plan.train.epochs):
        for rows in torch.from_numpy(np.argsort(bits.random_raw(len(data)), kind="stable")).split(10):
            optimizer.zero_grad()
            outputs, labels = module(torch.from_numpy(data.x)[rows]), torch.from_numpy(data.y)[rows]
            torch.autograd.backward(kind.loss(outputs[:, 0], labels.float()) if outputs.shape[1] == 1 else kind.loss(outputs, labels))
            optimizer.step()
    state = {name: entry.detach().numpy() for name, entry in module.state_dict().items() if entry.is_floating_point()}
    return here.schema.pack(state) - here.model


@pytest.mark.parametrize("name", ZOO)
def test_a_client_alone_takes_the_steps_of_a_plain_loop(name: str) -> None:
    here = stand(ZOO[name], rows=(24,))
    (mine,) = updates(here)
    expected = by_hand(ZOO[name], here, derived_seed(here.plan.job.seed, 1, "client-0000"))
    assert np.abs(mine.delta - expected).max() <= (1e-5 if name in CONVOLVING else 1e-6) * np.abs(expected).max()


def test_a_failure_leaves_the_sum_as_it_was() -> None:
    here = stand(ZOO["softmax"], aggregate={"weight_cap": 64.0, "bound": 1e-6})
    total, failed = summed(here, Alone(here.desk))
    assert [failure.node for failure in failed] == list(here.desk.data)
    assert not total.any()
    assert {failure.failure.what for failure in failed} == {"a value is beyond the agreed range"}


# --------------------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
@pytest.mark.parametrize("proximal", [0.0, 0.3])
@pytest.mark.parametrize("name", [name for name, kind in ZOO.items() if kind.together])
def test_blocks_are_the_clients_alone(name: str, setting: dict[str, float], proximal: float) -> None:
    strategy = {"name": "fedprox", "mu": proximal} if proximal else {"name": "fedavg"}
    train = {"batch_size": 10, "epochs": 2, "optimizer": setting, "device": "cpu"}
    assert difference(stand(ZOO[name], train=train, strategy=strategy)) <= (1e-5 if name in CONVOLVING else 1e-6)


@pytest.mark.parametrize(("epochs", "steps", "batch"), [(3, 4, 10), (2, None, 64), (5, 2, 3), (2, 7, 1)])
def test_blocks_stop_where_the_clients_stop(epochs: int, steps: int | None, batch: int) -> None:
    train = {"batch_size": batch, "epochs": epochs, "max_steps": steps, "optimizer": {"lr": 0.3}, "device": "cpu"}
    assert difference(stand(ZOO["deep"], train=train)) <= 1e-6


def test_of_more_rows_than_the_steps_take_only_those_are_laid_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blocks, "side_by_side")
    train = {"batch_size": 4, "epochs": 5, "max_steps": 5, "optimizer": SETTINGS[1], "device": "cpu"}
    assert difference(stand(ZOO["deep"], rows=(4, 300), train=train)) <= 1e-6


def test_both_forms_of_a_layer_are_the_clients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in (True, False):
        monkeypatch.setattr(blocks, "factors", lambda *_, wanted=wanted, **__: wanted)
        assert difference(stand(ZOO["deep"], train={"batch_size": 4, "epochs": 2, "optimizer": SETTINGS[3], "device": "cpu"})) <= 1e-6


def test_a_sum_of_blocks_is_the_weighted_mean() -> None:
    here = stand(ZOO["written"])
    one, many = (mean(here, summed(here, form)[0]) for form in (Alone(here.desk), trained_together(here)))
    assert np.abs(one[0] - many[0]).max() < 1e-5 * np.abs(one[0]).max() + 2.0**-20
    assert (one[1], one[2]) == (many[1], pytest.approx(many[2], rel=1e-5))
    assert one[1] == sum(len(data) for data in here.desk.data.values())


def test_all_count_the_same_where_the_strategy_says_so() -> None:
    here = stand(ZOO["written"], strategy={"name": "fedavg", "weighting": "equal"})
    one, many = (mean(here, summed(here, form)[0]) for form in (Alone(here.desk), trained_together(here)))
    assert one[1] == many[1] == len(here.tasks)
    assert np.abs(one[0] - many[0]).max() < 1e-5 * np.abs(one[0]).max() + 2.0**-20


def test_blocks_depend_on_the_clients_and_not_on_their_order() -> None:
    here = stand(ZOO["softmax"], rows=(20,) * 70 + (5,) * 3)
    form = trained_together(here)
    blocks = [block.nodes for block in form.blocks(here.tasks)]
    assert [len(block) for block in blocks] == [16, 16, 16, 16, 9]
    last = form.alike(form.blocks(here.tasks)[-1])[0]
    assert [len(group.rows) for group in last] == [6, 3]
    assert [len(block) for block in form.blocks(here.tasks.to(list(here.tasks.nodes) * 20))] == [64] * 22 + [52]
    assert [block.nodes for block in form.blocks(here.tasks.to(here.tasks.nodes[::-1]))] == blocks


def test_large_rows_make_small_blocks() -> None:
    trainer = trainer_of("softmax")
    assert isinstance(trainer, Blocks)
    assert trainer.most(20) == 64
    assert trainer.most(5000) == (1 << 20) // (10_000 * 12)
    assert trainer.most(10**6) == 1
    trainer = trainer_of("depthwise")
    assert isinstance(trainer, Stacked)
    assert trainer.most(20) == 64
    assert trainer.most(200) == (1 << 20) // (200 * 3 * 8 * 8)
    assert trainer.most(10**6) == 1


def trainer_of(name: str) -> Trainer:
    here = stand(ZOO[name])
    assert isinstance(here.desk.learner, TorchLearner)
    trainer, why = here.desk.learner.blocks(here.plan.train, 0.0, lambda: here.desk.data["client-0000"])
    assert trainer is not None
    assert why == ""
    return trainer


@pytest.mark.parametrize("name", [name for name, kind in ZOO.items() if not kind.together])
def test_other_models_are_never_trained_together(name: str) -> None:
    here = stand(ZOO[name])
    form, why = together(here.desk)
    assert form is None
    assert why


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"train": {"amp": True}}, "mixed precision is asked for; mixed precision is asked for"),
        ({"strategy": {"name": "fedavg", "clip_norm": 1.0}}, "the strategy changes each client's update by itself"),
    ],
)
def test_what_needs_each_client_is_not_trained_together(tables: dict[str, Any], why: str) -> None:
    assert together(stand(ZOO["softmax"], **tables).desk) == (None, why)


def test_evaluation_is_done_alone() -> None:
    here = stand(ZOO["softmax"])
    layout = layout_for(here.plan, Phase.EVALUATE, 0, len(here.tasks))
    tasks = replace(here.tasks, phase=Phase.EVALUATE, layout=layout)
    totals = []
    for form in (Alone(here.desk), trained_together(here)):
        totals.append(np.zeros(layout.length, WORD))
        for block in form.blocks(tasks):
            assert form.add(block, here.model, totals[-1]) == []
    assert (totals[0] == totals[1]).all()


@pytest.mark.parametrize("bad", [-1, KINDS])
def test_a_block_with_a_client_that_fails_is_done_one_by_one(bad: int) -> None:
    here = stand(ZOO["softmax"], rows=(20, 20, 20))
    data = dict(here.desk.data)
    labels = data["client-0001"].y.copy()
    labels[3] = bad
    data["client-0001"] = replace(data["client-0001"], y=labels)
    here = replace(here, desk=Desk(here.plan, here.desk.strategy, here.desk.learner, data))
    one, failed = summed(here, Alone(here.desk))
    many, also = summed(here, trained_together(here))
    assert [failure.node for failure in failed] == ["client-0001"]
    assert failed == also
    assert (one == many).all()


def test_a_client_whose_data_cannot_be_read_fails_alone() -> None:
    class Missing(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == "client-0002":
                raise OSError("gone")
            return super().__getitem__(name)

    here = stand(ZOO["softmax"])
    here = replace(here, desk=Desk(here.plan, here.desk.strategy, here.desk.learner, Missing(here.desk.data)))
    _, failed = summed(here, trained_together(here))
    assert [(failure.node, failure.failure.what) for failure in failed] == [("client-0002", "OSError: gone")]


# ------------------------------------------------------------------------------------------------------------------ waves


def test_waves_replace_whoever_failed_in_order() -> None:
    tasks = stand(ZOO["softmax"], rows=(5,) * 9).tasks
    waves, seen = Waves(tasks, 4), []
    for wave in waves:
        seen.append([node[-1] for node in wave.nodes])
        waves.missing += {1: 2, 2: 1}.get(len(seen), 0)
    assert seen == [["0", "1", "2", "3"], ["4", "5"], ["6"]]
    assert [len(wave) for wave in Waves(tasks, None)] == [9]
    assert list(Waves(tasks.to(()), None)) == []


# ------------------------------------------------------------------------------------------------------------------- desk


def test_what_is_kept_at_hand_is_bounded_by_memory() -> None:
    clients = ZOO["softmax"].clients((10,))
    assert keep(clients) == 4096
    assert keep({"a": from_arrays(np.zeros((1000, 4096)), np.zeros(1000))}) == 4
    assert keep({"a": TensorDataset(torch.zeros(1000, 8192), torch.zeros(1000))}) == 2
    assert keep({"a": "anything"}) == keep("nothing") == 4096


def test_answers_are_apart_where_somebody_looks_at_them() -> None:
    assert not stand(ZOO["softmax"]).desk.apart(Phase.TRAIN)
    assert stand(ZOO["softmax"]).desk.apart(Phase.EVALUATE)
    assert not stand(ZOO["softmax"], evaluate={"per_site": False}).desk.apart(Phase.EVALUATE)
    robust = replace(fed_avg(), aggregator=Nonlinear())
    here = stand(ZOO["softmax"]).desk
    assert Desk(here.plan, robust, here.learner, here.data).apart(Phase.TRAIN)


class Nonlinear(Mean):
    linear = False
