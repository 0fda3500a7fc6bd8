from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedscale.errors import ConfigError, NotFound
from fedscale.learner import Phase
from fedscale.strategy import fed_adam, fed_avgm
from fedscale_simulations import checkpoint
from fedscale_simulations.result import Progress, Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, Place, sites

OPTIONS: dict[str, Any] = {"rounds": 4, "seed": 3, "clients": {"select": 3}, "evaluate": {"patience": 9}}


@pytest.fixture(autouse=True)
def _every_phase_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is: what is resumed here must begin where it was stopped."""
    monkeypatch.setattr(checkpoint, "CHEAP", math.inf)


def test_checkpoints_that_take_long_are_left_out_but_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    monkeypatch.setattr(checkpoint, "CHEAP", -1.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(checkpoint, "save", lambda folder, run, *_: saved.append(run.status))
    simulate(Mean(), sites(5), folder=tmp_path, **OPTIONS)
    assert saved == ["running", "completed"]


def interrupted(folder: Path, place: Place, strategy: Any = None) -> None:
    """A run that somebody stops with Ctrl-C while a client works."""
    with pytest.raises(KeyboardInterrupt):
        simulate(Mean({place: KeyboardInterrupt()}), sites(5), folder=folder, strategy=strategy, **OPTIONS)


def whole(strategy: Any = None) -> Simulation:
    return simulate(Mean(), sites(5), strategy=strategy, **OPTIONS)


def somewhere(number: int, phase: Phase) -> Place:
    """A client that works in this phase of ``OPTIONS``."""
    learner = Mean()
    simulate(learner, sites(5), **OPTIONS)
    return learner.worked(phase, number)[1], phase, number


@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.EVALUATE])
@pytest.mark.parametrize("strategy", [None, fed_adam(), fed_avgm(momentum=0.5)], ids=["fedavg", "fedadam", "fedavgm"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, number: int, phase: Phase, strategy: Any) -> None:
    interrupted(tmp_path, somewhere(number, phase), strategy)
    learner = Mean()
    resumed = simulate(learner, sites(5), resume=tmp_path, strategy=strategy, **OPTIONS)
    expected = whole(strategy)
    assert resumed.digest == expected.digest
    assert np.array_equal(resumed.model["w"], expected.model["w"])
    assert [replace(row, seconds=0) for row in resumed.record.rounds] == [replace(row, seconds=0) for row in expected.record.rounds]
    assert (resumed.record.bytes_up, resumed.record.bytes_down) == (expected.record.bytes_up, expected.record.bytes_down)
    assert min(at for _, _, at in learner.calls) == number  # what was done is not done again


def test_a_folder_holds_the_results_in_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    result = simulate(Mean(), sites(), folder=folder, **OPTIONS)
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.safetensors", "summary.json", "metrics.csv", "metrics.json", "report.html", "model.safetensors",
        "card.html", "card.json", "card.md",
    }  # fmt: skip
    assert np.array_equal(load_file(folder / "model.safetensors")["w"], result.model["w"])
    assert json.loads((folder / "summary.json").read_text())["model_digest"] == result.digest


def test_resuming_leaves_everything_in_the_same_folder_unless_told_otherwise(tmp_path: Path) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN))
    assert not (tmp_path / "report.html").exists()
    simulate(Mean(), sites(5), resume=tmp_path, folder=tmp_path / "other", **OPTIONS)
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "other" / "report.html").exists()
    simulate(Mean(), sites(5), resume=str(tmp_path), **OPTIONS)
    assert (tmp_path / "report.html").exists()


def test_a_finished_run_is_resumed_without_work(tmp_path: Path) -> None:
    finished = simulate(Mean(), sites(), folder=tmp_path, **OPTIONS)
    learner = Mean()
    again = simulate(learner, sites(), resume=tmp_path, **OPTIONS)
    assert learner.calls == []
    assert again.digest == finished.digest
    assert again.record.rounds == finished.record.rounds


def test_a_run_that_failed_for_want_of_clients_can_be_tried_again(tmp_path: Path) -> None:
    place = somewhere(3, Phase.TRAIN)
    options = OPTIONS | {"clients": {"select": 3, "min_per_round": 3}}
    failed = simulate(Mean({place: ValueError("the disk was full")}), sites(5), folder=tmp_path, **options)
    assert failed.status == "failed"
    assert simulate(Mean(), sites(5), resume=tmp_path, **options).digest == simulate(Mean(), sites(5), **options).digest


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    simulate(Mean(), sites(), **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_hold_no_code_and_leave_no_scratch_files(tmp_path: Path) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN), fed_adam())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with safe_open(tmp_path / checkpoint.FILE, framework="numpy") as file:
        assert set(file.keys()) == {"model", "slot/first", "slot/second"}
        header = file.metadata()
    assert json.loads(header["facts"])["number"] == 3
    assert json.loads(header["record"])["name"] == "simulation"


def test_there_must_be_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint to resume from"):
        simulate(Mean(), sites(), resume=tmp_path, **OPTIONS)


@pytest.mark.parametrize("change", [{"rounds": 9}, {"seed": 4}, {"strategy": fed_adam()}, {"train": {"epochs": 3}}], ids=lambda c: next(iter(c)))
def test_another_plan_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN))
    with pytest.raises(ConfigError, match="belongs to another plan"):
        simulate(Mean(), sites(5), resume=tmp_path, **{**OPTIONS, **change})


def test_the_refusal_says_what_differs(tmp_path: Path) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN))
    with pytest.raises(ConfigError) as caught:
        simulate(Mean(), sites(5), resume=tmp_path, **{**OPTIONS, "rounds": 77})
    assert caught.value.why == "it has rounds = 4"


def test_other_clients_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN))
    with pytest.raises(ConfigError, match="belongs to other clients"):
        simulate(Mean(), sites(6), resume=tmp_path, **OPTIONS)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def strip(path: Path) -> None:
    save_file({"model": np.zeros(3, np.float32)}, path)


def scramble(path: Path) -> None:
    save_file({"model": np.zeros(3, np.float32)}, path, {"facts": "{", "record": "{}"})


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [shorten, strip, scramble, empty])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Any) -> None:
    interrupted(tmp_path, somewhere(3, Phase.TRAIN))
    damage(tmp_path / checkpoint.FILE)
    with pytest.raises(ConfigError, match="a checkpoint is damaged") as caught:
        simulate(Mean(), sites(5), resume=tmp_path, **OPTIONS)
    assert caught.value.where == str(tmp_path / checkpoint.FILE)


def test_a_folder_that_cannot_be_written_any_more_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    def spoil(_: Progress) -> None:
        if folder.is_dir():
            folder.rmdir()
            folder.write_text("")

    with pytest.raises(ConfigError, match="a file cannot be written"):
        simulate(Mean(), sites(), folder=folder, on_progress=spoil, **OPTIONS)
