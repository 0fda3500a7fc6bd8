from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedscale import report
from fedscale.errors import ConfigError, RunFailed
from fedscale.learner import Phase
from fedscale.run import model_digest
from fedscale_simulations.files import replace_file
from fedscale_simulations.result import Simulation
from fedscale_simulations.simulator import simulate
from tests.simulations.samples import Mean, Site, always, sites


@pytest.fixture
def ended() -> Simulation:
    learner = Mean(always("site-1", Phase.TRAIN, ValueError("x")) | {("site-2", Phase.EVALUATE, 2): MemoryError()})
    return simulate(learner, sites(), rounds=3, name="heart")


@pytest.fixture
def stillborn() -> Simulation:
    return simulate(Mean({("a", Phase.INIT, 0): ValueError("x")}), {"a": Site("a", 1.0)})


def test_the_summary_is_what_people_want_to_know(ended: Simulation) -> None:
    lines = ended.summary().splitlines()
    assert lines[0].startswith("heart: completed after 3 rounds with 4 clients in ")
    assert [line.split()[0] for line in lines[1:]] == ["evaluate", "train", "failures", "traffic", "model"]
    assert lines[1] == f"evaluate  loss {ended.metrics['evaluate.loss']:.3f}"
    assert lines[3] == "failures  3 code, 1 memory"
    assert lines[5] == f"model     sha256 {ended.digest}"


def test_the_summary_of_a_failed_run_has_its_reason(stillborn: Simulation) -> None:
    assert stillborn.status == "failed"
    first, last = stillborn.summary().splitlines()
    assert ": failed after 0 rounds with 1 clients in " in first
    assert ": no node could make the first model: a: code: " in first
    assert last == "traffic   0 B up, 0 B down"
    assert stillborn.record.seconds > 0


def test_the_model_is_there_by_name(ended: Simulation) -> None:
    assert list(ended.model) == ["w"]
    assert ended.model["w"].shape == (3,)
    assert ended.vector is not None
    assert ended.digest == model_digest(ended.vector)


def test_without_a_model_there_is_an_error_and_not_none(stillborn: Simulation) -> None:
    with pytest.raises(RunFailed, match="before there was a model"):
        _ = stillborn.model


def test_metrics_are_the_last_ones(ended: Simulation) -> None:
    assert ended.metrics == {
        "evaluate.loss": ended.record.rounds[-1].metrics["loss"],
        "train.loss": ended.record.rounds[-2].metrics["loss"],
    }


def test_the_curves_are_a_picture_for_notebooks_and_for_a_file(ended: Simulation, tmp_path: Path) -> None:
    plot = ended.plot()
    assert plot.page.count("<figure") == 2
    assert "Loss, evaluation, by round" in plot.page
    frame = plot._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert frame.count('"') == 6, "nothing of the page ends the attribute it stands in"
    assert plot.save(tmp_path / "curves.html").read_text("utf-8") == plot.page


def test_without_a_round_there_is_nothing_to_draw(stillborn: Simulation) -> None:
    assert "No round was closed, so there is nothing to draw." in stillborn.plot().page


def test_the_report_is_one_page(ended: Simulation, tmp_path: Path) -> None:
    path = ended.report(tmp_path / "new" / "heart.html")
    page = path.read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "heart" in page
    assert "site-1" in page


def test_saving_leaves_files_that_others_read(ended: Simulation, tmp_path: Path) -> None:
    files = ended.save(tmp_path)
    left = {"summary.json", "metrics.csv", "metrics.json", "report.html", "model.safetensors"}
    assert set(files) == left | {"card.html", "card.json", "card.md"}
    assert all(path.parent == tmp_path and path.stat().st_size for path in files.values())
    assert torch.equal(load_file(files["model.safetensors"])["w"], torch.from_numpy(np.array(ended.model["w"])))
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_the_card_says_what_the_run_was_and_what_people_write_into_it_stays(ended: Simulation, tmp_path: Path) -> None:
    card = ended.save(tmp_path)["card.md"]
    made = json.loads((tmp_path / "card.json").read_text())
    assert (made, made["model"]["sha256"]) == (report.model_card(ended.record), ended.digest)
    again = replace(ended, record=replace(ended.record, name="another"))
    assert again.save(tmp_path)["card.md"] == card
    assert "# Model card: another" in card.read_text(), "nobody had touched the first one"
    filled = card.read_text().replace("to be filled in", "for triage", 1)
    card.write_text(filled)
    assert "card.md" not in ended.save(tmp_path)
    assert card.read_text() == filled


def test_a_run_shows_itself_in_a_line(ended: Simulation, stillborn: Simulation) -> None:
    assert repr(ended) == f"<{ended.summary().splitlines()[0]}>"
    assert "failed after 0 rounds" in repr(stillborn)


def test_saving_without_a_model_leaves_the_rest(stillborn: Simulation, tmp_path: Path) -> None:
    assert "model.safetensors" not in stillborn.save(tmp_path)
    assert (tmp_path / "report.html").exists()


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_no_scratch(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        replace_file(tmp_path / "taken", b"x")
    assert caught.value.where == str(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
