"""Flower's strategies in native plans: the models of Flower's own loop, state that a checkpoint holds, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedscale as fs
from fedscale import flower
from fedscale.aggregate import Answers, Each, Partial
from fedscale.errors import ConfigError, PlanError, RunFailed
from fedscale.learner import Phase, Result, Work
from fedscale.metrics import Metric
from fedscale.optimizers import Slots
from fedscale.plan import Plan
from fedscale.strategy import STRATEGIES
from fedscale.update import Layout, Update
from fedscale.vector import Vector
from fedscale_simulations.flower import simulate_app
from tests.flower import samples
from tests.flower.test_bridge import native

pytestmark = pytest.mark.requires("flower")

MESSAGES: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5, "server_learning_rate": 0.7},
    "FedAdagrad": {},
    "FedAdam": {"eta": 0.2},
    "FedYogi": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.25},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "loss"},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 0},
}
LEGACY: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("FedAvg", "FedMedian", "FedTrimmedAvg", "FaultTolerantFedAvg", "FedAdagrad", "FedAdam", "FedYogi", "FedOpt", "Krum")},
    "FedAvgM": {"server_momentum": 0.5, "server_learning_rate": 0.7},
    "FedProx": {"proximal_mu": 0.1},
    "Bulyan": {"num_malicious_clients": 0, "to_keep": 0},
}
STATE: dict[str, dict[str, Any]] = {"FedAvgM": {"server_momentum": 0.5}, "FedAdagrad": {}, "FedAdam": {}, "FedYogi": {}}
SIZE = 10


def chosen(name: str, **arguments: object) -> str:
    """A ServerApp with this strategy, asking everybody."""
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return samples.STRATEGY.replace("min_available_nodes=2", f"min_available_nodes=5{given}").replace('config["strategy"]', repr(name))


def settings(name: str, api: str = "messages", **arguments: object) -> list[str]:
    """The same in our plan."""
    given = [f"strategy.arguments.{key}={value!r}".replace("'", '"') for key, value in arguments.items()]
    return ["strategy.name=flower", f"strategy.of={name}", f"strategy.api={api}", "aggregate.weight_cap=16", "evaluate.every=0", *given]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_native_plan_comes_to_what_flowers_own_loop_comes_to(app: Callable[..., Path], name: str) -> None:
    folder = app(server=chosen(name, **MESSAGES[name]))
    theirs = simulate_app(folder, 5)
    ours = native(folder, 5, *settings(name, **MESSAGES[name]))
    assert (ours.status, ours.record.reason) == ("completed", "")
    for at, array in theirs.arrays.items():
        assert np.asarray(ours.model[at]) == pytest.approx(np.asarray(array), rel=1e-4, abs=1e-5)


def rows(seed: int, count: int = 6) -> Vector:
    """Changes, weights and summed losses of so many answers."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 9, (count, 1))
    return np.concatenate([rng.normal(size=(count, SIZE)), weights, weights * rng.random((count, 1))], axis=1).astype(np.float32)


def played(steps: Any, rounds: int = 3) -> Vector:
    """The model after some rounds, each with the step that ``steps()`` gives."""
    model: Vector = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slots: Slots = {}
    for number in range(1, rounds + 1):
        model, slots = steps()(rows(number), model, slots, number)
    return model


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_strategy_comes_to_what_flowers_legacy_server_comes_to(app: Callable[..., Path], name: str) -> None:
    given = "".join(f"{key}={value!r}, " for key, value in LEGACY[name].items())
    first = "initial_parameters=ndarrays_to_parameters([np.zeros((2, 3), np.float32), np.ones(4, np.float32)]), min_fit_clients=5, "
    server = samples.LEGACY.replace("kind(", f"kind({first}{given}").replace('config["strategy"]', repr(name))
    imports = "import numpy as np\n    from flwr.common import ndarrays_to_parameters\n    from flwr.server import Ser"
    # No two of them are equally far from a third, so that Krum has a choice.
    clients = (client.replace("place) - array", "place**2 / 4) - array") for client in (samples.NUMPY, samples.MESSAGES))
    theirs = simulate_app(app(next(clients), server.replace("from flwr.server import Ser", imports)), 5)
    ours = native(app(next(clients)), 5, *settings(name, "legacy", **LEGACY[name]))
    assert (ours.status, ours.record.reason) == (theirs.record.status, theirs.record.reason) == ("completed", "")
    for at, array in theirs.arrays.items():
        assert np.asarray(ours.model[at]) == pytest.approx(np.asarray(array), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("api", ["messages", "legacy"])
@pytest.mark.parametrize("name", STATE)
def test_the_slot_holds_all_state(api: str, name: str) -> None:
    """A step made anew for every round, as after a restart, comes to the bits of one that lives on; without its slot it does not."""
    once = flower.step(name, api, STATE[name])
    assert played(lambda: flower.step(name, api, STATE[name])).tobytes() == played(lambda: once).tobytes()
    model = np.zeros(SIZE, np.float32)
    _, slots = once(rows(1), model, {}, 1)
    kept, _ = once(rows(2), model, slots, 2)
    if name == "FedAvgM" and api == "legacy":
        with pytest.raises(RunFailed, match="Momentum should have been created"):
            once(rows(2), model, {}, 2)
    else:
        lost, _ = once(rows(2), model, {}, 2)
        assert not np.array_equal(kept, lost)


class Puller:
    """Pulls a small model towards its site's number."""

    def run(self, work: Work) -> Result:
        arrays = {name: array + 0.5 * (work.data - array) for name, array in (work.arrays or {"w": np.zeros(3, np.float32)}).items()}
        return Result(arrays if work.phase is not Phase.EVALUATE else None, 2, {"loss": np.array([1.0])})


SITES = {f"site-{place}": float(place) for place in range(1, 6)}


def test_a_resumed_simulation_comes_to_the_same_bits(tmp_path: Path) -> None:
    """What the strategy remembers goes through the checkpoint's file."""
    plan: dict[str, Any] = {"strategy": flower.strategy("FedAdam", eta=0.3), "engine": "sequential", "rounds": 4}
    whole = fs.simulate(Puller(), SITES, **plan)
    seen: list[int] = []

    def stop(progress: Any) -> None:
        seen.append(progress.number)
        if progress.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fs.simulate(Puller(), SITES, **plan, folder=tmp_path, on_progress=stop)
    resumed = fs.simulate(Puller(), SITES, **plan, resume=tmp_path)
    assert 3 in seen
    assert (resumed.status, resumed.digest) == ("completed", whole.digest)


def test_a_strategy_made_in_python(messages: Any) -> None:
    """As good as one by its name, and the same however often it is used."""
    kinds: Any = pytest.importorskip("flwr.serverapp.strategy")
    made = flower.strategy(kinds.FedAdam(eta=0.3))
    assert made.name == "custom"
    runs = [
        fs.simulate(Puller(), SITES, strategy=strategy, rounds=3, engine="sequential")
        for strategy in (made, made, fs.flower.strategy("FedAdam", eta=0.3))
    ]
    assert {run.status for run in runs} == {"completed"}
    assert len({run.digest for run in runs}) == 1
    assert flower.strategy(kinds.FedProx(proximal_mu=0.25)).proximal == 0.25


def test_a_wrapped_strategy_keeps_the_state_of_both() -> None:
    kinds: Any = pytest.importorskip("flwr.serverapp.strategy")
    wrapped = flower.strategy(kinds.DifferentialPrivacyServerSideFixedClipping(kinds.FedAdam(), 0.0, 100.0, 5))
    bare = flower.strategy("FedAdam")
    runs = [fs.simulate(Puller(), SITES, strategy=strategy, rounds=3, engine="sequential") for strategy in (wrapped, bare)]
    assert np.asarray(runs[0].model["w"]) == pytest.approx(np.asarray(runs[1].model["w"]), rel=1e-4)


def test_state_that_no_checkpoint_can_hold_is_refused() -> None:
    kinds: Any = pytest.importorskip("flwr.serverapp.strategy")

    class Hoarder(kinds.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            self.hoard = {server_round}
            return super().aggregate_train(server_round, replies)

    with pytest.raises(RunFailed, match="keeps a set as its 'hoard'"):
        fs.simulate(Puller(), SITES, strategy=flower.strategy(Hoarder()), rounds=1, engine="sequential")


def test_what_a_strategy_keeps_is_read_back() -> None:
    from fedscale.flower import keeping

    flwr: Any = pytest.importorskip("flwr.app")
    common: Any = pytest.importorskip("flwr.common")

    class Holder:
        pass

    def holder() -> Any:
        made: Any = Holder()
        made.number, made.text, made.flag, made.nothing, made.real = 3, "x", True, None, np.float32(0.5)
        made.arrays = [np.arange(3), np.ones((2, 0), np.float64)]
        made.pair, made.by_name = (1, [2.0]), {"a": np.full((2, 2), 7, np.int8)}
        made.record = flwr.ArrayRecord([np.arange(4.0)])
        made.legacy = common.ndarrays_to_parameters([np.arange(3, dtype=np.float32)])
        made.strategy = Holder()
        made.strategy.inner, made.call = 5, len
        return made

    first, second = holder(), holder()
    vector = keeping.kept(first)
    assert vector.dtype == np.float32
    for name in [name for name in vars(second) if name not in {"strategy", "call"}]:
        setattr(second, name, "spoilt")
    second.strategy.inner = 6
    keeping.held(second, vector)
    assert keeping.kept(second).tobytes() == vector.tobytes()
    assert (second.number, second.pair, second.strategy.inner, second.call) == (3, (1, [2.0]), 5, len)
    assert second.by_name["a"].tolist() == [[7, 7], [7, 7]]
    assert common.parameters_to_ndarrays(second.legacy)[0].tolist() == [0.0, 1.0, 2.0]
    assert keeping.foreign_of(first) == {"call": id(len)}


@pytest.mark.parametrize(
    ("of", "api", "arguments", "what", "hint"),
    [
        ("FedMedain", "messages", {}, "Flower has no strategy 'FedMedain'", "did you mean 'FedMedian'?"),
        ("Strategy", "messages", {}, "Flower has no strategy 'Strategy'", "known: Bulyan, "),
        ("FedAdam", "messages", {"speed": 1}, "'FedAdam' cannot be made", ""),
        ("FedAdam", "newest", {}, "Flower has no 'newest' strategies", "use messages or legacy"),
    ],
)
def test_strategies_that_there_are_not(of: str, api: str, arguments: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        flower.strategy(of, api=api, **arguments)
    assert (caught.value.what, caught.value.hint[: len(hint) or None]) == (what, hint)


def test_what_is_no_strategy_at_all() -> None:
    with pytest.raises(PlanError, match="of type int is no strategy"):
        flower.strategy(3)


def test_a_plan_with_one_reads_back_and_its_proximal_term_reaches_the_nodes() -> None:
    text = '[job]\nname = "x"\n[strategy]\nname = "flower"\nof = "FedProx"\narguments = {proximal_mu = 0.25}\n'
    plan = Plan.from_toml(text)
    assert Plan.from_toml(plan.to_toml()) == plan
    built = plan.strategy.build()
    assert (built.name, built.proximal, built.aggregator.linear) == ("flower", 0.25, False)
    assert built.check()


def test_it_cannot_run_under_secure_aggregation() -> None:
    with pytest.raises(PlanError, match="cannot run under secure aggregation") as caught:
        fs.simulate(Puller(), SITES, strategy=flower.strategy("FedMedian"), secagg=True)
    assert "under masks there is only their sum" in caught.value.why


def test_a_strategy_that_fails_ends_the_run_with_the_reason() -> None:
    strategy = flower.strategy("Krum", num_malicious_nodes="many")
    with pytest.raises(RunFailed, match=r"round 1: Flower's Krum failed"):
        fs.simulate(Puller(), dict(list(SITES.items())[:2]), strategy=strategy, rounds=1, engine="sequential")


def test_without_flwr_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "flwr" else find(name, *rest))
    for use in (lambda: flower.strategy, lambda: flower.learner, STRATEGIES["flower"](of="FedAvg").check):
        with pytest.raises(ConfigError, match="flwr is not installed") as caught:
            use()
        assert caught.value.hint == "pip install 'fedscale-fl[torch,flower]'"


# ------------------------------------------------------------------------------------------------- the aggregator beneath

LAYOUT = Layout(4, (Metric("loss"),), 8, weight_cap=64.0)


def answer(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return LAYOUT.encode(Update(rng.uniform(-1, 1, 4).astype(np.float32), float(rng.integers(1, 9)), {"loss": rng.random(1)}))


def test_answers_are_kept_one_by_one_whoever_comes_first() -> None:
    each, reports = Each(), []
    for order in ((1, 2, 3), (3, 1, 2)):
        partial, other = each.zero(LAYOUT), each.zero(LAYOUT)
        each.add(partial, answer(order[0]))
        for seed in order[1:]:
            each.add(other, answer(seed))
        each.merge(partial, other)
        each.merge(partial, each.zero(LAYOUT))
        reports.append(each.report(partial, LAYOUT))
    assert reports[0].delta.tobytes() == reports[1].delta.tobytes()
    assert reports[0].delta.shape == (3, 6)
    assert (reports[0].count, reports[0].weight) == (3, sum(LAYOUT.tail(answer(seed))[0] for seed in (1, 2, 3)))
    assert reports[0].metrics["loss"] == pytest.approx(sum(LAYOUT.tail(answer(seed))[1]["loss"] for seed in (1, 2, 3)))
    for row in reports[0].delta:
        weight = LAYOUT.tail(next(words for words in map(answer, (1, 2, 3)) if LAYOUT.tail(words)[0] == row[4]))[0]
        assert 0 < weight <= 8
        assert np.abs(row[:4]).max() <= 1.001


def test_answers_cannot_come_out_of_a_sum() -> None:
    each = Each()
    with pytest.raises(RunFailed, match="taken apart"):
        each.merge(each.zero(LAYOUT), Partial(answer(1), 1))
    for empty in (each.zero(LAYOUT), Partial(answer(1), 1)):
        with pytest.raises(RunFailed, match="nothing to combine"):
            each.report(empty, LAYOUT)
    assert isinstance(each.zero(LAYOUT), Answers)
