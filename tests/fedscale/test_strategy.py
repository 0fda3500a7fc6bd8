from __future__ import annotations

import ast
import inspect
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedscale import optimizers, strategy
from fedscale.aggregate import Each, Mean
from fedscale.errors import PlanError
from fedscale.optimizers import sgd
from fedscale.strategy import STRATEGIES, Strategy, fed_adam, fed_avg, fed_avgm, fed_prox
from fedscale.transform import ClipNorm
from tests.fedscale.world import vector


def test_the_names_of_plans_are_the_names_of_python() -> None:
    assert list(STRATEGIES) == ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fedbuff", "flower", "led"]
    assert all(getattr(strategy, name.replace("fed", "fed_")) is make for name, make in STRATEGIES.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_a_frozen_value_with_defaults(name: str) -> None:
    value = STRATEGIES[name]()
    assert (value.name, value.params, type(value.aggregator), value.weighting) == (name, {}, Each if name == "flower" else Mean, "examples")
    with pytest.raises(FrozenInstanceError):
        value.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_argument_has_a_default_and_is_named(name: str) -> None:
    parameters = inspect.signature(STRATEGIES[name]).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    with pytest.raises(PlanError):
        STRATEGIES[name](0.1)


def test_the_arguments_are_noted() -> None:
    assert fed_avg(lr=0.5, clip_norm=1.0).params == {"lr": 0.5, "clip_norm": 1.0}
    assert fed_prox(mu=0.1).params == {"mu": 0.1}


def test_what_each_is_made_of() -> None:
    assert fed_avg(weighting="equal", clip_norm=2.0).transforms == (ClipNorm(2.0),)
    assert (fed_avg(weighting="equal").weighting, fed_avg().transforms, fed_avg().proximal) == ("equal", (), 0.0)
    assert (fed_prox(mu=0.1).proximal, fed_prox(mu=0.1).optimizer.slots) == (0.1, ())
    assert (fed_avgm().optimizer.slots, fed_adam().optimizer.slots) == (("velocity",), ("first", "second"))


def test_the_arguments_reach_the_step() -> None:
    model, delta = vector(0), vector(1)
    assert fed_avg(lr=0.25).optimizer.update(delta, model, {}, 1)[0].tolist() == [0.25]
    assert fed_prox(lr=0.5).optimizer.update(delta, model, {}, 1)[0].tolist() == [0.5]
    slots = fed_avgm(lr=0.5, momentum=0.5).optimizer.update(delta, model, {"velocity": vector(2)}, 1)[1]
    assert slots["velocity"].tolist() == [2.0]


def test_a_strategy_composed_by_hand() -> None:
    value = Strategy(sgd(0.5), transforms=(ClipNorm(1.0),), proximal=0.1)
    assert (value.name, value.params, value.weighting) == ("custom", {}, "examples")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fedavg", {"lr": 0}, "strategy.lr: fedavg: lr: input should be greater than 0"),
        ("fedavg", {"lr": float("nan")}, "strategy.lr: fedavg: lr: input should be a finite number"),
        ("fedavg", {"lr": float("inf")}, "strategy.lr: fedavg: lr: input should be a finite number"),
        ("fedavg", {"lr": None}, "strategy.lr: fedavg: lr: input should be a valid number"),
        ("fedavg", {"clip_norm": -1}, "strategy.clip_norm: fedavg: clip_norm: input should be greater than 0"),
        ("fedavg", {"weighting": "size"}, "strategy.weighting: fedavg: weighting: input should be 'examples' or 'equal'"),
        ("fedavg", {"momentum": 0.9}, "strategy.momentum: fedavg has no setting 'momentum'; known: lr, weighting, clip_norm"),
        ("fedavgm", {"momentum": 1.0}, "strategy.momentum: fedavgm: momentum: input should be less than 1"),
        ("fedavgm", {"momentum": -0.1}, "strategy.momentum: fedavgm: momentum: input should be greater than or equal to 0"),
        ("fedadam", {"beta2": 1.0}, "strategy.beta2: fedadam: beta2: input should be less than 1"),
        ("fedadam", {"tau": 0}, "strategy.tau: fedadam: tau: input should be greater than 0"),
        ("fedyogi", {"beta1": "x"}, "strategy.beta1: fedyogi: beta1: input should be a valid number, unable to parse string as a number"),
        ("fedadagrad", {"beta1": 0.9}, "strategy.beta1: fedadagrad has no setting 'beta1'; known: lr, tau"),
        ("fedprox", {"mu": 0}, "strategy.mu: fedprox: mu: input should be greater than 0"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        STRATEGIES[name](**arguments)
    assert str(caught.value) == message


def code_lines(module: ModuleType, name: str) -> int:
    """Lines of a function with its decorators, without docstring and blank lines."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body = function.body[1:]
    return len([line for line in ast.unparse(function).splitlines() if line.strip()])


def test_fed_adam_costs_at_most_ten_lines_beyond_fed_avg() -> None:
    assert code_lines(strategy, "fed_adam") + code_lines(optimizers, "adam") <= 10
    assert np.isfinite(fed_adam().optimizer.update(vector(1), vector(0), {"first": vector(0), "second": vector(0)}, 1)[0]).all()


def test_what_is_composed_of_a_strategy_is_custom() -> None:
    made = fed_avg(lr=0.5)
    assert (made.name, made.params) == ("fedavg", {"lr": 0.5})
    changed = replace(made, proximal=0.1)
    assert (changed.name, changed.params, changed.optimizer) == ("custom", {}, made.optimizer)
    with pytest.raises(ValueError, match="name"):
        replace(made, name="mine")
