"""A Flower app as a learner, in a native simulation: what its ServerApp would have asked is asked, and sums replace its strategy."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.errors import AppError
from fedscale.flower import apps, bridge, rehearsal
from fedscale.flower.deployment import job_of
from fedscale.flower.directory import Directory, read
from fedscale.flower.rehearsal import Script
from fedscale.learner import Learner, Phase, Training, Work
from fedscale_client import failures
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.job import importable
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.flower import samples

pytestmark = pytest.mark.requires("flower")

STYLES = pytest.mark.parametrize(
    ("client", "server"), [(samples.MESSAGES, samples.STRATEGY), (samples.NUMPY, samples.LEGACY)], ids=["messages", "legacy"]
)


def work(phase: Phase, number: int = 0, arrays: Mapping[str, Any] | None = None, data: Any = None, metrics: tuple[str, ...] = ()) -> Work:
    return Work(phase, number, 7, arrays, data, Training(), metrics)


@contextmanager
def learner(folder: Path, **overrides: Any) -> Iterator[bridge.FlowerLearner]:
    """A learner whose app can be imported."""
    with importable(folder):
        yield bridge.learner(str(folder / "fedscale_flower.py"), overrides)


def native(folder: Path, clients: int, *settings: str) -> Simulation:
    """Our rounds, our strategy, their ClientApp: each client with the node config of its place."""
    directory, plan = job_of(folder, settings)
    data = {f"site-{place}": {"partition-id": place, "num-partitions": clients} for place in range(clients)}
    with importable(folder):
        return simulate(bridge.FlowerLearner(directory, directory.config), data, plan=plan, engine="sequential")


@STYLES
def test_our_rounds_come_to_what_flowers_come_to(app: Callable[..., Path], client: str, server: str) -> None:
    folder = app(client, server)
    ours = native(folder, 3, "lr=0.25", 'evaluate.metrics=["score"]', "evaluate.min_cell=1")
    theirs = simulate_app(folder, 3, ["lr=0.25"])
    assert (ours.status, ours.record.reason) == ("completed", "")
    assert list(ours.model) == ["0", "1"]
    for name, array in theirs.arrays.items():
        assert np.asarray(ours.model[name]) == pytest.approx(np.asarray(array), rel=1e-5)
    assert ours.metrics["evaluate.score"] == pytest.approx(theirs.plain.metrics["evaluate.score"], rel=1e-5)


def test_secure_aggregation_comes_to_the_same_bits(app: Callable[..., Path]) -> None:
    folder = app()
    clear, masked = (
        native(folder, 4, "strategy.rounds=2", f"secagg.enabled={flag}", "evaluate.every=0", "clients.min_per_round=3") for flag in ("false", "true")
    )
    assert (masked.status, masked.record.reason) == ("completed", "")
    assert masked.digest == clear.digest


def test_the_strategy_is_the_plans(app: Callable[..., Path]) -> None:
    folder = app()
    assert native(folder, 3, "strategy.name=fedadam", "strategy.rounds=2").digest != native(folder, 3, "strategy.rounds=2").digest


@STYLES
def test_the_first_model_is_the_apps(app: Callable[..., Path], client: str, server: str) -> None:
    with learner(app(client, server)) as made:
        assert isinstance(made, Learner)
        first = made.run(work(Phase.INIT, data={"partition-id": 0}))
    assert first.arrays is not None
    assert {name: (array.shape, str(array.dtype)) for name, array in first.arrays.items()} == {"0": ((2, 3), "float32"), "1": ((4,), "float32")}
    assert np.asarray(first.arrays["1"]).tolist() == [1.0] * 4


def test_a_client_is_asked_as_its_server_would(app: Callable[..., Path]) -> None:
    """The config of every round, the run config, and a state that stays."""
    model = {"0": np.ones((2, 3), np.float32), "1": np.zeros(4, np.float32)}
    with learner(app(samples.NUMPY, samples.LEGACY), lr=1.0) as made:
        results = [made.run(work(Phase.TRAIN, number, model, {"partition-id": 2})) for number in (1, 2, 3)]
    assert [result.examples for result in results] == [3, 3, 3]
    assert results[0].arrays is not None
    assert np.asarray(results[0].arrays["0"]).tolist() == [[2.0] * 3] * 2
    assert [result.metrics["loss"].tolist() for result in results] == [[0.0]] * 3


def test_metrics_become_sums_under_names_that_a_plan_can_write(app: Callable[..., Path]) -> None:
    client = samples.MESSAGES.replace('"num-examples": 2, "score"', '"num-examples": 4, "eval-loss": 1.5, "F1 Score": 0.25, "score"')
    model = {"0": np.ones((2, 3), np.float32), "1": np.zeros(4, np.float32)}
    with learner(app(client)) as made:
        result = made.run(work(Phase.EVALUATE, 2, model, {"partition-id": 0}, ("loss", "f1_score", "score")))
        assert result.arrays is None
        assert {name: sums.tolist() for name, sums in result.metrics.items()} == {"loss": [6.0], "f1_score": [1.0], "score": [4.0]}
        with pytest.raises(AppError, match="reports no metric 'auc'") as caught:
            made.run(work(Phase.EVALUATE, 2, model, {"partition-id": 0}, ("loss", "auc")))
    assert "f1_score" in caught.value.why


def test_integers_stay_with_the_site(app: Callable[..., Path]) -> None:
    """What cannot be averaged is not sent, and the client still gets what its app made."""
    server = samples.STRATEGY.replace("np.ones(4, np.float32)]", "np.arange(4)]")
    client = samples.MESSAGES.replace("model = [array +", "assert model[1].tolist() == [0, 1, 2, 3]\n        model = [array +").replace(
        "- array)", "- array).astype(array.dtype)"
    )
    with learner(app(client, server)) as made:
        first = made.run(work(Phase.INIT))
        assert first.arrays is not None
        assert list(first.arrays) == ["0"]
        trained = made.run(work(Phase.TRAIN, 1, {"0": np.full((2, 3), 8, np.float32)}, {"partition-id": 0}))
    assert trained.arrays is not None
    assert {name: array.tolist() for name, array in trained.arrays.items()} == {"0": [[4.0] * 3] * 2}


def test_a_client_can_ask_for_the_sites_dataset(app: Callable[..., Path]) -> None:
    client = samples.MESSAGES.replace(
        'place, config = context.node_config["partition-id"]', "from fedscale.flower import dataset\n        place, config = len(dataset(context))"
    )
    model = {"0": np.ones((2, 3), np.float32), "1": np.zeros(4, np.float32)}
    with learner(app(client)) as made:
        assert made.run(work(Phase.TRAIN, 1, model, [1, 2, 3])).examples == 4
    assert bridge.dataset(None) is None


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('return Message(RecordDict({"arrays"', 'return (RecordDict({"arrays"', "the ClientApp did not answer"),
        ('"arrays": ArrayRecord(model), ', "", "the ClientApp returned 0 models"),
        ('"arrays": ArrayRecord(model), ', '"a": ArrayRecord(model), "b": ArrayRecord(model), ', "the ClientApp returned 2 models"),
    ],
)
def test_an_answer_that_is_none(app: Callable[..., Path], old: str, new: str, what: str) -> None:
    client = (
        samples.MESSAGES.replace("app = ClientApp(mods=[doubling])", "app = ClientApp()").replace("train(mods=[adding])", "train()").replace(old, new)
    )
    client = client.replace("MetricRecord(metrics)}), reply_to=message)", "MetricRecord(metrics)}))") if "return (" in new else client
    model = {"0": np.ones((2, 3), np.float32), "1": np.zeros(4, np.float32)}
    with learner(app(client)) as made, pytest.raises(AppError) as caught:
        made.run(work(Phase.TRAIN, 1, model, {"partition-id": 0}))
    assert caught.value.what == what


def test_what_an_app_says_of_its_error_stays_in_the_sites_log(app: Callable[..., Path]) -> None:
    """Its own words may quote a patient; those of what it raises do not travel either."""
    saying = "from flwr.app import Error\n        return Message(Error(7, 'Mrs. Miller'), reply_to=message)\n        place, config ="
    client = samples.MESSAGES.replace("place, config =", saying, 1).replace("mods=[doubling]", "").replace("mods=[adding]", "")
    model = {"0": np.ones((2, 3), np.float32), "1": np.zeros(4, np.float32)}
    with learner(app(client)) as made, pytest.raises(AppError) as caught:
        made.run(work(Phase.TRAIN, 1, model, {"partition-id": 0}))
    told = failures.of_error(caught.value, failures.Context(Path("bundle")))
    assert told.what == "the ClientApp did not answer (it returned an error of code 7)"
    assert "Miller" not in repr(told)
    assert "Miller" in "".join(traceback.format_exception(caught.value)), "which the worker prints into the site's log"


def test_a_numpy_client_that_cannot_evaluate_says_how_to_go_on(app: Callable[..., Path]) -> None:
    client = samples.NUMPY.replace("def evaluate(", "def something_else(")
    with learner(app(client, samples.LEGACY)) as made, pytest.raises(AppError, match="did not do what was asked") as caught:
        made.run(work(Phase.EVALUATE, 1, {"0": np.ones((2, 3), np.float32)}, {"partition-id": 0}, ("loss",)))
    assert "evaluate.every=0" in caught.value.hint


# ---------------------------------------------------------------------------------------------------------- rehearsals


def rehearsed(folder: Path) -> Script:
    directory: Directory = read(folder)
    with importable(folder):
        return rehearsal.rehearse(apps.server_app(directory), _context(directory), lambda message: pytest.fail("nobody is asked"))


def _context(directory: Directory) -> Any:
    flwr: Any = pytest.importorskip("flwr.app")
    return flwr.Context(run_id=1, node_id=0, node_config={}, state=flwr.RecordDict(), run_config=dict(directory.config))


def test_a_rehearsal_sees_every_phase_of_every_round(app: Callable[..., Path]) -> None:
    script = rehearsed(app())
    assert set(script.asked) == {(phase, number) for phase in ("train", "evaluate") for number in (1, 2, 3)}
    assert [script.content("train", number)["config"]["server-round"] for number in (1, 2, 3)] == [1, 2, 3]
    assert script.content("train", 9)["config"]["server-round"] == 9
    name, first = script.first
    assert (name, list(first)) == ("arrays", ["0", "1"])


def test_a_rehearsal_has_as_many_nodes_as_anybody_waits_for(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda seconds: None)
    script = rehearsed(app(server=samples.STRATEGY.replace("min_available_nodes=2", "min_available_nodes=100")))
    assert ("train", 3) in script.asked


def test_a_rehearsal_ends_where_the_app_does(app: Callable[..., Path]) -> None:
    """A loop that cannot do without replies has said enough by then."""
    server = samples.OWN_LOOP.replace("asked = [", "asked = [][:0] and [").replace(
        "assert places", "places = list(range(len(nodes)))\n        assert places"
    )
    script = rehearsed(app(server=server))
    assert set(script.asked) == {("train", 1)}
    with pytest.raises(AppError, match="asks its clients for no phase 'evaluate'") as caught:
        script.content("evaluate", 1)
    assert "evaluate.every=0" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("result = chosen", "raise ValueError('no model here')\n        result = chosen", "ValueError: no model here"),
        ("result = chosen", "return\n        result = chosen", "it asks for no training"),
    ],
)
def test_a_server_app_that_asks_for_nothing(app: Callable[..., Path], old: str, new: str, why: str) -> None:
    with pytest.raises(AppError, match="cannot be rehearsed") as caught:
        rehearsed(app(server=samples.STRATEGY.replace(old, new)))
    assert caught.value.why == why


def test_a_server_app_that_never_comes_to_the_point(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.05)
    server = samples.STRATEGY.replace("result = chosen", "import threading\n        threading.Event().wait(3)\n        result = chosen")
    with pytest.raises(AppError) as caught:
        rehearsed(app(server=server))
    assert caught.value.why == "TimeoutError: it took longer than 0.05 s"
