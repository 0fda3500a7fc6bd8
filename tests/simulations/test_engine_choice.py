from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from fedscale.errors import ConfigError, PlanError
from fedscale.record import JSON
from fedscale.torch_learner import TorchLearner, one_thread
from fedscale_simulations import checkpoint
from fedscale_simulations.engines import choice
from fedscale_simulations.engines.choice import Choice, Chooser, opened, processors
from fedscale_simulations.engines.forms import Alone, Form
from fedscale_simulations.engines.sequential import Sequential
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.command import fedscale
from tests.simulations.samples import Mean, sites
from tests.simulations.test_cli import write_job
from tests.simulations.zoo import ZOO, Stand, stand

TRAIN: dict[str, Any] = {"batch_size": 10, "optimizer": {"lr": 0.1}, "device": "cpu"}


def run_of(name: str, **rest: Any) -> Simulation:
    kind = ZOO[name]
    options: dict[str, Any] = {"rounds": 2, "seed": 3, "train": TRAIN, "evaluate": {"holdout": 0.0, "every": 2}, **rest}
    result = simulate(kind.app, kind.clients((20,) * 12 + (13,) * 5), **options)
    assert result.status == "completed", result.summary()
    return result


def engine(result: Simulation) -> dict[str, JSON]:
    found = result.record.extra["engine"]
    assert isinstance(found, dict)
    return found


def paced(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let a client take so long in each form."""

    def measured(_chooser: Chooser, form: Form, *_: object) -> float:
        return seconds[form.name]

    monkeypatch.setattr(Chooser, "_seconds", measured)
    monkeypatch.setattr(choice, "processors", lambda: 2)
    monkeypatch.setattr(choice, "beside_grpc", lambda: False)


def chosen(here: Stand, wanted: Choice | None = None) -> dict[str, JSON]:
    """What the first round of training makes of a choice."""
    facts: dict[str, JSON] = {}
    with one_thread(), opened(wanted or Choice(), here.desk, facts) as picked:
        nodes = [node for answer in picked.work(here.tasks, here.model) for node in getattr(answer, "nodes", ())]
    assert sorted(nodes) == list(here.desk.data)
    note = facts["engine"]
    assert isinstance(note, dict)
    return note


def test_there_is_no_other_engine() -> None:
    with pytest.raises(PlanError, match=r"^there is no engine 'warp'; known: auto, sequential, pool, vectorized, ray$"):
        run_of("softmax", engine="warp")
    with pytest.raises(PlanError, match=r"^there is no engine 'Vectorised'; did you mean 'vectorized'\?$"):
        Choice("Vectorised")


def test_there_are_never_more_processes_than_clients() -> None:
    here = stand(ZOO["softmax"], rows=(20,) * 3)
    assert chosen(here, Choice("pool", 50))["workers"] == 3
    assert chosen(here, Choice("vectorized", 50))["workers"] == 3


@pytest.mark.parametrize("name", ["written", "logistic"])
def test_blocks_are_never_chosen_unasked_but_offered_where_they_are_faster(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, sequential=0.001, vectorized=0.0001)
    why = "a deployment's bits; --engine vectorized, equal up to rounding, takes 0.1 of the time"
    assert chosen(stand(ZOO[name])) == {"form": "sequential", "workers": 1, "why": why}
    assert chosen(stand(ZOO[name]), Choice("vectorized", 1)) == {"form": "vectorized", "workers": 1, "why": "asked for"}
    paced(monkeypatch, sequential=0.001, vectorized=0.0009)
    assert chosen(stand(ZOO[name])) == {"form": "sequential", "workers": 1, "why": "the fastest form"}


@pytest.mark.parametrize("name", [name for name, kind in ZOO.items() if not kind.together])
def test_other_models_never_go_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, sequential=1.0, vectorized=0.0)
    for wanted in (Choice(), Choice("vectorized", 1)):
        note = chosen(stand(ZOO[name]), wanted)
        assert note["form"] == "sequential"
        assert note["why"]


def test_processes_are_started_where_they_earn_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = stand(ZOO["dropout"], strategy={"rounds": 10})
    paced(monkeypatch, sequential=0.1)
    assert chosen(here)["workers"] == 2
    assert chosen(here, Choice(workers=3))["workers"] == 3
    assert chosen(here, Choice(workers=1))["workers"] == 1
    assert chosen(stand(ZOO["dropout"], rows=(20,), strategy={"rounds": 10}))["workers"] == 1
    paced(monkeypatch, sequential=0.0001)
    assert chosen(here)["workers"] == 1
    assert chosen(stand(ZOO["dropout"], strategy={"rounds": 100_000}))["workers"] == 1


def test_nothing_is_forked_unasked_beside_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, sequential=0.1)
    here = stand(ZOO["dropout"], strategy={"rounds": 10})
    assert chosen(here)["workers"] == 2
    monkeypatch.setattr(choice, "beside_grpc", lambda: True)
    assert chosen(here)["workers"] == 1
    assert chosen(here, Choice("pool", 2))["workers"] == 2


@pytest.mark.parametrize("wanted", ["auto", "pool", "vectorized"])
def test_where_torch_sees_a_gpu_nothing_is_forked_and_who_uses_the_processor_is_told(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, sequential=0.1, vectorized=0.1)
    monkeypatch.setattr(TorchLearner, "on_cuda", lambda _, device: device == "auto")
    here, there = (stand(ZOO["written"], strategy={"rounds": 10}, train={"device": device}) for device in ("auto", "cpu"))
    assert chosen(there, Choice(wanted, 3))["workers"] == 3
    monkeypatch.setattr(choice, "forkable", lambda: False)
    for desk, told in ((here, False), (there, True)):
        note = chosen(desk, Choice(wanted, 3))
        assert note["workers"] == 1
        assert str(note["why"]).endswith(f"; {choice.UNFORKED}") == told
    assert choice.UNFORKED not in str(chosen(there, Choice("sequential"))["why"])
    assert choice.UNFORKED not in str(chosen(there, Choice(wanted, 1))["why"])


def test_a_cluster_does_not_go_on_with_what_rounds_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "Cluster", Mock(side_effect=AssertionError("a cluster is joined")))
    with pytest.raises(ConfigError, match="cannot go on with a run that began as vectorized") as caught:
        choice.Chooser(Choice("ray", form="vectorized"), stand(ZOO["written"]).desk, {})
    assert caught.value.hint == "use --engine vectorized"


@pytest.mark.parametrize("slow", [True, False])
def test_who_mixes_precision_on_a_processor_that_is_slower_so_is_told(monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    monkeypatch.setattr(choice, "slow_halves", lambda: slow)
    for amp in (True, False):
        note = chosen(stand(ZOO["written"], train={"amp": amp, "device": "cpu"}), Choice("sequential"))
        assert (choice.SLOW_HALVES in str(note["why"])) == (slow and amp)


def test_a_learner_of_ones_own_is_forked_whatever_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "forkable", lambda: False)
    note = engine(simulate(Mean(), sites(9), rounds=3, seed=3, engine="pool", workers=2))
    assert note == {"form": "sequential", "workers": 2, "why": "asked for"}


def test_on_a_gpu_blocks_are_chosen_by_the_model_and_by_no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchLearner, "on_cuda", lambda *_: True)
    monkeypatch.setattr(choice, "forkable", lambda: False)
    paced(monkeypatch)  # whoever measured would fail
    assert chosen(stand(ZOO["written"])) == {"form": "vectorized", "workers": 1, "why": "many small clients at once fill a GPU"}
    assert chosen(stand(ZOO["written"]), Choice("sequential"))["form"] == "sequential"
    assert chosen(stand(ZOO["dropout"]))["form"] == "sequential"


def test_grpc_is_seen_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", sys)
    assert choice.beside_grpc()
    monkeypatch.delitem(sys.modules, "grpc")
    assert not choice.beside_grpc()


def test_only_apps_are_tried_and_forked_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch)
    learner = Mean()
    result = simulate(learner, sites(9), rounds=3, seed=3)
    assert engine(result) == {"form": "sequential", "workers": 1, "why": "the learner is not an App"}
    assert len(learner.calls) == 1 + 3 * 2 * 9
    assert engine(simulate(Mean(), sites(9), rounds=3, seed=3, engine="pool"))["workers"] == 2


def test_trying_leaves_no_trace_in_the_model() -> None:
    assert run_of("dropout").digest == run_of("dropout", engine="sequential").digest == run_of("dropout", engine="pool", workers=2).digest


def test_blocks_end_where_clients_alone_end() -> None:
    one, many = run_of("written", engine="sequential"), run_of("written", engine="vectorized", workers=1)
    assert many.digest == run_of("written", engine="vectorized", workers=2).digest
    assert many.metrics["evaluate.loss"] == pytest.approx(one.metrics["evaluate.loss"], rel=1e-3)


@pytest.mark.parametrize("form", ["sequential", "vectorized"])
def test_a_run_goes_on_in_the_form_in_which_it_began(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHEAP", math.inf)  # a slow disk must not cost the round that says how it began

    def stop(progress: Any) -> None:
        if progress.closed and progress.number == 2 and progress.phase == "train":
            raise KeyboardInterrupt

    other = "sequential" if form == "vectorized" else "vectorized"
    whole = run_of("written", rounds=4, engine=form, workers=1)
    with pytest.raises(KeyboardInterrupt):
        run_of("written", rounds=4, folder=tmp_path, on_progress=stop, engine=form, workers=1)
    resumed = run_of("written", rounds=4, resume=tmp_path)
    assert engine(resumed)["form"] == form
    assert resumed.digest == whole.digest
    assert run_of("written", rounds=4, engine=other, workers=1).digest != whole.digest


def test_measuring_takes_a_moment_and_changes_nothing() -> None:
    here: Stand = stand(ZOO["written"])
    before = here.model.copy()
    note = chosen(here)
    assert note["form"] == "sequential"
    assert "the fastest form" in str(note["why"]) or "--engine vectorized" in str(note["why"])
    assert (here.model == before).all()
    assert processors() >= 1


def test_the_command_takes_an_engine_and_says_which_did_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path / "job")
    assert "engine    sequential, 1 process: the learner is not an App" in fedscale("simulate", job).out
    done = fedscale("simulate", job, "--engine", "pool", "--workers", 2)
    assert "engine    sequential, 2 processes: asked for" in done.out
    refused = fedscale("simulate", job, "--engine", "warp")
    assert refused.code == 2
    assert "there is no engine 'warp'" in refused.err


def test_memory_does_not_grow_with_the_cohort() -> None:
    def peak(clients: int) -> int:
        here = stand(ZOO["deep"], rows=(5,) * clients)
        list(Sequential(here.desk, Alone(here.desk)).work(here.tasks, here.model))
        tracemalloc.start()
        list(Sequential(here.desk, Alone(here.desk)).work(here.tasks, here.model))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(60) - peak(10) < 50 * 0.1 * 4 * stand(ZOO["deep"]).schema.size
