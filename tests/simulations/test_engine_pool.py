from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedscale.errors import RunFailed
from fedscale.events import Answered, Failed, Summed
from fedscale.learner import Phase, Result, Work
from fedscale.ring import WORD
from fedscale.torch_learner import one_thread
from fedscale_simulations.engines import pool, worker
from fedscale_simulations.engines.desk import Answer, Engine
from fedscale_simulations.engines.forms import Alone, together
from fedscale_simulations.engines.pool import MOST_LETTERS, Pool
from fedscale_simulations.engines.sequential import Sequential
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, Site, always, sites
from tests.simulations.zoo import ZOO, Stand, stand


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    with one_thread():
        yield
    assert set(multiprocessing.active_children()) <= before


def run_of(learner: Any = None, data: Mapping[str, Any] | None = None, **rest: Any) -> Simulation:
    return simulate(learner or Mean(), data or sites(9), **{"rounds": 3, "seed": 3, "engine": "pool", **rest})


def outcome(result: Simulation) -> tuple[Any, ...]:
    """All that must not depend on who did the work."""
    rows = [replace(row, seconds=0.0) for row in result.record.rounds]
    return result.digest, result.status, result.record.reason, rows, result.record.bytes_up, result.record.bytes_down


def added(answers: Sequence[Answer], length: int) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """The sum of all sums, who is in it and who failed."""
    total = np.zeros(length, WORD)
    for answer in answers:
        if isinstance(answer, Summed) and answer.words is not None:
            total += answer.words
    nodes = [node for answer in answers if isinstance(answer, Summed) for node in answer.nodes]
    return total, sorted(nodes), [answer.node for answer in answers if isinstance(answer, Failed)]


def played(engine: Engine, here: Stand, wanted: int | None = None) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """A round of training, closed afterwards."""
    length = here.tasks.layout.length
    try:
        return added([kept(answer) for answer in engine.work(here.tasks, here.model, wanted)], length)
    finally:
        engine.close()


def kept(answer: Answer) -> Answer:
    """An answer that outlives the engine's next step."""
    return replace(answer, words=answer.words.copy()) if isinstance(answer, Summed) and answer.words is not None else answer


# ------------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", ["written", "tokens", "residual", "batchnorm", "dropout"])
def test_any_number_of_workers_gives_the_bits_of_one_process(name: str) -> None:
    here = stand(ZOO[name])
    total, nodes, failed = played(Sequential(here.desk, Alone(here.desk)), here)
    assert (nodes, failed) == (list(here.desk.data), [])
    for workers in (1, 2, 3):
        again, same, none = played(Pool(here.desk, Alone(here.desk), workers), here)
        assert (again == total).all()
        assert (same, none) == (nodes, [])


def test_blocks_in_any_number_of_workers_give_the_same_bits() -> None:
    here = stand(ZOO["deep"], rows=(20,) * 100 + (7,) * 30)
    form, _ = together(here.desk)
    assert form is not None
    total, nodes, _ = played(Sequential(here.desk, form), here)
    for workers in (1, 2, 3):
        again, same, _ = played(Pool(here.desk, form, workers), here)
        assert (again == total).all()
        assert same == nodes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clients": {"select": 4, "over_select": 2.0}, "evaluate": {"every": 2, "per_site": False}},
        {"evaluate": {"holdout": 0.0, "min_cell": 1}, "strategy": None},
    ],
)
def test_a_run_is_the_same_in_a_pool(options: dict[str, Any]) -> None:
    faults = always("site-2", Phase.TRAIN, ValueError("bad luck")) | always("site-5", Phase.EVALUATE, KeyError("x"), [2])
    alone = run_of(Mean(faults), engine="sequential", **options)
    assert alone.status == "completed"
    assert alone.record.extra["engine"] == {"form": "sequential", "workers": 1, "why": "asked for"}
    for workers in (1, 2, 3):
        assert outcome(run_of(Mean(faults), workers=workers, **options)) == outcome(alone)


def test_a_round_that_fails_is_the_same_in_a_pool() -> None:
    faults = always("site-2", Phase.TRAIN, ValueError("bad luck"), [2])
    results = [run_of(Mean(faults), engine=engine, clients={"min_per_round": 9}) for engine in ("sequential", "pool")]
    assert outcome(results[0]) == outcome(results[1])
    assert results[0].status == "failed"


def test_memory_is_given_back_while_the_workers_have_something_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 20)
    engine, at_work = Pool(here.desk, Alone(here.desk), 2), list[list[int]]()
    monkeypatch.setattr(pool, "give_back", lambda: at_work.append([seat.outstanding for seat in engine._crew.seats] if engine._crew else []))
    _, nodes, _ = played(engine, here)
    assert len(nodes) == 20
    assert [len(clients) for clients in at_work] == [2]
    assert min(at_work[0]) > 1


def test_a_worker_minds_its_memory_after_each_piece_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    here, minded = stand(ZOO["softmax"], rows=(5,) * 3), list[float]()
    total = np.zeros(here.tasks.layout.length, WORD)
    monkeypatch.setattr(worker, "Ceiling", lambda: SimpleNamespace(hold=lambda: minded.append(here.tasks.layout.tail(total)[0])))
    busy, (ours, theirs) = worker.Worker(here.desk, Alone(here.desk), here.schema, here.model, total), multiprocessing.Pipe()
    busy._begin(1, {"phase": "train", "number": 1, "terms": 3, "model": "", "apart": False, "clip": 0.0})
    assert minded == []
    for piece in ([[here.tasks.nodes[0]]], [[here.tasks.nodes[1]], [here.tasks.nodes[2]]]):
        busy._work(theirs, piece)
    assert minded == [5, 15]
    assert ours.poll(0)


def test_clients_that_come_first_are_in_the_sum_and_no_others() -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 20)
    total, nodes, _ = played(Sequential(here.desk, Alone(here.desk)), here, wanted=7)
    again, same, _ = played(Pool(here.desk, Alone(here.desk), 2), here, wanted=7)
    assert nodes == same == sorted(here.tasks.nodes[:7])
    assert (total == again).all()


def test_workers_do_not_wait_for_threads_that_were_not_forked() -> None:
    here = stand(ZOO["written"])
    torch.set_num_threads(2)
    torch.rand(512, 4096).log_softmax(1)
    again, same, _ = played(Pool(here.desk, Alone(here.desk), 2), here)
    torch.set_num_threads(1)
    total, names, _ = played(Sequential(here.desk, Alone(here.desk)), here)
    assert names == same
    assert (again == total).all()


def test_every_client_ticks_once() -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 20)
    for engine in (Sequential(here.desk, Alone(here.desk)), Pool(here.desk, Alone(here.desk), 2)):
        ticks: list[int] = []
        list(engine.work(here.tasks, here.model, tick=ticks.append))
        engine.close()
        assert sum(ticks) == 20


def test_a_site_that_shows_its_metrics_sends_them_from_the_pool() -> None:
    data = {"big": Site("big", 0.0, 60), "next": Site("next", 0.0, 30), "tiny": Site("tiny", 0.0, 5)}
    shown = run_of(data=data, evaluate={"min_cell": 10}).record.rounds[1]
    assert list(shown.sites) == ["big"]


def test_names_of_any_letters_and_length_come_back_whole() -> None:
    data = {name: Site(name, 0.01 * at, 10) for at, name in enumerate(f'{at}{"ä" * 90}\\"\n' for at in range(300))}
    assert sum(map(len, data)) > MOST_LETTERS  # more than a message takes
    options: dict[str, Any] = {"data": data, "rounds": 1, "evaluate": {"min_cell": 1}}
    whole = run_of(workers=2, **options)
    assert sorted(whole.record.rounds[1].sites) == sorted(data)
    assert outcome(whole) == outcome(run_of(engine="sequential", **options))


# ------------------------------------------------------------------------------------------------------------------ deaths


class Deadly(Mean):
    """Kills the process it works in, as often as there are marks to take away."""

    def __init__(self, folder: Path, victims: Sequence[tuple[str, Phase, int]]) -> None:
        super().__init__()
        self.folder, self.victims, self.home = folder, victims, os.getpid()

    def run(self, work: Work) -> Result:
        site: Site = work.data
        if (site.name, work.phase, work.number) in self.victims and self._claimed():
            assert os.getpid() != self.home
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(work)

    def _claimed(self) -> bool:
        """Take a mark away, which of several processes only one can."""
        for mark in sorted(self.folder.iterdir()):
            with suppress(FileNotFoundError):
                mark.unlink()
                return True
        return False


def marks(folder: Path, count: int) -> Path:
    for at in range(count):
        (folder / f"mark-{at}").touch()
    return folder


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.EVALUATE])
@pytest.mark.parametrize("deaths", [1, 3])
def test_a_worker_that_is_killed_costs_only_time(phase: Phase, workers: int, deaths: int, tmp_path: Path) -> None:
    expected = outcome(run_of(engine="sequential"))
    ticks: list[tuple[int, int]] = []
    learner = Deadly(marks(tmp_path, deaths), [(f"site-{at}", phase, 2) for at in (3, 7)])
    result = run_of(learner, workers=workers, on_progress=lambda p: ticks.append((p.done, p.asked)))
    assert outcome(result) == expected
    assert list(tmp_path.iterdir()) == []
    assert all(0 <= done <= asked for done, asked in ticks)


def test_failures_before_a_death_are_told_once(tmp_path: Path) -> None:
    faults = always("site-1", Phase.TRAIN, ValueError("bad luck")) | always("site-8", Phase.TRAIN, ValueError("bad luck"))
    learner = Deadly(marks(tmp_path, 2), [("site-4", Phase.TRAIN, 1)])
    learner.faults = dict(faults)
    assert outcome(run_of(learner, workers=2)) == outcome(run_of(Mean(faults), engine="sequential"))


def test_workers_that_die_again_and_again_end_the_run(tmp_path: Path) -> None:
    learner = Deadly(marks(tmp_path, 50), [("site-4", Phase.TRAIN, 1)])
    with pytest.raises(RunFailed) as caught:
        run_of(learner, workers=2)
    assert str(caught.value).startswith("worker processes die again and again (the last one with exit code -9); ")


class Stuck(Deadly):
    """Hangs where ``Deadly`` dies."""

    def run(self, work: Work) -> Result:
        site: Site = work.data
        if (site.name, work.phase, work.number) in self.victims and self._claimed():
            assert os.getpid() != self.home
            signal.pause()
        return super().run(work)


def test_a_worker_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    # Twice as long for the two that a worker has: on a busy machine those that are well must have said something by then.
    options: dict[str, Any] = {"clients": {"deadline": 4.0}}
    learner = Stuck(marks(tmp_path, 1), [("site-4", Phase.TRAIN, 2)])
    assert outcome(run_of(learner, workers=2, **options)) == outcome(run_of(engine="sequential", **options))
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_between_rounds_is_replaced() -> None:
    here = stand(ZOO["softmax"])
    total, nodes, _ = played(Sequential(here.desk, Alone(here.desk)), here)
    engine = Pool(here.desk, Alone(here.desk), 2)
    for _ in range(2):
        again, same, _ = added([kept(answer) for answer in engine.work(here.tasks, here.model)], here.tasks.layout.length)
        assert (again == total).all()
        assert same == nodes
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
    engine.close()


def test_a_round_that_is_left_does_not_reach_into_the_next() -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 40)
    total, _, _ = played(Sequential(here.desk, Alone(here.desk)), here)
    engine = Pool(here.desk, Alone(here.desk), 2)

    def leave(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.work(here.tasks, here.model + 1, tick=leave))
    again, _, _ = added([kept(answer) for answer in engine.work(here.tasks, here.model)], here.tasks.layout.length)
    engine.close()
    assert (again == total).all()


# ------------------------------------------------------------------------------------------------------------------ memory


def test_answers_are_not_kept() -> None:
    here = stand(ZOO["softmax"], rows=(5,) * 30)
    for engine in (Sequential(here.desk, Alone(here.desk)), Pool(here.desk, Alone(here.desk), 2)):
        answers = list(engine.work(here.tasks, here.model))
        engine.close()
        assert not any(isinstance(answer, Answered) for answer in answers)
        assert len(answers) <= 2
