from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.data import Dataset, Population, from_arrays
from fedscale.errors import AppError, DataError, NotFound, PlanError
from fedscale.learner import Phase
from fedscale.strategy import fed_avg
from fedscale_simulations.job import Job, Table, importable, strategy_of
from fedscale_simulations.result import Progress
from fedscale_simulations.simulator import simulate, simulate_file
from tests.simulations.samples import Mean, plan_of, sites

JOB = '[job]\nname = "line"\napp = "line.app:app"\nseed = 5\n\n[strategy]\nrounds = 3\n\n[train]\noptimizer = { lr = 0.1 }\ndevice = "cpu"\n'
APP = '''
"""A line through points, in one package with its data."""

import numpy as np
import torch

from fedscale import App, data
from line.made import points

app = App(model=lambda: torch.nn.Linear(2, 1), loss=torch.nn.functional.mse_loss)


def population(clients, seed):
    rng = np.random.default_rng(seed)
    return data.Population.of({f"site-{at}": points(rng, 20) for at in range(clients or 4)})
'''
MADE = """
from fedscale.data import from_arrays


def points(rng, count):
    x = rng.normal(size=(count, 2))
    return from_arrays(x, x @ [1.0, -2.0] + 0.5)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose app is a package of two modules."""
    (tmp_path / "line").mkdir()
    for name, text in {"job.toml": JOB, "line/__init__.py": "", "line/app.py": APP, "line/made.py": MADE}.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "job.toml"


def rewrite(job: Path, old: str, new: str) -> None:
    path = job.parent / "line" / "app.py"
    path.write_text(path.read_text().replace(old, new))


def csv(path: Path, rows: int = 60) -> Path:
    """A table of two features, a label and a ward."""
    rng = np.random.default_rng(1)
    lines = [f"{x:.3f},{z:.3f},{at % 2},{at % 3}" for at, (x, z) in enumerate(rng.normal(size=(rows, 2)))]
    path.write_text("\n".join(["x,z,sick,ward", *lines]) + "\n")
    return path


# --------------------------------------------------------------------------------------------------------------- job files


def test_a_job_file_is_simulated_with_the_app_and_the_data_beside_it(job: Path) -> None:
    result = simulate_file(job)
    assert result.status == "completed"
    assert result.record.name == "line"
    assert result.record.nodes == ("site-0", "site-1", "site-2", "site-3")
    assert result.record.plan_hash == simulate_file(str(job)).record.plan_hash
    assert result.metrics["evaluate.loss"] < result.record.rounds[0].metrics["loss"] / 2


def test_clients_overrides_folder_and_progress_are_taken(job: Path, tmp_path: Path) -> None:
    shown: list[Progress] = []
    result = simulate_file(job, 7, ["strategy.rounds=2", "evaluate.every=0"], tmp_path / "out", shown.append)
    assert len(result.record.nodes) == 7
    assert [row.number for row in result.record.rounds] == [1, 2]
    assert (tmp_path / "out" / "report.html").exists()
    assert shown[-1].closed == result.record.rounds[-1]


def test_a_job_file_gives_the_same_model_as_its_plan_in_python(job: Path) -> None:
    from_file = simulate_file(job)
    with importable(job.parent):
        module = importlib.import_module("line.app")
        plan = plan_of(
            job={"name": "line", "app": "line.app:app", "seed": 5}, strategy={"rounds": 3}, train={"optimizer": {"lr": 0.1}, "device": "cpu"}
        )
        in_python = simulate(module.app, module.population(None, 5), plan=plan)
    assert in_python.digest == from_file.digest
    assert in_python.record.plan_hash == from_file.record.plan_hash


def test_a_job_file_is_resumed(job: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.closed and progress.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_file(job, folder=tmp_path / "out", on_progress=stop)
    assert simulate_file(job, resume=tmp_path / "out").digest == simulate_file(job).digest
    with pytest.raises(NotFound):
        simulate_file(job, resume=tmp_path / "nowhere")


def test_a_table_is_spread_in_place_of_the_apps_own_data(job: Path, tmp_path: Path) -> None:
    table = Table(csv(tmp_path / "cells.csv"), "sick", "column", {"column": "ward"})
    result = simulate_file(job, table=table)
    assert result.record.nodes == ("0", "1", "2")
    assert result.status == "completed"


def test_the_column_that_spreads_a_table_may_be_text_and_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("age,ward,dose,sick\n" + "".join(f"{n}.5,{'east' if n % 3 else 'west'},{n % 4},{n % 2}\n" for n in range(12)) + "7,east,,1\n")
    table = Table(path, "sick", "column", {"column": "ward"}, missing_policy="drop")
    wards = table.population(None, 0)
    assert {name: len(wards[name]) for name in wards} == {"east": 8, "west": 4}
    assert wards["east"].columns == ("age", "dose")
    assert len(wards["west"].split(0.25, 0)[1]) == 1, "a client is no group, of which nothing could be held out"
    assert replace(table, columns=("dose",)).population(2, 0)["east"].columns == ("dose",)
    with pytest.raises(DataError, match="has a missing value") as caught:
        replace(table, missing_policy="refuse").population(None, 0)
    assert "--missing drop" in caught.value.hint


def test_the_app_is_read_anew_and_forgotten(job: Path) -> None:
    before, path = set(sys.modules), list(sys.path)
    first = simulate_file(job).digest
    rewrite(job, "rng = np.random.default_rng(seed)", "rng = np.random.default_rng(seed + 1)")
    assert simulate_file(job).digest != first
    assert sys.path == path
    assert not any(name.startswith("line") for name in set(sys.modules) - before)


# ---------------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from line.made", "from line.maid", r"'line.app' cannot be imported \(ModuleNotFoundError: No module named 'line.maid'\)"),
        ("app = App", "app = = App", r"'line.app' cannot be imported \(SyntaxError"),
        ("torch.nn.functional.mse_loss", "torch.nn.functional.nope", r"'line.app' cannot be imported \(AttributeError"),
        ("app = App", "model = App", "'line.app' has no 'app'.*module:attribute"),
        ("app = App", "app = dict", "the app is of type dict"),
    ],
)
def test_faults_of_the_app_are_named(job: Path, old: str, new: str, message: str) -> None:
    rewrite(job, old, new)
    with pytest.raises(AppError, match=message):
        simulate_file(job)


def test_a_module_that_is_not_there_is_named(job: Path) -> None:
    job.write_text(JOB.replace("line.app:app", "lime:app"))
    with pytest.raises(AppError, match="'lime' cannot be imported") as caught:
        simulate_file(job)
    assert caught.value.where == str(job.parent)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("assert False, 'never'", "AssertionError: never"),
        ("class Odd(Exception): pass\nraise Odd('own')", "Odd: own"),
        ("import sys; sys.exit(3)", "RuntimeError: the code called sys.exit(3)"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_whatever_the_apps_own_code_raises_is_its_fault_and_not_ours(job: Path, line: str, why: str) -> None:
    app, at = job.parent / "line" / "app.py", len(line.splitlines())
    sound = app.read_text()
    app.write_text(f"{line}\n{sound}")
    with pytest.raises(AppError, match="'line.app' cannot be imported") as caught:
        simulate_file(job)
    assert (caught.value.where, caught.value.why) == (f"app.py:{at}", why)
    body = "".join(f"    {part}\n" for part in line.splitlines())
    app.write_text(f"{sound}\ndef population(clients, seed):\n{body}")
    with pytest.raises(AppError, match=r"population\(clients, seed\) failed") as caught:
        simulate_file(job)
    assert (caught.value.where.partition(":")[0], caught.value.why) == ("app.py", why)


def test_an_app_without_data_says_what_to_do(job: Path) -> None:
    rewrite(job, "def population", "def people")
    with pytest.raises(DataError, match=r"says nothing about the data.*CSV file.*population\(clients, seed\)"):
        simulate_file(job)


@pytest.mark.parametrize("made", ["None", "[]", "{}", "{1: 2}"])
def test_data_that_are_no_clients_are_refused(job: Path, made: str) -> None:
    rewrite(job, "return data.Population.of(", f"return {made}; (")
    with pytest.raises(DataError, match="a mapping from the names of clients|there are no clients|the name of a client"):
        simulate_file(job)


def test_a_job_file_that_is_none_is_named(tmp_path: Path, job: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan"):
        simulate_file(tmp_path / "nowhere" / "job.toml")
    job.write_text(JOB + "[clients]\nmin_per_rund = 2\n")
    with pytest.raises(PlanError, match=r"job.toml:\d+: 'clients.min_per_rund' is not a setting.*min_per_round"):
        simulate_file(job)


def test_a_metric_that_the_app_does_not_have_is_found_before_the_first_round(job: Path) -> None:
    with pytest.raises(AppError, match="there is no metric 'acuracy'"):
        simulate_file(job, overrides=['evaluate.metrics=["acuracy"]'])


# -------------------------------------------------------------------------------------------------------------- modules of a folder


def test_modules_of_the_same_name_step_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "twin_module.py").write_text(f"NAME = {name!r}")
    monkeypatch.syspath_prepend(tmp_path / "one")
    outer = importlib.import_module("twin_module")
    with importable(tmp_path / "two"):
        assert importlib.import_module("twin_module").NAME == "two"
    assert sys.modules["twin_module"] is outer
    assert importlib.import_module("twin_module").NAME == "one"
    del sys.modules["twin_module"]


def test_packages_without_an_init_are_those_of_each_folder(tmp_path: Path) -> None:
    """And one by the name of a module that lies elsewhere gives way to it, as it does in Python."""
    for name in ("one", "two"):
        (tmp_path / name / "src" / "twin").mkdir(parents=True)
        (tmp_path / name / "src" / "twin" / "part.py").write_text(f"NAME = {name!r}")
        (tmp_path / name / "pytest").mkdir()
        with importable(tmp_path / name):
            loaded = importlib.import_module("src.twin.part")
            assert name == loaded.NAME
            assert sys.modules["pytest"] is pytest
        assert "src" not in sys.modules


def test_a_module_from_elsewhere_to_which_a_directory_gave_way_stays_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cannot be loaded twice in a process; tools leave directories of their own name beside an app."""
    for path in ("app/late_tool", "elsewhere/late_tool"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "elsewhere" / "late_tool" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    with importable(tmp_path / "app"):
        tool = importlib.import_module("late_tool")
    assert sys.modules.pop("late_tool") is tool


def test_modules_that_are_loaded_from_the_folder_already_stay(root: Path) -> None:
    kept = sys.modules["fedscale"]
    with importable(root):
        assert sys.modules["fedscale"] is kept
    assert sys.modules["fedscale"] is kept
    assert sys.modules["fedscale.errors"].AppError is AppError


def test_the_standard_library_is_not_put_aside(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("broken = 1")
    with importable(tmp_path):
        assert importlib.import_module("json") is json


def test_what_was_imported_is_forgotten_after_an_error_too(job: Path) -> None:
    rewrite(job, "rng = np", "raise KeyError('on purpose')\n    rng = np")
    with pytest.raises(AppError, match=r"app.py:\d+: population\(clients, seed\) failed \(KeyError: 'on purpose'\)"):
        simulate_file(job)
    assert "line.app" not in sys.modules
    assert str(job.parent.resolve()) not in sys.path


# ------------------------------------------------------------------------------------------------------------ parts of a job


def test_a_table_has_ten_clients_unless_told_otherwise(tmp_path: Path) -> None:
    table = Table(csv(tmp_path / "cells.csv"), "sick")
    whole = table.population(None, 0)
    assert isinstance(whole, Population)
    assert len(whole) == 10
    assert len(table.population(4, 0)) == 4
    assert sum(len(part) for part in whole.values()) == 60
    assert whole["client-0000"].digest != table.population(None, 1)["client-0000"].digest


def test_the_way_a_table_is_spread_is_checked(tmp_path: Path) -> None:
    path = csv(tmp_path / "cells.csv")
    assert len(Table(path, "sick", "dirichlet", {"alpha": 0.5}).population(3, 0)) == 3
    with pytest.raises(DataError, match="needs the option 'alpha'"):
        Table(path, "sick", "dirichlet").population(3, 0)
    with pytest.raises(DataError):
        Table(path, "sik").population(3, 0)


@pytest.mark.parametrize("data", [None, {}, [1], from_arrays(np.zeros((3, 2)), [0, 1, 1])], ids=["none", "empty", "list", "dataset"])
def test_clients_are_needed(data: Any) -> None:
    plan = plan_of()
    with pytest.raises(DataError) as caught:
        Job(plan, plan.strategy.build(), Mean(), data)
    assert ('data.partition("iid", clients=10)' in caught.value.hint) == isinstance(data, Dataset)


def test_a_custom_plan_needs_its_strategy_and_no_other_does() -> None:
    custom = plan_of(strategy={"name": "custom"})
    given = fed_avg()
    assert strategy_of(custom, given) is given
    with pytest.raises(PlanError, match="composed in Python"):
        strategy_of(custom)
    with pytest.raises(PlanError, match="names a strategy and one is given"):
        strategy_of(plan_of(), given)
    assert strategy_of(plan_of(strategy={"name": "fedprox", "mu": 0.3})).proximal == 0.3


def test_a_lazy_mapping_of_clients_is_asked_only_for_those_who_work() -> None:
    class Lazy(dict[str, Any]):
        asked: list[str] = []  # noqa: RUF012 - counts for the whole test

        def __getitem__(self, name: str) -> Any:
            self.asked.append(name)
            return super().__getitem__(name)

    learner = Mean()
    simulate(learner, Lazy(sites(40)), rounds=2, clients={"select": 3}, evaluate={"every": 0})
    worked = {name for name, _, _ in learner.calls}
    assert set(Lazy.asked) == worked
    assert len(Lazy.asked) == len({(name, phase is Phase.INIT) for name, phase, _ in learner.calls})
