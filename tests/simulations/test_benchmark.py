"""The simulator's benchmark: what its rows say of each other, and of who does not end in time."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import Figure, Missing, _bars, cuda, simulator
from benchmarks.__main__ import main
from benchmarks.rivals import workloads


def row(who: str, pace: float, loss: float = 1.0, **rest: object) -> simulator.Row:
    return {"workload": "w1", "who": who, "clients_per_s": pace, "first_round_s": 0.5, "final_loss": loss} | rest


def test_each_row_says_what_ours_is_to_it_and_what_it_is_to_pfl() -> None:
    rows = simulator.compared([row("fedscale", 60.0), row(simulator.PFL, 30.0), row("fedscale, mixed", 75.0, 2.0), row("plain", 20.0, 1.5)])
    assert [(each["ratio"], each["over_pfl"], each["same_work"]) for each in rows] == [
        (1.0, 2.0, True),
        (2.0, 1.0, True),
        (0.8, 2.5, True),  # another experiment, which may end with another loss
        (3.0, pytest.approx(20 / 30), False),
    ]


def test_without_ours_or_pfl_there_is_nothing_to_compare_with() -> None:
    assert simulator.compared([row("plain", 20.0)]) == [row("plain", 20.0)]
    assert "over_pfl" not in simulator.compared([row("fedscale", 60.0)])[0]


def test_who_is_given_up_in_the_middle_of_a_round_has_a_bound_for_a_pace() -> None:
    given_up = simulator.unfinished("flower", "w2", None, 50.0)
    assert given_up["clients_per_s"] == 20.0
    assert simulator.unfinished("flower", "w2", 10, 50.0)["clients_per_s"] == 0.2
    rows = simulator.compared([row("fedscale", 8000.0, workload="w2"), given_up])
    assert (rows[1]["ratio"], rows[1]["same_work"]) == (400.0, True)
    line = simulator._table(rows).splitlines()[-1]
    assert "< 20" in line
    assert "> 400" in line


@pytest.mark.parametrize(("begins", "limit"), [(True, 8.0), (False, 0.1)])
def test_a_run_that_takes_too_long_is_ended_and_counts_from_its_last_mark(
    begins: bool,
    limit: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = "Path(os.environ['BENCH_MARKS']).write_text(repr(time.monotonic()))" if begins else "pass"
    (tmp_path / "slow.py").write_text(f"import os, time\nfrom pathlib import Path\n{mark}\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr(simulator, "SCRIPTS", tmp_path)
    monkeypatch.setitem(simulator.RIVALS, "plain", "slow.py")
    began = time.monotonic()
    found = simulator.run(Path(sys.executable), "plain", "w3", tmp_path, limit=limit)
    lasted = time.monotonic() - began
    if not begins:
        assert found is None
        assert "plain on w3 gave no result:\nit took more than 0 s" in capsys.readouterr().err
        return
    assert found is not None
    assert found["clients_per_s"] >= 20 / lasted
    assert math.isnan(found["final_loss"])


def test_cohorts_are_those_of_the_workloads() -> None:
    assert {name: workload.cohort for name, workload in workloads.WORKLOADS.items()} == simulator.COHORTS


def test_a_gpu_is_compared_with_the_processors_and_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, told = cuda.first_model("w2"), list[simulator.Changes]()

    def ran(_python: Path, name: str, workload: str, _folder: Path, changes: simulator.Changes) -> simulator.Row:
        told.append(changes)
        trained = first + (0.5 if changes["device"] == "cpu" else 0.5 + 2e-4)
        trained[0] += len(told) == 4
        np.save(str(changes["model"]), trained)
        return row(name, 10.0 * len(told), workload=workload)

    monkeypatch.setattr(simulator, "prepare", lambda *_: None)
    monkeypatch.setattr(simulator, "run", ran)
    figures = {figure.name: figure for figure in cuda.compared("w2", tmp_path, cuda.ENTRANTS)}
    assert [(each["device"], each["engine"], each["rounds"]) for each in told] == [
        ("cpu", "vectorized", 3), ("cuda", "sequential", 3), ("cuda", "vectorized", 3), ("cuda", "vectorized", 3)
    ]  # fmt: skip
    assert figures["w2 processors"].value == 10.0
    assert figures["w2 GPU, many clients at once, over processors"].value == 3.0
    assert figures["w2 GPU, many clients at once, gap"].value == pytest.approx(4e-4, rel=1e-2)
    assert "MISSED" not in str(figures["w2 GPU, clients one by one, gap"])
    assert "MISSED" in str(figures["w2 GPU, the same again, gap"])
    assert figures["w2 GPU, other bits"].value == 1.0
    monkeypatch.setattr(simulator, "run", lambda *_: None)
    with pytest.raises(Missing, match="w2 on processors gave no result"):
        list(cuda.compared("w2", tmp_path, cuda.ENTRANTS))


def lacking() -> Iterator[Figure]:
    raise Missing("no CUDA device")
    yield


@pytest.mark.parametrize(("words", "ends"), [(["cuda"], True), ([], False)])
def test_what_is_missing_ends_only_the_measurement_that_was_asked_for(
    words: list[str], ends: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    monkeypatch.setattr(pkgutil, "iter_modules", lambda _: [SimpleNamespace(name=name) for name in ("cuda", "other")])
    monkeypatch.setattr(
        importlib, "import_module", lambda name: SimpleNamespace(measure=lacking if "cuda" in name else lambda: [Figure("a", 1, "s")])
    )
    if ends:
        with pytest.raises(SystemExit, match="^cuda: no CUDA device$"):
            main()
    else:
        main()
        told = capsys.readouterr()
        assert "not measured: no CUDA device" in told.err
        assert told.out.startswith("other")


def test_the_table_is_drawn_with_a_bar_as_long_as_each_pace_beside_the_fastest() -> None:
    rows = [row("fedscale", 60.0, ratio=1.0), row(simulator.PFL, 30.0, ratio=2.0), row("a<b", 0.05, ratio=1234.0, unfinished=True)]
    plot = _bars.drawn(rows)
    assert re.findall(r'<rect[^>]* width="([^"]*)"', plot) == [f"{_bars.PACE:g}", f"{_bars.PACE / 2:g}", "1"]
    assert re.findall(r"<text[^>]*>([^<]*)</text>", plot) == [
        _bars.TITLES["w1"],
        "fedscale",
        "60 clients/s",
        simulator.PFL,
        "30 clients/s, fedscale 2x",
        "a&lt;b",
        "fewer than 0.05 clients/s, fedscale over 1,234x",
    ]
