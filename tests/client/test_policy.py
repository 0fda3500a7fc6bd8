"""What a site allows: the file, and what it refuses."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fedscale.errors import ConfigError, Conflict, PolicyRefusal
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale_client import facts, policy
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from fedscale_client.ledger.claims import Cap, to_set
from fedscale_client.policy import DatasetPolicy, Policy
from tests.command import fedscale

APP = "ab" * 32
HEART = {"epsilon": 4.0, "units": ("record",)}
DP = {"epsilon": 2.0, "delta": 1e-5}


def plan(**tables: Any) -> Plan:
    return Plan.model_validate({"job": {"name": "test", "data": "heart"}, **tables})


def private(secagg: bool = False, **privacy: Any) -> Plan:
    clients = {"min_per_round": 3} if secagg else {}
    return plan(privacy=DP | {"metrics": "pooled" if secagg else "exact"} | privacy, secagg={"enabled": secagg}, clients=clients)


def refusal(rules: Policy, asked: Plan, phase: Phase = Phase.TRAIN, project: str = "p", app: str = APP) -> str:
    """What is refused and by which rule; empty when nothing is."""
    try:
        rules.check(asked, phase, project, app)
    except PolicyRefusal as error:
        return f"{error.where}: {error.what}"
    return ""


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, ""),
        ({"led": True}, ""),
        ({"led": False}, "led: this site does not let its answers be seen one by one"),
        ({"require_secagg": True}, "require_secagg: this site answers with secure aggregation only"),
        ({"require_secagg": True, "led": True}, ""),
        ({"require_secagg": True, "led": False}, "led: this site does not let its answers be seen one by one"),
        ({"require_dp": True, "led": True}, "require_dp: this site answers with differential privacy only"),
        ({"paused": True, "led": True}, "paused: this site is paused by its owner"),
        ({"apps": ["cd" * 32], "led": True}, "apps: this site has not approved this app"),
    ],
)
def test_who_leads_a_run_sees_single_answers_only_where_a_site_lets_it(rules: dict[str, Any], expected: str) -> None:
    assert refusal(Policy.model_validate(rules), plan(strategy={"name": "led"}), Phase.MESSAGE) == expected


def test_leave_for_led_runs_is_leave_for_no_other() -> None:
    rules = Policy(require_secagg=True, led=True)
    assert refusal(rules, plan()) == "require_secagg: this site answers with secure aggregation only"
    assert refusal(Policy(led=False), plan()) == ""


# ------------------------------------------------------------------------------------------------------------ what it says


@pytest.mark.parametrize("asked", [plan(), private(), private(secagg=True), private(unit="patient")])
@pytest.mark.parametrize("phase", list(Phase))
def test_without_a_policy_nothing_is_refused(asked: Plan, phase: Phase) -> None:
    assert refusal(Policy(), asked, phase) == ""
    assert Policy().of("heart").cap is None


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        ({"require_secagg": True}, plan(), "require_secagg: this site answers with secure aggregation only"),
        ({"require_secagg": True}, private(secagg=True), ""),
        ({"require_dp": True}, plan(), "require_dp: this site answers with differential privacy only"),
        ({"require_dp": True}, private(), ""),
        ({"datasets": {"heart": {"require_dp": True}}}, plan(), "require_dp: this site answers with differential privacy only"),
        ({"datasets": {"lung": {"require_dp": True}}}, plan(), ""),
        ({"projects": ["q"]}, plan(), "projects: this site does not take part in this project"),
        ({"projects": ["q", "p"]}, plan(), ""),
        ({"apps": ["cd" * 32]}, plan(), "apps: this site has not approved this app"),
        ({"apps": ["cd" * 32, APP]}, plan(), ""),
        ({"datasets": {"heart": {"units": ["patient", "node"]}}}, private(), "units: this site does not count its privacy by the record"),
        ({"datasets": {"heart": {"units": ["patient"]}}}, private(unit="patient"), ""),
    ],
)
def test_each_rule_refuses_what_it_is_for(rules: dict[str, Any], asked: Plan, expected: str) -> None:
    assert refusal(Policy.model_validate(rules), asked) == expected


@pytest.mark.parametrize(
    ("own", "secagg", "allowed"),
    [
        ({}, False, True),
        (HEART, False, False),
        (HEART, True, True),
        (HEART | {"metrics": "exact"}, False, True),
        (HEART | {"metrics": "none"}, True, False),
        ({"metrics": "none"}, True, False),
        ({"metrics": "pooled"}, False, False),
        ({"metrics": "pooled"}, True, True),
    ],
)
def test_metrics_of_rows_held_out_leave_as_the_site_says(own: dict[str, Any], secagg: bool, allowed: bool) -> None:
    rules, asked = Policy.model_validate({"datasets": {"heart": own}}), private(secagg)
    assert refusal(rules, asked, Phase.EVALUATE) == ("" if allowed else "metrics: this site does not let such metrics leave")
    assert refusal(rules, asked, Phase.TRAIN) == ""


def test_metrics_of_a_plan_without_privacy_are_no_matter_of_that_rule() -> None:
    assert refusal(Policy(datasets={"heart": DatasetPolicy(metrics="none")}), plan(), Phase.EVALUATE) == ""


def test_a_cap_and_a_population() -> None:
    rules = Policy.model_validate({"datasets": {"heart": HEART | {"delta": 1e-6, "population": "ward-7"}, "lung": {}}})
    assert rules.of("heart").cap == Cap(4.0, 1e-6, "record")
    assert [rules.population(name) for name in ("heart", "lung", "other")] == ["ward-7", "lung", "other"]


# ---------------------------------------------------------------------------------------------------------------- the file


@pytest.fixture
def site(tmp_path: Path) -> NodeHome:
    return NodeHome(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("require_dp = maybe", 1, "not valid TOML"),
        ("\nrequire_pd = true", 2, "'require_pd' is not a setting"),
        ('min_cohort = "all"', 1, "min_cohort: input should be a valid integer"),
        ("min_cohort = 1", 1, "min_cohort: input should be greater than or equal to 2"),
        ('apps = ["heart"]', 1, "apps: this is the SHA-256 of an app's bundle, 64 hex digits"),
        ("[datasets.heart]\nepsilon = 4", 1, 'datasets.heart: a cap is for one unit of privacy: write units = ["record"], ["patient"] or ["node"]'),
        ('[datasets.heart]\nepsilon = 4\nunits = ["record", "node"]', 1, "datasets.heart: a cap is for one unit of privacy"),
        ("[datasets.heart]\nepsilon = inf", 2, "datasets.heart.epsilon: input should be a finite number"),
        ("[datasets.heart]\nepsilon = 0", 2, "datasets.heart.epsilon: input should be greater than 0"),
        ("[datasets.heart]\n\ndelta = 1.0", 3, "datasets.heart.delta: input should be less than 1"),
        ('[datasets.heart]\nunits = ["row"]', 2, "datasets.heart.units"),
        ("[datasets.heart]\nepsillon = 4", 2, "'datasets.heart.epsillon' is not a setting"),
    ],
)
def test_a_bad_file_is_told_with_its_line(site: NodeHome, text: str, line: int, what: str) -> None:
    site.policy_file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        policy.load(site)
    assert raised.value.what.startswith(what)
    assert raised.value.where == f"{site.policy_file}:{line}"


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("datasets.heart.epsilom=4", "did you mean 'epsilon'?"),
        ("datasets.heart-2.zeal=4", "known: epsilon, delta, units, population, metrics, require_dp"),
        ("datasets.paused.requiredp=true", "did you mean 'require_dp'?"),
        ('datasets."heart.v2".delt=1', "did you mean 'delta'?"),
    ],
)
def test_a_slip_in_a_datasets_rules_is_told_with_what_there_is(site: NodeHome, setting: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        policy.load(site, [setting])
    name = setting.partition("=")[0].replace('"', "")
    assert (raised.value.what, raised.value.where, raised.value.hint) == (f"'{name}' is not a setting", f"--set {setting}", hint)


@pytest.mark.parametrize("dataset", ["heart", "heart-2", "heart.v2", "0"])
def test_the_command_that_sets_a_rule_sets_it_whatever_the_dataset_is_called(site: NodeHome, dataset: str) -> None:
    words = shlex.split(to_set(dataset, epsilon=4, units='["record"]'))
    assert words[:4] == ["fedscale", "node", "policy", "set"]
    policy.change(site, lambda: policy.load(site, words[4:]))
    assert policy.load(site).datasets == {dataset: DatasetPolicy(epsilon=4.0, units=("record",))}
    names = [word.partition("=")[0] for word in words[4:]]
    assert policy.without(policy.load(site), names).datasets == {dataset: DatasetPolicy()}


def test_a_file_that_is_no_text_is_told(site: NodeHome) -> None:
    site.policy_file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="the site's policy cannot be read"):
        policy.load(site)


def test_a_policy_is_written_as_it_was_meant(site: NodeHome) -> None:
    rules = Policy.model_validate({"require_dp": True, "apps": [APP], "datasets": {"heart": HEART | {"metrics": "none"}}})
    policy.save(site, rules)
    assert policy.load(site) == rules
    assert site.policy_file.stat().st_mode & 0o077 == 0
    assert policy.load(NodeHome(site.path / "none")) == Policy()


def test_settings_win_over_the_file(site: NodeHome) -> None:
    policy.save(site, Policy(require_dp=True))
    rules = policy.load(site, ["require_dp=false", "datasets.heart.epsilon=4", 'datasets.heart.units=["patient"]'])
    assert (rules.require_dp, rules.of("heart").cap) == (False, Cap(4.0, 1e-5, "patient"))


def test_settings_go_back_to_their_defaults() -> None:
    rules = Policy.model_validate({"require_dp": True, "datasets": {"heart": HEART, "lung": {"metrics": "none"}}})
    assert policy.without(rules, ["require_dp", "datasets.heart"]) == Policy.model_validate({"datasets": {"lung": {"metrics": "none"}}})
    assert policy.without(rules, ["datasets.heart.epsilon"]).of("heart").cap is None
    for name in ("require_secagg", "datasets.liver", "datasets.heart.delta", "require_dp.x", ""):
        with pytest.raises(ConfigError, match="is not set"):
            policy.without(rules, [name])
    with pytest.raises(ConfigError, match="a cap is for one unit"):
        policy.without(rules, ["datasets.heart.units"])


def test_noise_that_somebody_else_adds_is_no_ground_for_a_cap() -> None:
    tree = plan(privacy=DP | {"unit": "node", "mechanism": "ftrl"}, clients={"select": 2})
    assert refusal(Policy(), tree) == ""
    own = {"epsilon": 9.0, "units": ("node",)}
    assert "cannot see that the coordinator adds the noise" in refusal(Policy(datasets={"heart": DatasetPolicy(**own)}), tree)


# --------------------------------------------------------------------------------------------------------- one at a time

CHANGES: dict[str, tuple[Callable[[NodeHome], object], Policy]] = {
    "pause": (lambda home: facts.pause(home, paused=True), Policy(paused=True)),
    "approve": (lambda home: facts.approve(home, APP, approved=True), Policy(apps=(APP,))),
    "set": (lambda home: fedscale("node", "policy", "set", "require_dp=true", "--home", home.path), Policy(require_dp=True)),
    "unset": (lambda home: fedscale("node", "policy", "unset", "curious_server", "--home", home.path), Policy()),
}


@pytest.fixture
def joined(site: NodeHome) -> NodeHome:
    """A home that the command line takes for one that has joined."""
    write_toml(site.settings_file, NodeSettings(name="mercy", federation="testland", project="p", address="127.0.0.1:1").model_dump())
    policy.save(site, Policy(curious_server=True))
    return site


@pytest.mark.parametrize("name", CHANGES)
def test_of_two_changes_at_once_neither_is_lost(joined: NodeHome, name: str) -> None:
    change, alone = CHANGES[name]
    other = Thread(target=change, args=(joined,))

    def meanwhile() -> Policy:
        before = policy.load(joined)
        other.start()
        other.join(0.3)  # without the lock it would be done by now, and undone by what is returned here
        return before.model_copy(update={"min_cohort": 7})

    policy.change(joined, meanwhile)
    other.join(60)
    assert policy.load(joined) == alone.model_copy(update={"min_cohort": 7, "curious_server": name != "unset"})


def test_a_change_that_never_ends_is_waited_for_only_so_long(joined: NodeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "CHANGE_SECONDS", 0.0)

    def meanwhile() -> Policy:
        with pytest.raises(Conflict, match=r"somebody else is changing.*policy\.toml|policy\.toml.*somebody else is changing"):
            facts.pause(joined, paused=True)
        words = ("node", "policy", "set", "require_dp=true", "--home", joined.path, "--json")
        assert fedscale(*words).error["hint"] == "try again in a moment"
        assert fedscale(*words, "--dry-run").data["policy"]["require_dp"] is True, "a trial waits for nobody"
        return policy.load(joined)

    assert policy.change(joined, meanwhile) == Policy(curious_server=True)
    assert (joined.path / "policy.lock").stat().st_mode & 0o077 == 0


def test_a_change_that_fails_leaves_everything_as_it_was(joined: NodeHome) -> None:
    with pytest.raises(ConfigError, match="'require_dq' is not a setting"):
        policy.change(joined, lambda: policy.load(joined, ["require_dq=true"]))
    assert policy.load(joined) == Policy(curious_server=True)
    facts.pause(joined, paused=True)
    assert policy.load(joined).paused, "the lock is free again"
