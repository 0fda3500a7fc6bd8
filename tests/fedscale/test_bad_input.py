"""Malformed plans and settings, each with its exact error: what, where, and what to do. Other inputs have their tables in their own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedscale.errors import PlanError
from fedscale.plan import Plan

JOB = '[job]\nname = "heart"\n'
NAME = "a name is 1 to 63 letters, digits, '.', '_' and '-', a letter or digit first"
SELECT = "write 'all', a number of nodes from 1 up, or a fraction between 0 and 1"
DURATION = "a duration is a number and one of ms, s, m, h, d, as in '20m'"
STRATEGIES = "fedavg, fedavgm, fedadam, fedyogi, fedadagrad, fedprox, fedbuff, flower, led"

PLANS: dict[str, tuple[str, str]] = {
    "nothing": ("", "job.toml: 'job' is missing"),
    "no name": ("\n[job]\nseed = 1\n", "job.toml:2: 'job.name' is missing"),
    "not toml": (JOB + "[clients\n", "job.toml:3: not valid TOML (Expected ']' at the end of a table declaration (at line 3, column 9))"),
    "no value": (JOB + "[clients]\nselect =\n", "job.toml:4: not valid TOML (Invalid value (at line 4, column 9))"),
    "ends in a string": ('[job]\nname = "heart', "job.toml:2: not valid TOML (Unterminated string (at end of document))"),
    "a setting twice": (JOB + 'name = "x"\n', "job.toml:3: not valid TOML (Cannot overwrite a value (at line 3, column 11))"),
    "a list of jobs": ('[[job]]\nname = "heart"\n', "job.toml:1: job: this is a table, with settings of its own; known: name, app, data, seed"),
    "a job that is a word": ('job = "heart"\n', "job.toml:1: job: this is a table, with settings of its own; known: name, app, data, seed"),
    "a name with a blank": ('[job]\nname = "heart risk"\n', f"job.toml:2: job.name: {NAME}"),
    "an empty name": ('[job]\nname = ""\n', f"job.toml:2: job.name: {NAME}"),
    "a name that climbs": ('[job]\nname = "../etc"\n', f"job.toml:2: job.name: {NAME}"),
    "a name that is a number": ("[job]\nname = 5\n", "job.toml:2: job.name: input should be a valid string"),
    "a dataset with a slash": (JOB + 'data = "a/b"\n', f"job.toml:3: job.data: {NAME}"),
    "an app that is a file": (JOB + 'app = "app.py"\n', "job.toml:3: job.app: write module:attribute, as in 'app:app'"),
    "a negative seed": (JOB + "seed = -1\n", "job.toml:3: job.seed: input should be greater than or equal to 0"),
    "a seed beyond 63 bits": (JOB + "seed = 9223372036854775808\n", "job.toml:3: job.seed: input should be less than 9223372036854775808"),
    "an unknown table": (JOB + "[trian]\nepochs = 1\n", "job.toml:3: 'trian' is not a setting; did you mean 'train'?"),
    "a mistyped name of what must be there": (
        JOB + "[privacy]\nepsilom = 8\ndelta = 1e-5\n",
        "job.toml:4: 'privacy.epsilom' is not a setting (and 1 more); did you mean 'epsilon'?",
    ),
    "an unknown setting": (JOB + "[clients]\n# how many\nselct = 3\n", "job.toml:5: 'clients.selct' is not a setting; did you mean 'select'?"),
    "a setting like no other": (
        JOB + "[aggregate]\nxyz = 3\n",
        "job.toml:4: 'aggregate.xyz' is not a setting; known: bound, weight_cap",
    ),
    "a nested unknown setting": (
        JOB + "[train.optimizer]\nlearning_rate = 1\n",
        "job.toml:4: 'train.optimizer.learning_rate' is not a setting; known: name, lr, momentum, weight_decay",
    ),
    "two at once": (
        JOB + "[train]\nepochs = 0\nbatch_size = 0\n",
        "job.toml:4: train.epochs: input should be greater than or equal to 1 (and 1 more)",
    ),
    "an optimizer that is a word": (
        JOB + '[train]\noptimizer = "adam"\n',
        "job.toml:4: train.optimizer: this is a table, with settings of its own; known: name, lr, momentum, weight_decay",
    ),
    "an unknown optimizer": (
        JOB + '[train.optimizer]\nname = "sdg"\n',
        "job.toml:4: train.optimizer.name: input should be 'sgd', 'adam' or 'adamw'",
    ),
    "an unknown device": (JOB + '[train]\ndevice = "tpu"\n', "job.toml:4: train.device: input should be 'auto', 'cpu' or 'cuda'"),
    "an inline table": ('train = { epochs = 0 }\n[job]\nname = "a"\n', "job.toml:1: train.epochs: input should be greater than or equal to 1"),
    "a dotted key": ('clients.deadline = "soon"\n[job]\nname = "a"\n', f"job.toml:1: clients.deadline: {DURATION}"),
    "a strange unit": (JOB + '[clients]\ndeadline = "20 parsecs"\n', f"job.toml:4: clients.deadline: {DURATION}"),
    "a negative duration": (JOB + "[clients]\ndeadline = -1\n", "job.toml:4: clients.deadline: input should be greater than 0"),
    "no time at all": (JOB + '[clients]\nrejoin = "0s"\n', "job.toml:4: clients.rejoin: input should be greater than 0"),
    "a duration of a year": (JOB + '[clients]\ndeadline = "365d"\n', "job.toml:4: clients.deadline: input should be less than or equal to 2592000"),
    "a date for a duration": (JOB + "[clients]\ndeadline = 2024-01-01\n", "job.toml:4: clients.deadline: input should be a valid number"),
    "endless": (JOB + "[clients]\ndeadline = inf\n", "job.toml:4: clients.deadline: input should be less than or equal to 2592000"),
    "no clients": (JOB + "[clients]\nselect = 0\n", f"job.toml:4: clients.select: {SELECT}"),
    "one client and a half": (JOB + "[clients]\nselect = 1.5\n", f"job.toml:4: clients.select: {SELECT}"),
    "some clients": (JOB + '[clients]\nselect = "some"\n', f"job.toml:4: clients.select: {SELECT}"),
    "a list of clients": (JOB + '[clients]\nselect = ["ada"]\n', f"job.toml:4: clients.select: {SELECT}"),
    "true clients": (JOB + "[clients]\nselect = true\n", f"job.toml:4: clients.select: {SELECT}"),
    "a selection for evaluation": (JOB + "[evaluate]\nselect = -3\n", f"job.toml:4: evaluate.select: {SELECT}"),
    "fewer asked than needed": (
        JOB + "[clients]\nmin_per_round = 3\nselect = 2\n",
        "job.toml:5: clients.select asks 2 nodes but clients.min_per_round needs 3",
    ),
    "no quorum": (JOB + "[clients]\nmin_per_round = 0\n", "job.toml:4: clients.min_per_round: input should be greater than or equal to 1"),
    "asking less than all": (JOB + "[clients]\nover_select = 0.5\n", "job.toml:4: clients.over_select: input should be greater than or equal to 1"),
    "more than the ring can sum": (
        JOB + "[clients]\nselect = 300000\n",
        "job.toml:4: the ring is too short for 300000 nodes (less than 12 bits a value are left); lower clients.select",
    ),
    "far more than the ring can sum": (
        JOB + "[clients]\nselect = 1000000\n",
        "job.toml:4: no ring format for 1000000 terms within 8.0 (terms must be 1 to 524288, the bound positive and finite)",
    ),
    "a bound that is not a number": (JOB + "[aggregate]\nbound = nan\n", "job.toml:4: aggregate.bound: input should be less than or equal to 65536"),
    "a weight cap of nothing": (
        JOB + "[aggregate]\nweight_cap = 0\n",
        "job.toml:4: aggregate.weight_cap: input should be greater than or equal to 1",
    ),
    "an unknown strategy": (JOB + '[strategy]\nname = "fedavgg"\n', "job.toml:4: no strategy 'fedavgg'; did you mean 'fedavg'?"),
    "a strategy like no other": (JOB + '[strategy]\nname = "zz"\n', f"job.toml:4: no strategy 'zz'; known: {STRATEGIES}"),
    "a strategy that is a word": (
        'strategy = "fedavg"\n' + JOB,
        "job.toml:1: strategy: this is a table, with settings of its own; known: name, rounds",
    ),
    "a misspelt number of rounds": (JOB + "[strategy]\nround = 3\n", "job.toml:4: fedavg has no setting 'round'; did you mean 'rounds'?"),
    "an unknown argument": (
        JOB + '[strategy]\nname = "fedavgm"\nmomentun = 0.9\n',
        "job.toml:5: fedavgm has no setting 'momentun'; known: lr, momentum",
    ),
    "an argument out of range": (
        JOB + '[strategy]\nrounds = 3\nname = "fedadam"\nbeta1 = 1.0\n',
        "job.toml:6: fedadam: beta1: input should be less than 1",
    ),
    "an argument that is a table": (JOB + "[strategy.lr]\nstart = 1\n", "job.toml:3: fedavg: lr: input should be a valid number"),
    "an unknown weighting": (
        JOB + '[strategy]\nweighting = "size"\n',
        "job.toml:4: fedavg: weighting: input should be 'examples' or 'equal'",
    ),
    "no rounds": (JOB + "[strategy]\nrounds = 0\n", "job.toml:4: strategy.rounds: input should be greater than or equal to 1"),
    "half a round": (
        JOB + "[strategy]\nrounds = 1.5\n",
        "job.toml:4: strategy.rounds: input should be a valid integer, got a number with a fractional part",
    ),
    "a metric twice": (JOB + '[evaluate]\nmetrics = ["auc", "auc"]\n', "job.toml:4: evaluate.metrics: a metric is named twice"),
    "a metric with capitals": (JOB + '[evaluate]\nmetrics = ["AUC"]\n', "job.toml:4: evaluate.metrics: 'AUC' is not a metric name"),
    "metrics as a word": (JOB + '[evaluate]\nmetrics = "auc"\n', 'job.toml:4: evaluate.metrics: this is a list, as in ["accuracy"]'),
    "a monitor that nobody measures": (
        JOB + '[evaluate]\npatience = 3\nmonitor = "auc"\nmetrics = ["accuracy"]\n',
        "job.toml:5: evaluate.monitor: 'auc' is not among the metrics loss, accuracy",
    ),
    "all is held out": (JOB + "[evaluate]\nholdout = 1.0\n", "job.toml:4: evaluate.holdout: input should be less than 1"),
    "cells of nobody": (JOB + "[evaluate]\nmin_cell = 0\n", "job.toml:4: evaluate.min_cell: input should be greater than or equal to 1"),
}

SETTINGS: dict[str, str] = {
    "rounds": "cannot read the setting 'rounds'; write it as table.key=value",
    "=3": "cannot read the setting '=3'; write it as table.key=value",
    "clients..select=3": "cannot read the setting 'clients..select=3'; write it as table.key=value",
    "job.name.first=x": "cannot apply the setting 'job.name.first=x' ('name' is not a table)",
    "strategy.rounds=many": ("--set strategy.rounds=many: strategy.rounds: input should be a valid integer, unable to parse string as an integer"),
    "strategy.lr=-1": "--set strategy.lr=-1: fedavg: lr: input should be greater than 0",
    "clients.selct=3": "--set clients.selct=3: 'clients.selct' is not a setting; did you mean 'select'?",
    "job=3": "--set job=3: job: this is a table, with settings of its own; known: name, app, data, seed",
}


@pytest.mark.parametrize("name", PLANS)
def test_malformed_plans(name: str) -> None:
    text, message = PLANS[name]
    with pytest.raises(PlanError) as caught:
        Plan.from_toml(text, file="job.toml")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_malformed_settings(setting: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_toml(JOB, file="job.toml", overrides=["job.seed=4", setting])
    assert str(caught.value) == SETTINGS[setting]


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.load(tmp_path / "job.toml")
    assert str(caught.value) == f"{tmp_path}/job.toml: cannot read the plan (No such file or directory); give the path of a job.toml"


def test_a_plan_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"[job]\nname = \xff\n")
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert str(caught.value) == f"{path}: cannot read the plan (it is not UTF-8 text); save it as UTF-8"
