from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys

import pytest

import fedscale

HEAVY = {"numpy", "torch", "pydantic", "cryptography", "grpc", "typer", "rich", "sqlmodel", "fedscale_simulations"}


def fresh(statements: str) -> object:
    """What a new interpreter prints after these statements, as JSON."""
    done = subprocess.run([sys.executable, "-c", statements], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_fedscale_loads_nothing_else() -> None:
    loaded = fresh("import json, sys, fedscale; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))")
    assert isinstance(loaded, list)
    assert HEAVY.isdisjoint(loaded)
    assert "fedscale" in loaded


def test_a_name_loads_its_own_module_only() -> None:
    loaded = fresh("import json, sys, fedscale; fedscale.App; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert "fedscale.learner" in loaded
    assert not {"torch", "fedscale.plan", "fedscale.data"} & set(loaded)


def test_an_app_can_be_declared_and_a_plan_made_without_torch() -> None:
    script = """
import json, sys, fedscale as fs
app = fs.App(model=dict, loss=print, metrics=["accuracy"])
plan = fs.Plan.model_validate({"job": {"name": "a"}, "strategy": {"name": "fedprox", "mu": 0.1}})
data = fs.data.from_arrays([[1.0], [2.0]], [0, 1])
print(json.dumps([len(data), plan.strategy.build().proximal, "torch" in sys.modules]))
"""
    assert fresh(script) == [2, 0.1, False]


@pytest.mark.parametrize("name", fedscale.__all__)
def test_every_export_is_the_thing_of_its_module(name: str) -> None:
    value = getattr(fedscale, name)
    if name in ("data", "flower"):
        assert value is importlib.import_module(f"fedscale.{name}")
    else:
        home = fedscale._HOME[name]
        assert value is getattr(importlib.import_module(home), name)
        assert getattr(value, "__module__", home) == home
    assert getattr(fedscale, name) is value


def test_what_is_exported_is_sorted_listed_and_has_a_home() -> None:
    assert list(fedscale.__all__) == sorted(set(fedscale.__all__), key=lambda name: (not name.isupper(), name))
    assert set(fedscale.__all__) == {*fedscale._HOME, "data", "flower"}
    assert set(fedscale.__all__) <= set(dir(fedscale))
    assert dir(fedscale) == sorted(dir(fedscale))


def test_what_a_user_needs_first_is_there() -> None:
    needed = {"App", "Learner", "Work", "Result", "Phase", "Plan", "Strategy", "Schema", "Metric", "simulate", "data"}
    strategies = {"fed_avg", "fed_avgm", "fed_adam", "fed_yogi", "fed_adagrad", "fed_prox"}
    assert needed | strategies <= set(fedscale.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error_with_a_suggestion() -> None:
    with pytest.raises(AttributeError, match="module 'fedscale' has no attribute 'simulat'") as caught:
        getattr(fedscale, "simulat")  # noqa: B009 - a type checker would refuse the attribute
    assert caught.value.name == "simulat"
    assert caught.value.obj is fedscale


def test_from_import_works() -> None:
    assert fresh("from fedscale import App, data, fed_avg; import json; print(json.dumps([App.__name__, data.__name__, fed_avg().name]))") == [
        "App",
        "fedscale.data",
        "fedavg",
    ]


def test_the_version_is_one_that_an_index_accepts() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", fedscale.__version__)
    assert fresh("import json, fedscale; print(json.dumps(fedscale.__version__))") == fedscale.__version__
