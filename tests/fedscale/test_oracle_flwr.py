"""Our mean-type strategies against Flower's own, and what each of the two makes of a poisoned answer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedscale.errors import Cause, Failure, UpdateRejected
from fedscale.events import Failed, Roster
from fedscale.learner import Phase, Result
from fedscale.metrics import BINS
from fedscale.plan import Plan
from fedscale.ring import LIMBS
from fedscale.task import Task, perform
from fedscale.update import Update
from fedscale.vector import Arrays, Schema, Tensor
from tests.fedscale.world import World, plan_of

pytestmark = pytest.mark.requires("flower")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

SHAPES = {"conv.weight": (4, 3, 3), "conv.bias": (4,), "head.weight": (2, 36), "head.bias": (2,), "scale": ()}
SCHEMA = Schema(tuple(Tensor(name, shape) for name, shape in SHAPES.items()))
NODES = tuple(f"site-{n}" for n in range(5))
BOUNDS = {"bound": 2.0, "weight_cap": 1024}


@pytest.fixture(scope="module")
def flower() -> Iterator[Any]:
    """``flwr.app`` and the strategies; importing and using them emits warnings of its own, which are nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr import app
        from flwr.serverapp import strategy

        yield type("Flower", (), {"app": app, "strategy": strategy})


class NoGrid:
    """Nobody is asked through Flower: the strategies only aggregate."""

    def get_node_ids(self) -> list[int]:
        return []


@dataclass
class Theirs:
    """A Flower strategy and the model it holds."""

    flower: Any
    strategy: Any
    model: dict[str, npt.NDArray[Any]]

    def reply(self, node: int, arrays: Arrays, weight: Any, loss: float = 0.5) -> Any:
        app = self.flower.app
        content = app.RecordDict(
            {
                "arrays": app.ArrayRecord({name: app.Array(np.asarray(array)) for name, array in arrays.items()}),
                "metrics": app.MetricRecord({"num-examples": weight, "loss": loss}),
            }
        )
        metadata = app.Metadata(
            run_id=1,
            message_id=f"m{node}",
            src_node_id=node + 1,
            dst_node_id=1,
            reply_to_message_id="",
            group_id="",
            created_at=0.0,
            ttl=60.0,
            message_type="train",
        )
        return app.Message(content=content, metadata=metadata)

    def step(self, number: int, replies: list[Any]) -> dict[str, npt.NDArray[Any]]:
        """One round; with a fraction of 0 ``configure_train`` notes the global model and samples nobody."""
        app = self.flower.app
        arrays = app.ArrayRecord({name: app.Array(array) for name, array in self.model.items()})
        config = app.ConfigRecord()
        assert list(self.strategy.configure_train(number, arrays, config, NoGrid())) == []
        mixed, _ = self.strategy.aggregate_train(number, replies)
        self.model = {name: array.numpy() for name, array in mixed.items()}
        return self.model


def theirs(flower: Any, name: str, model: dict[str, npt.NDArray[Any]], **arguments: float) -> Theirs:
    make = getattr(flower.strategy, name)
    return Theirs(flower, make(fraction_train=0.0, **arguments), model)


PAIRS: dict[str, tuple[str, dict[str, float], dict[str, float]]] = {
    "fedavg": ("FedAvg", {}, {}),
    "fedavgm": ("FedAvgM", {"lr": 0.7, "momentum": 0.8}, {"server_learning_rate": 0.7, "server_momentum": 0.8}),
    "fedadam": (
        "FedAdam",
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    ),
    "fedyogi": (
        "FedYogi",
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
        {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    ),
    "fedadagrad": ("FedAdagrad", {"lr": 0.1, "tau": 1e-3}, {"eta": 0.1, "tau": 1e-3}),
    "fedprox": ("FedProx", {"mu": 0.1}, {"proximal_mu": 0.1}),
}


def random_model(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def flat(model: Arrays) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(model[name], np.float64).ravel() for name in SHAPES])


def opened(plan: Plan, model: Arrays) -> World:
    """Our run with its first round open."""
    here = World(plan, schema=SCHEMA)
    here.start(*NODES, model=SCHEMA.pack(model))
    here.send(Roster(NODES))
    return here


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PAIRS)
def test_each_strategy_equals_flowers_own(flower: Any, name: str, seed: int, dtype: type[np.floating[Any]]) -> None:
    """To 1e-6 of the largest magnitude of the model, over five rounds with uneven sites, each side keeping its own model and state.

    Flower computes in the dtype it is given: in float64 it is the reference. In float32 its own rounding is amplified by 1 / tau
    where an adaptive step divides by nearly nothing, so there tau is larger.
    """
    their_name, ours, arguments = PAIRS[name]
    if dtype is np.float32 and name in {"fedadam", "fedyogi", "fedadagrad"}:
        arguments, ours = {**arguments, "tau": 0.1}, {**ours, "tau": 0.1}
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    other = theirs(flower, their_name, {k: v.astype(dtype) for k, v in model.items()}, **arguments)
    here = opened(plan_of(strategy={"name": name, "rounds": 5, **ours}, aggregate=BOUNDS, evaluate={"every": 0}), model)
    for number in range(1, 6):
        assert here.run.number == number
        replies = []
        for node in rng.permutation(len(NODES)):
            delta = {k: np.asarray(np.clip(rng.normal(0, 0.4, shape), -1.9, 1.9), np.float32) for k, shape in SHAPES.items()}
            weight = int(rng.integers(50, 1001))
            replies.append(other.reply(int(node), {k: other.model[k] + delta[k].astype(dtype) for k in SHAPES}, weight))
            here.answer(NODES[node], SCHEMA.pack(delta), float(weight), loss=weight * 0.5)
        expected = flat(other.step(number, replies))
        assert here.run.model is not None
        error = np.abs(here.run.model - expected).max() / np.abs(expected).max()
        assert error <= 1e-6, f"round {number}: {error:.2e}"
        here.send(Roster(NODES))
    assert here.run.status == "completed"


def test_fedprox_tells_the_nodes_its_strength(flower: Any) -> None:
    other = theirs(flower, "FedProx", random_model(np.random.default_rng(0)), proximal_mu=0.1)
    config = flower.app.ConfigRecord()
    other.strategy.configure_train(1, flower.app.ArrayRecord(), config, NoGrid())
    plan = plan_of(strategy={"name": "fedprox", "mu": 0.1})
    assert config["proximal-mu"] == plan.strategy.build().proximal == 0.1


# ------------------------------------------------------------------------------------------------------------- poison

MODEL = random_model(np.random.default_rng(7))
RAW = 100.0


@dataclass(frozen=True)
class Poison:
    """A bad answer: what the learner returns and what it says it weighs, or the very words a forged client sends.

    ``flower`` says what Flower makes of it: ``nan`` and ``moved`` are models it accepts, anything else the exception it raises.
    """

    flower: str
    what: str
    where: str = ""
    why: str = ""
    arrays: Callable[[dict[str, npt.NDArray[Any]]], object] = lambda arrays: None
    weight: float = RAW
    words: Callable[[npt.NDArray[np.uint32], int], object] | None = None


def put(name: str, value: float) -> Callable[[dict[str, npt.NDArray[Any]]], object]:
    """Overwrite the last coordinate of a tensor."""

    def change(arrays: dict[str, npt.NDArray[Any]]) -> None:
        arrays[name] = np.array(arrays[name])
        arrays[name].flat[-1] = value

    return change


def limbs(number: int) -> list[int]:
    """A weight as a forged client may write it."""
    return [(number << 20 >> 12 * at) & 0xFFF for at in range(LIMBS)]


def write(number: int) -> Callable[[npt.NDArray[np.uint32], int], object]:
    def change(words: npt.NDArray[np.uint32], size: int) -> None:
        words[size : size + LIMBS] = limbs(number)

    return change


WEIGHT = "the weight of an answer is not within its bounds"
WHY_WEIGHT = "it must be above 0 and at most 1024"
LAST = SCHEMA.size - 1
POISONS = {
    "NaN": Poison("nan", "a value is not finite", f"coordinate {LAST}", arrays=put("scale", np.nan)),
    "Inf": Poison("nan", "a value is not finite", f"coordinate {LAST}", arrays=put("scale", np.inf)),
    "-Inf in the middle": Poison("nan", "a value is not finite", "coordinate 39", arrays=put("conv.bias", -np.inf)),
    "float32's largest": Poison("moved", "a value is beyond the agreed range", f"coordinate {LAST}", arrays=put("scale", 3e38)),
    "a value just beyond the bound": Poison("moved", "a value is beyond the agreed range", "coordinate 39", arrays=put("conv.bias", 5.0)),
    "weight 1e30": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=1e30),
    "weight -9": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=-9.0),
    "weight 0": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=0.0),
    "weight NaN": Poison("nan", WEIGHT, why=WHY_WEIGHT, weight=np.nan),
    "weight Inf": Poison("nan", WEIGHT, why=WHY_WEIGHT, weight=np.inf),
    "a shape that broadcasts": Poison(
        "moved", "tensor 'conv.bias' has shape (1,), the model has (4,)", arrays=lambda a: a.update({"conv.bias": a["conv.bias"][:1]})
    ),
    "a shape that does not": Poison(
        "ValueError", "tensor 'conv.bias' has shape (3,), the model has (4,)", arrays=lambda a: a.update({"conv.bias": a["conv.bias"][:3]})
    ),
    "a transposed matrix": Poison(
        "ValueError", "tensor 'head.weight' has shape (36, 2), the model has (2, 36)", arrays=lambda a: a.update({"head.weight": a["head.weight"].T})
    ),
    "int64 for float32": Poison(
        "moved",
        "tensor 'head.bias' is of dtype int64, the model has float32",
        arrays=lambda a: a.update({"head.bias": a["head.bias"].astype(np.int64) + 3}),
    ),
    "a tensor is missing": Poison("InconsistentMessageReplies", "tensor 'scale' is missing from the answer", arrays=lambda a: a.pop("scale")),
    "a tensor too many": Poison(
        "InconsistentMessageReplies", "tensor 'back.door' is not part of the model", arrays=lambda a: a.update({"back.door": np.zeros(2, np.float32)})
    ),
    "forged weight above the cap": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=2.0**37, words=write(1 << 37)),
    "forged weight below zero": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=-9.0, words=write(-9)),
    "forged weight of nothing": Poison("moved", WEIGHT, why=WHY_WEIGHT, weight=0.0, words=write(0)),
    "forged limb": Poison(
        "",
        "the weight or a metric of an answer is malformed",
        why="one answer has limbs of 12 bits",
        words=lambda words, size: words.__setitem__(size, 1 << 12),
    ),
    "forged coordinate": Poison(
        "moved",
        "a value is beyond the agreed range",
        "coordinate 5",
        arrays=lambda a: a.update({"conv.weight": a["conv.weight"] * 1e6}),
        words=lambda words, size: words.__setitem__(5, 1 << 29),
    ),
    "forged loss": Poison(
        "", "metric 'loss' is too large", why="the limit is 54975581389", words=lambda words, size: words[size + LIMBS :].fill(0x7FF)
    ),
}


def honest(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    return {name: array + np.asarray(np.clip(rng.normal(0, 0.3, array.shape), -1, 1), np.float32) for name, array in MODEL.items()}


def in_ring(poison: Poison, here: World, node: str, arrays: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    """The poisoned answer as it would be sent: through the node's own checks, or forged past them."""
    layout = here.round.terms.layout
    weight = RAW if poison.words else poison.weight
    delta = np.zeros(SCHEMA.size, np.float32) if poison.words else SCHEMA.pack(arrays) - SCHEMA.pack(MODEL)
    words = layout.encode(Update(delta, weight, {"loss": np.array([RAW / 2])}))
    if poison.words:
        poison.words(words, layout.size)
    return words


@pytest.mark.parametrize("name", POISONS)
def test_poison_does_not_touch_the_round(name: str) -> None:
    poison = POISONS[name]
    plan = plan_of(strategy={"rounds": 1}, aggregate=BOUNDS, evaluate={"every": 0})
    clean, here = opened(plan, MODEL), opened(plan, MODEL)
    bad = dict(honest(np.random.default_rng(99)))
    poison.arrays(bad)
    with pytest.raises(UpdateRejected) as caught:
        here.round.terms.layout.check(in_ring(poison, here, NODES[-1], bad))
    error = caught.value
    assert (error.what, error.where, error.why) == (poison.what, poison.where, poison.why)
    for world, failure in ((here, Failure(Cause.REJECTED, error.what, error.where, error.hint)), (clean, Failure(Cause.LOST, "was never there"))):
        world.send(Failed(NODES[-1], failure))
        for at, node in enumerate(NODES[:-1]):
            delta = SCHEMA.pack(honest(np.random.default_rng(at))) - SCHEMA.pack(MODEL)
            world.answer(node, delta, 100.0 + at, loss=50.0)
    assert here.run.status == clean.run.status == "completed"
    assert here.run.digest == clean.run.digest
    assert here.run.history[0].metrics == clean.run.history[0].metrics
    assert here.run.history[0].failures[NODES[-1]].what == poison.what


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in POISONS if POISONS[name].flower])
def test_what_flower_makes_of_it(flower: Any, name: str) -> None:
    poison = POISONS[name]
    bad = dict(honest(np.random.default_rng(99)))
    poison.arrays(bad)
    good = [(honest(np.random.default_rng(at)), 100.0 + at) for at in range(4)]
    clean = theirs(flower, "FedAvg", MODEL)
    clean.step(1, [clean.reply(at, *answer) for at, answer in enumerate(good)])
    other = theirs(flower, "FedAvg", MODEL)
    replies = [other.reply(at, *answer) for at, answer in enumerate([*good, (bad, poison.weight)])]
    if poison.flower not in {"nan", "moved"}:
        with pytest.raises(Exception, match=".") as caught:
            other.step(1, replies)
        assert type(caught.value).__name__ == poison.flower
        return
    taken = flat(other.step(1, replies))
    assert np.isfinite(taken).all() == (poison.flower == "moved")
    assert poison.weight == 0 or not np.allclose(taken, flat(clean.model), atol=1e-3)


COUNTS = {
    "more counts than patients": (lambda counts: counts.fill(1.0), "metric 'auc' counts more examples than the answer's weight, or fewer than none"),
    "fewer than none": (lambda counts: counts.__setitem__(3, -1.0), "metric 'auc' counts more examples than the answer's weight, or fewer than none"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_forged_histogram_does_not_touch_the_metrics(name: str) -> None:
    forge, what = COUNTS[name]
    here = World(plan_of(evaluate={"metrics": ["auc"]}))
    here.begin("ada", "ben")
    here.everybody()
    here.send(Roster(("ada", "ben")))
    fair = np.zeros(2 * BINS)
    fair[[200, BINS + 100]] = 5.0
    forged = np.zeros(2 * BINS)
    forge(forged)
    words = here.words(weight=10, auc=forged.tolist())
    with pytest.raises(UpdateRejected, match=f"^{what}$"):
        here.round.terms.layout.check(words)
    here.submit("ada", words)
    here.answer("ben", weight=10, loss=5, auc=fair.tolist())
    outcome = here.outcomes[0]
    assert outcome is not None
    assert (outcome.metrics, outcome.failures["ada"].what) == ({"loss": 0.5, "auc": 1.0}, what)


def test_flower_averages_any_metric_it_is_told(flower: Any) -> None:
    other = theirs(flower, "FedAvg", MODEL)
    other.strategy.configure_train(1, flower.app.ArrayRecord(), flower.app.ConfigRecord(), NoGrid())
    replies = [other.reply(at, MODEL, 100.0, loss) for at, loss in enumerate((0.5, -1e30))]
    assert other.strategy.aggregate_train(1, replies)[1]["loss"] == -5e29


@pytest.mark.parametrize("size", [-1, 1, 1000])
def test_an_answer_of_another_length_is_refused(size: int) -> None:
    here = opened(plan_of(), MODEL)
    length = here.round.terms.layout.length
    with pytest.raises(UpdateRejected) as caught:
        here.round.terms.layout.check(np.zeros(length + size, np.uint32))
    assert str(caught.value) == f"an answer of {length + size} words of uint32 (the round asks for {length} words of uint32)"


def test_a_learner_that_counts_too_much_is_capped_not_believed() -> None:
    class Boaster:
        def run(self, work: Any) -> Result:
            return Result({name: array + np.float32(0.5) for name, array in work.arrays.items()}, 10**9, {"loss": np.array([5e8])})

    plan = plan_of(aggregate=BOUNDS)
    here = opened(plan, MODEL)
    task: Task = here.round.tasks(NODES).task(NODES[0])
    words = perform(task, plan, plan.strategy.build(), Boaster(), None, SCHEMA.pack(MODEL))
    assert isinstance(words, np.ndarray)
    weight, sums = task.layout.tail(words)
    assert (weight, sums["loss"][0], task.phase) == (1024.0, 512.0, Phase.TRAIN)
