from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import PlanError
from fedscale.plan import Clients, Plan, StrategyTable, seconds, share
from fedscale.strategy import STRATEGIES, fed_adam

FULL = """
[job]
name = "heart-risk"
app = "models.tabular:app"
data = "cohort"
seed = 7

[strategy]
name = "fedadam"
rounds = 20
lr = 0.05          # the server's step
beta1 = 0.8

[clients]
select = 0.5
min_per_round = 3
over_select = 1.25
deadline = "20m"
rejoin = "1.5s"
wait_for = 4

[train]
epochs = 2
batch_size = 64
max_steps = 100
device = "cpu"
amp = true

[train.optimizer]
name = "adamw"
lr = 0.01
weight_decay = 0.1

[aggregate]
bound = 4
weight_cap = 1000

[evaluate]
every = 2
metrics = ["auc", "accuracy"]
select = 5
holdout = 0.25
per_site = false
patience = 3
monitor = "auc"
"""
MINIMAL = '[job]\nname = "a"\n'
# Of FULL with all defaults; a new setting changes it, nothing else may.
DIGEST = "4464dabb9994df1f89cea1f41a715a52b30fe183ee238c7ad72cf58ae733b126"


def test_a_full_plan_is_read() -> None:
    plan = Plan.from_toml(FULL)
    assert (plan.job.name, plan.job.app, plan.job.data, plan.job.seed) == ("heart-risk", "models.tabular:app", "cohort", 7)
    assert (plan.strategy.name, plan.strategy.rounds, plan.strategy.model_extra) == ("fedadam", 20, {"lr": 0.05, "beta1": 0.8})
    assert plan.clients == Clients(select=0.5, min_per_round=3, over_select=1.25, deadline=1200, rejoin=1.5, wait_for=4)
    assert (plan.train.epochs, plan.train.batch_size, plan.train.max_steps, plan.train.device, plan.train.amp) == (2, 64, 100, "cpu", True)
    assert (plan.train.optimizer.name, plan.train.optimizer.lr, plan.train.optimizer.weight_decay) == ("adamw", 0.01, 0.1)
    assert (plan.aggregate.bound, plan.aggregate.weight_cap) == (4.0, 1000.0)
    assert (plan.evaluate.every, plan.evaluate.pooled, plan.evaluate.select, plan.evaluate.monitor) == (2, ("loss", "auc", "accuracy"), 5, "auc")


def test_what_a_minimal_plan_means() -> None:
    plan = Plan.from_toml(MINIMAL)
    assert (plan.job.app, plan.job.data, plan.job.seed) == ("app:app", "default", 0)
    assert (plan.strategy.name, plan.strategy.rounds, plan.clients.select, plan.clients.min_per_round) == ("fedavg", 10, "all", 1)
    assert (plan.clients.deadline, plan.clients.rejoin, plan.clients.wait_for) == (600.0, 30.0, None)
    assert (plan.evaluate.every, plan.evaluate.pooled, plan.evaluate.patience, plan.evaluate.holdout) == (1, ("loss",), 0, 0.2)


@pytest.mark.parametrize("text", [FULL, MINIMAL])
def test_toml_round_trip(text: str) -> None:
    plan = Plan.from_toml(text)
    again = Plan.from_toml(plan.to_toml())
    assert again == plan
    assert again.digest == plan.digest
    assert again.to_toml() == plan.to_toml()
    assert "rejoin" in plan.to_toml()


selections = st.just("all") | st.integers(1, 1000) | st.floats(0.001, 0.999)
plans = st.fixed_dictionaries(
    {
        "job": st.fixed_dictionaries({"name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), "seed": st.integers(0, 2**63 - 1)}),
        "strategy": st.fixed_dictionaries(
            {"name": st.sampled_from(sorted(STRATEGIES.keys() - {"flower", "led"})), "rounds": st.integers(1, 1000)},
            optional={"lr": st.floats(1e-6, 10)},
        ),
        "clients": st.fixed_dictionaries(
            {"select": selections, "deadline": st.floats(0.001, 86400), "over_select": st.floats(1, 10)}, optional={"wait_for": st.integers(1, 9)}
        ),
        "aggregate": st.fixed_dictionaries({"bound": st.floats(1e-3, 2.0**16), "weight_cap": st.floats(1, 2.0**26)}),
        "evaluate": st.fixed_dictionaries(
            {"select": selections, "every": st.integers(0, 9), "metrics": st.lists(st.sampled_from(["auc", "loss", "brier"]), unique=True)}
        ),
    }
)


@settings(deadline=None)
@given(plans)
def test_any_plan_survives_toml(tree: dict[str, Any]) -> None:
    plan = Plan.model_validate(tree)
    again = Plan.from_toml(plan.to_toml())
    assert again == plan
    assert again.digest == plan.digest


def test_the_digest_names_the_content_not_the_text() -> None:
    shuffled = '# a comment\n[strategy]\nrounds = 10\n[job]\nseed = 0\nname = "a"\n[clients]\ndeadline = "10m"\n'
    assert Plan.from_toml(shuffled).digest == Plan.from_toml(MINIMAL).digest
    assert Plan.from_toml(MINIMAL, file="other.toml").digest == Plan.model_validate({"job": {"name": "a"}}).digest


@pytest.mark.parametrize("setting", ["job.seed=1", "strategy.lr=0.5", "clients.select=2", "train.epochs=2", "aggregate.bound=4", "evaluate.every=2"])
def test_the_digest_changes_with_every_table(setting: str) -> None:
    assert Plan.from_toml(MINIMAL, overrides=[setting]).digest != Plan.from_toml(MINIMAL).digest


def test_the_digest_is_the_same_on_every_machine() -> None:
    assert Plan.from_toml(FULL).digest == DIGEST


@pytest.mark.parametrize(
    ("text", "length"), [("20m", 1200.0), ("1.5h", 5400.0), ("500ms", 0.5), (" 2 d ", 172800.0), ("0.25s", 0.25), (90, 90.0), (1.5, 1.5)]
)
def test_durations(text: str | float, length: float) -> None:
    assert seconds(text) == length
    assert Clients(deadline=text).deadline == length


@pytest.mark.parametrize("text", ["20", "m", "-5s", "1e3s", "5 min", "5s5s", "", "NaNs", "1_0s", "1.s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a duration is a number and one of ms, s, m, h, d, as in '20m'$"):
        seconds(text)


def test_overrides_win_over_the_file() -> None:
    plain = ["strategy.rounds=3", "clients.select=all", "job.data=other", "train.optimizer.lr=1"]
    plan = Plan.from_toml(FULL, overrides=[*plain, 'evaluate.metrics=["brier"]', "evaluate.monitor=brier"])
    assert (plan.strategy.rounds, plan.clients.select, plan.job.data) == (3, "all", "other")
    assert (plan.evaluate.pooled, plan.train.optimizer.lr, plan.train.optimizer.name) == (("loss", "brier"), 1.0, "adamw")
    assert Plan.from_toml(MINIMAL, overrides=["clients.deadline=5s", "clients.deadline=6s"]).clients.deadline == 6.0


def test_a_plan_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(FULL, encoding="utf-8")
    assert Plan.load(path) == Plan.load(str(path)) == Plan.from_toml(FULL)
    assert Plan.load(path, ["job.seed=9"]).job.seed == 9
    path.write_text(MINIMAL + "sed = 1\n", encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert str(caught.value) == f"{path}:3: 'job.sed' is not a setting; did you mean 'seed'?"


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("  lr=-1", "job.toml:4"),
        ('"lr" = -1', "job.toml:4"),
        ("'lr' = -1 # server", "job.toml:4"),
        ("# lr = 1\n\nlr = -1", "job.toml:6"),
        ("rounds = 2\nlr = -1", "job.toml:5"),
    ],
)
def test_the_line_of_a_strategy_argument(line: str, where: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_toml(f"{MINIMAL}[ strategy ]\n{line}\n", file="job.toml")
    assert (caught.value.where, caught.value.what) == (where, "fedavg: lr: input should be greater than 0")


@pytest.mark.parametrize(
    ("clients", "eligible", "expected"),
    [
        ({}, 7, (7, 7)),
        ({"select": 3}, 7, (3, 3)),
        ({"select": 9}, 7, (7, 7)),
        ({"select": 0.5}, 7, (4, 4)),
        ({"select": 0.07}, 100, (7, 7)),
        ({"select": 0.29}, 100, (29, 29)),
        ({"select": 0.001}, 7, (1, 1)),
        ({"select": 0.1, "min_per_round": 3}, 7, (3, 3)),
        ({"select": 10, "over_select": 1.1}, 100, (11, 10)),
        ({"select": 4, "over_select": 1.3}, 7, (6, 4)),
        ({"select": 4, "over_select": 9}, 7, (7, 4)),
    ],
)
def test_how_many_are_asked(clients: dict[str, Any], eligible: int, expected: tuple[int, int]) -> None:
    assert Clients(**clients).asked(eligible) == expected


@given(selections, st.floats(1, 10), st.integers(1, 5), st.integers(5, 5000))
def test_what_is_asked_can_always_be_answered(select: Any, over: float, quorum: int, eligible: int) -> None:
    asked, target = Clients(select=select, over_select=over, min_per_round=quorum).asked(eligible)
    assert quorum <= target <= asked <= eligible
    wanted = eligible if select == "all" else select if isinstance(select, int) else math.ceil(select * eligible)
    assert target in {min(eligible, max(wanted, quorum)), min(eligible, max(wanted - 1, quorum))}


def test_a_share_is_rounded_up_but_not_by_an_error_of_arithmetic() -> None:
    assert [share(100, n / 100) for n in range(1, 100)] == list(range(1, 100))
    assert share(3, 0.5) == 2


def test_the_table_makes_the_strategy() -> None:
    table = StrategyTable.model_validate({"name": "fedadam", "rounds": 2, "lr": 0.5})
    built, direct = table.build(), fed_adam(lr=0.5)
    assert (built.name, built.params) == (direct.name, direct.params) == ("fedadam", {"lr": 0.5})
    assert (table.weighting, StrategyTable.model_validate({"weighting": "equal"}).weighting) == ("examples", "equal")


def test_a_custom_strategy_exists_only_in_python() -> None:
    plan = Plan.from_toml(MINIMAL + '[strategy]\nname = "custom"\n')
    with pytest.raises(PlanError, match="^strategy.name: no strategy 'custom'; known: fedavg"):
        plan.strategy.build()


def test_a_plan_cannot_be_changed() -> None:
    plan = Plan.from_toml(FULL)
    with pytest.raises(ValueError, match="frozen"):
        plan.clients.select = 3  # type: ignore[misc]


def test_what_is_written_is_plain_toml() -> None:
    tree = tomllib.loads(Plan.from_toml(FULL).to_toml())
    assert tree["clients"] == {"select": 0.5, "min_per_round": 3, "over_select": 1.25, "deadline": 1200.0, "rejoin": 1.5, "wait_for": 4}
    assert "wait_for" not in tomllib.loads(Plan.from_toml(MINIMAL).to_toml())["clients"]
