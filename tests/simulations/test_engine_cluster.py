"""The engine on a Ray cluster of two machines, both on this one."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedscale.errors import ConfigError, RunFailed
from fedscale.events import Answered, Failed, Summed
from fedscale.learner import Phase
from fedscale.ring import WORD
from fedscale.task import layout_for
from fedscale.torch_learner import as_learner, one_thread
from fedscale_simulations.engines import cluster
from fedscale_simulations.engines.choice import Choice
from fedscale_simulations.engines.cluster import Cluster
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Alone
from fedscale_simulations.engines.member import merged
from fedscale_simulations.engines.sequential import Sequential
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, always, plan_of, sites
from tests.simulations.test_engine_pool import added, outcome
from tests.simulations.zoo import ZOO, stand

pytestmark = [pytest.mark.requires("ray"), pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def two_machines() -> Iterator[Any]:
    """A cluster of two machines with one processor each; this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20})
    machines.add_node(num_cpus=1, object_store_memory=100 << 20)
    ray.init(address=machines.address, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()
    machines.shutdown()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def lone(here: Any) -> tuple[Any, ...]:
    return added(list(Sequential(here.desk, Alone(here.desk)).work(here.tasks, here.model)), here.tasks.layout.length)


@pytest.mark.parametrize("name", ["written", "batchnorm"])
def test_a_cluster_of_two_machines_gives_the_bits_of_one_process(name: str, two_machines: Any) -> None:
    here = stand(ZOO[name], rows=(9, 20, 7, 25, 2, 21, 13, 5, 11))
    engine = Cluster(here.desk)
    assert engine.workers == 2
    total, nodes, failed = added(list(engine.work(here.tasks, here.model)), here.tasks.layout.length)
    engine.close()
    expected, names, none = lone(here)
    assert (total == expected).all()
    assert (nodes, failed) == (names, none)
    assert two_machines.is_initialized(), "a cluster that was there before is left alone"


class Machines:
    """As much of Ray as an engine asks before anybody works."""

    def __init__(self, **resources: float) -> None:
        self._resources, self.asked = resources, list[dict[str, Any]]()

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def remote(self, **wanted: Any) -> Any:
        self.asked.append(wanted)
        return lambda work: work

    def put(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "count", "share"),
    [
        ("auto", 2, None, 2, 1),
        ("cuda", 2, None, 2, 1),
        ("auto", 2, 3, 3, 1 / 2),
        ("auto", 1, 4, 4, 1 / 4),
        ("auto", 2, 1, 1, 1),
        ("cpu", 2, None, 8, 0),
        ("auto", 0, None, 8, 0),
    ],
)
def test_a_worker_asks_for_its_part_of_a_gpu(
    device: str, gpus: int, workers: int | None, count: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, machines = plan_of(train={"device": device}), Machines(CPU=8, GPU=gpus)
    monkeypatch.setattr(cluster, "ray", lambda: machines)
    engine = Cluster(Desk(plan, plan.strategy.build(), as_learner(ZOO["softmax"].app), sites(3)), workers)
    assert engine.workers == count
    assert (machines.asked[0]["num_cpus"], machines.asked[0]["num_gpus"]) == (1, share)
    assert "num_gpus" not in machines.asked[1], "sums are added up on processors"
    assert gpus == 0 or share == 0 or int(1 / share) * gpus >= count, "all of them fit"


def test_a_learner_of_ones_own_gets_a_gpu_where_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ray", lambda: Machines(CPU=8, GPU=2))
    for device, workers in (("auto", 8), ("cuda", 2)):
        plan = plan_of(train={"device": device})
        assert Cluster(Desk(plan, plan.strategy.build(), Mean(), sites(3))).workers == workers


def test_a_cluster_without_a_gpu_refuses_a_plan_that_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ray", lambda: Machines(CPU=8))
    plan = plan_of(train={"device": "cuda"})
    with pytest.raises(ConfigError, match="the plan asks for CUDA, and the Ray cluster has no GPU"):
        Cluster(Desk(plan, plan.strategy.build(), Mean(), sites(3)))


def test_a_run_is_the_same_on_a_cluster(two_machines: Any) -> None:
    faults = always("site-2", Phase.TRAIN, ValueError("bad luck")) | always("site-5", Phase.EVALUATE, KeyError("x"), [2])
    options: dict[str, Any] = {"rounds": 3, "seed": 3, "clients": {"select": 5, "over_select": 1.6}}
    alone, spread = (simulate(Mean(faults), sites(9), engine=engine, **options) for engine in ("sequential", "ray"))
    assert outcome(spread) == outcome(alone)
    assert alone.status == "completed"
    assert spread.record.extra["engine"] == {"form": "sequential", "workers": 2, "why": "asked for, on a Ray cluster"}


class Deadly(Mean):
    """Kills the worker it runs in, once: the first that trains ``site-4``."""

    def __init__(self, memory: Path, *, always: bool = False) -> None:
        super().__init__()
        self.memory, self.always = memory, always

    def run(self, work: Any) -> Any:
        if work.phase is Phase.TRAIN and work.data.name == "site-4" and (self.always or not self.memory.exists()):
            self.memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(work)


def test_a_killed_worker_costs_only_its_own_part(two_machines: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rounds": 2, "seed": 3}
    expected = simulate(Mean(), sites(9), engine="sequential", **options)
    assert outcome(simulate(Deadly(tmp_path / "died"), sites(9), engine="ray", **options)) == outcome(expected)
    assert (tmp_path / "died").exists()


def test_workers_that_die_again_and_again_end_the_run(two_machines: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="workers of the Ray cluster die again and again"):
        simulate(Deadly(tmp_path / "died", always=True), sites(9), engine="ray", rounds=1)


def test_sums_that_are_lost_with_a_machine_are_made_again(two_machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 12)
    expected, names, _ = lone(here)
    engine, lost = Cluster(here.desk), list[Any]()
    whole = Cluster.tree

    def tree(self: Cluster, totals: Any) -> Any:
        if not lost:
            lost.append(totals[1])
            raise two_machines.exceptions.ObjectLostError(lost[0].hex(), None, "")
        return whole(self, totals)

    class Forgetful:
        """Ray, but one object cannot be fetched."""

        def __getattr__(self, name: str) -> Any:
            return getattr(two_machines, name)

        def get(self, reference: Any, **rest: Any) -> Any:
            if lost and reference == lost[0]:
                raise two_machines.exceptions.ObjectLostError(reference.hex(), None, "")
            return two_machines.get(reference, **rest)

    monkeypatch.setattr(Cluster, "tree", tree)
    monkeypatch.setattr(engine, "_ray", Forgetful())
    total, nodes, _ = added(list(engine.work(here.tasks, here.model)), here.tasks.layout.length)
    engine.close()
    assert lost
    assert nodes == names
    assert (total == expected).all()


def test_answers_that_are_wanted_apart_come_apart(two_machines: Any) -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 6, evaluate={"every": 1, "holdout": 0.0, "per_site": True})
    layout = layout_for(here.plan, Phase.EVALUATE, here.schema.size, len(here.tasks))
    tasks = replace(here.tasks, phase=Phase.EVALUATE, layout=layout)
    engine = Cluster(here.desk, 2)
    answers = list(engine.work(tasks, here.model))
    engine.close()
    assert sorted(answer.node for answer in answers if isinstance(answer, Answered)) == sorted(here.desk.data)
    assert not any(isinstance(answer, Summed | Failed) for answer in answers)


def test_sums_are_added_up_in_the_ring() -> None:
    parts = [np.array([2**32 - 1, at], WORD) for at in range(5)]
    assert merged(*parts).tolist() == [2**32 - 5, 10]
    assert parts[0].tolist() == [2**32 - 1, 0]


def test_without_a_cluster_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = stand(ZOO["softmax"])

    class Away:
        """Ray without any cluster."""

        def is_initialized(self) -> bool:
            return False

        def init(self, **options: Any) -> None:
            raise ConnectionError("no")

    monkeypatch.setattr(cluster, "ray", Away)
    with pytest.raises(ConfigError, match="no Ray cluster can be reached") as caught:
        Cluster(here.desk)
    assert caught.value.hint == "start one with: ray start --head"


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster.knock(f"ray://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr(cluster, "ray", lambda: SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(ConfigError, match="no Ray cluster can be reached") as caught:
        Cluster(stand(ZOO["softmax"]).desk)
    assert (caught.value.where, caught.value.why) == (f"RAY_ADDRESS=127.0.0.1:{port}", "ConnectionRefusedError")
    cluster.knock("auto")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray") as caught:
        cluster.ray()
    assert caught.value.hint == "pip install 'fedscale-fl[ray]'"
    assert Choice("ray").engine == "ray"
