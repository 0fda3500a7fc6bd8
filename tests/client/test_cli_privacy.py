"""``fedscale privacy spent|free|ledger|statement``, ``fedscale node policy`` and ``fedscale node receipts``."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedscale import files
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Spend
from fedscale_client import chronicle, declarations, policy
from fedscale_client.chronicle import Chronicle
from fedscale_client.console.desk import Desk
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap
from fedscale_client.ledger.head import Head
from fedscale_client.policy import Policy
from tests.client.conftest import write_csv
from tests.client.ledger.samples import CLAIM, DELTA, SPEND, claim, finish, opened_database, parcel
from tests.command import Done, fedscale

SAMPLED = Spend("poisson_subsampled_gaussian", 1.2, 0.1, 20)


@pytest.fixture
def site(tmp_path: Path) -> NodeHome:
    """A home that has joined and offers ``heart``."""
    home = NodeHome(files.private_folder(tmp_path / "site"))
    write_toml(home.settings_file, NodeSettings(name="mercy", federation="testland", project="p", address="127.0.0.1:1").model_dump())
    declarations.add(home, "heart", Declaration(kind="csv", path=str(write_csv(tmp_path / "heart.csv")), label="y"))
    return home


@pytest.fixture
def ledger(site: NodeHome) -> Ledger:
    return Ledger.open(site)


def ask(home: NodeHome, *words: object) -> Done:
    return fedscale(*words, "--home", home.path, "--json")


# ----------------------------------------------------------------------------------------------------------------- spent


@pytest.mark.parametrize("words", [("privacy", "spent"), ("privacy", "ledger"), ("node", "receipts")])
def test_before_anything_left(site: NodeHome, words: tuple[str, str]) -> None:
    assert fedscale(*words, "--home", site.path).out == "nothing has left this site yet\n"
    assert not site.ledger.exists()


def test_what_was_spent_by_population_and_unit(site: NodeHome, ledger: Ledger) -> None:
    policy.save(site, Policy.model_validate({"datasets": {"heart": {"epsilon": 5.0, "delta": 1e-6, "units": ["record"]}}}))
    for number in range(2):
        finish(ledger, number)
    ledger.reserve(claim(3, run="run-2", spends=(SAMPLED,)), None)
    ledger.refund(ledger.reserve(claim(4), None), "nothing left")
    finish(ledger, 5, unit="patient", delta=1e-7)
    finish(ledger, 6, population="ward-7", data="0" * 64)
    finish(ledger, 7, spends=None, unit="")
    finish(ledger, 8, spends=())
    data = ask(site, "privacy", "spent").data
    told = {(a["population"], a["unit"]): a for a in data["accounts"]}
    assert set(told) == {("heart", "record"), ("heart", "patient"), ("ward-7", "record")}
    record = told["heart", "record"]
    assert record["epsilon"] == pytest.approx(epsilon([SPEND, SPEND, SAMPLED], 1e-6), abs=1e-9)
    assert {name: record[name] for name in ("delta", "cap", "answers", "runs")} == {"delta": 1e-6, "cap": 5.0, "answers": 3, "runs": 2}
    assert (told["heart", "patient"]["delta"], told["heart", "patient"]["cap"], told["ward-7", "record"]["delta"]) == (1e-7, None, DELTA)
    assert data["not_covered"] == 1
    shown = fedscale("privacy", "spent", "--home", site.path)
    assert "1 answer is covered by no epsilon" in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()[3:] if line.strip()] == ["heart", "heart", "ward-7"]
    assert ask(site, "privacy", "spent", "--delta", "1e-3").data["accounts"][1]["epsilon"] < record["epsilon"]


@pytest.mark.parametrize("words", [("privacy", "ledger"), ("node", "receipts")])
def test_a_long_past_shows_its_end_and_says_how_long_it_is(site: NodeHome, ledger: Ledger, words: tuple[str, str]) -> None:
    for number in range(4):
        finish(ledger, number)
    whole = ask(site, *words, "--lines", 2).data
    few, all_of_it = (fedscale(*words, "--home", site.path, "--lines", lines) for lines in (2, len(whole)))
    rows, every = ([line.split() for line in done.out.splitlines()[3:] if line.strip()] for done in (few, all_of_it))
    assert (len(rows), len(every)) == (2, len(whole))
    assert rows == every[-2:]
    assert few.err == f"these are the newest 2 of {len(whole)}; all of them: --lines {len(whole)}\n"
    assert all_of_it.err == ""


def test_two_names_of_the_same_data_have_one_budget(site: NodeHome, ledger: Ledger) -> None:
    """Also of what was spent before the data became the same, and after they have changed."""
    finish(ledger, 1, data="1" * 64)
    finish(ledger, 2, data="2" * 64)
    finish(ledger, 3, data="2" * 64, population="alias")
    finish(ledger, 4, data="3" * 64, population="other")
    told = {account["population"]: account["answers"] for account in ask(site, "privacy", "spent").data["accounts"]}
    assert told == {"heart": 3, "alias": 3, "other": 1}


def test_an_epsilon_without_bound_is_null(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1, spends=(Spend("gaussian", 0.001, 1.0, 10**6),))
    (account,) = ask(site, "privacy", "spent").data["accounts"]
    assert account["epsilon"] is None or account["epsilon"] > 1e6


# ------------------------------------------------------------------------------------------------------------------ room


def begun(ledger: Ledger, run: str = "run-1", **changes: object) -> int:
    """The first of five answers of a run."""
    asked = replace(claim(1, run=run), answers=5, until="9999-01-31T10:20:00+00:00", **changes)  # type: ignore[arg-type]
    return ledger.reserve(asked, None)


def test_what_runs_under_way_may_yet_spend_is_shown_beside_what_was_spent(site: NodeHome, ledger: Ledger) -> None:
    begun(ledger)
    finish(ledger, 2)
    ledger.refund(begun(ledger, "run-2", population="ward-7", data="0" * 64), "nothing left")
    ward, heart = sorted(ask(site, "privacy", "spent").data["accounts"], key=lambda account: str(account["answers"]))
    assert (heart["epsilon"], heart["promised"]) == pytest.approx((epsilon([SPEND] * 2, DELTA), epsilon([SPEND] * 5, DELTA)))
    assert heart["holds"] == [{"run": "run-1", "answers": 3, "until": "9999-01-31T10:20:00+00:00"}]
    assert (ward["population"], ward["epsilon"], ward["promised"]) == ("ward-7", 0.0, pytest.approx(epsilon([SPEND] * 5, DELTA)))
    shown = fedscale("privacy", "spent", "--home", site.path)
    assert f"{epsilon([SPEND] * 5, DELTA):.4g}" in shown.out
    assert "run run-1 keeps room for 3 answers until 9999-01-31 10:20 UTC; to let go of it: fedscale privacy free run-1" in shown.err


def test_the_owner_lets_go_of_room_that_nobody_will_use(site: NodeHome, ledger: Ledger) -> None:
    begun(ledger)
    tried = ask(site, "privacy", "free", "run-1", "--dry-run").data
    assert tried == {"run": "run-1", "answers": 4, "until": "9999-01-31T10:20:00+00:00", "dry_run": True}
    assert len(ledger.holds()) == 1
    assert fedscale("privacy", "free", "run-1", "--home", site.path).out == "let go of the room for 4 answers of run run-1\n"
    assert ledger.holds() == ()
    assert ledger.entries()[-1].facts == '{"reason":"let go by the site\'s owner"}'
    (account,) = ask(site, "privacy", "spent").data["accounts"]
    assert (account["promised"], account["holds"]) == (account["epsilon"], [])
    assert ask(site, "privacy", "ledger", "--verify").code == 0
    for run in ("run-1", "run-7"):
        done = ask(site, "privacy", "free", run)
        assert (done.code, done.error["what"]) == (6, f"no room is kept for a run '{run}'")


# ---------------------------------------------------------------------------------------------------------------- ledger


def test_the_ledger_is_exported_whole(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    data = ask(site, "privacy", "ledger").data
    assert [(entry["seq"], entry["kind"], entry["reservation"]) for entry in data] == [(1, "reserve", 1), (2, "release", 1), (3, "commit", 1)]
    assert data[0]["facts"] == json.loads(json.dumps(claim(1).to_json()))
    assert [entry["previous"] for entry in data[1:]] == [entry["digest"] for entry in data[:-1]]


def test_verify_says_where_the_ledger_ends(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    head = ledger.head()
    assert ask(site, "privacy", "ledger", "--verify").data == {"entries": 3, "head": {"seq": 3, "digest": head.digest}}
    finish(ledger, 2)
    assert ask(site, "privacy", "ledger", "--verify", "--head", f"3:{head.digest}").code == 0
    done = ask(site, "privacy", "ledger", "--verify", "--head", f"3:{'0' * 64}")
    assert (done.code, done.error["why"]) == (1, "entry 3 is not the one it was")


def test_verify_compares_with_what_the_coordinator_had_noted_when_it_was_there_last(site: NodeHome, ledger: Ledger) -> None:
    """A home that was restored from a backup, head and all, looks sound by itself."""
    finish(ledger, 1)
    early = ledger.head()
    connections = Chronicle(site, lambda: datetime.now(UTC))
    for noted, known in ((str(early), True), (f"7:{'ab' * 32}", False), ("no end of a ledger", True), ("", True)):
        connections.take({"event": "connected", **({"noted": noted} if noted else {})})
        connections.take({"event": "disconnected"})
        done = ask(site, "privacy", "ledger", "--verify")
        assert (done.code, chronicle.noted(site)) == ((0, early if noted == str(early) else None) if known else (1, Head.parsed(noted)))
        if not known:
            assert done.error["why"] == "the ledger ends before entry 7, which it had: it was cut or rolled back"
            assert "bring the newer ledger back; where it is lost" in done.error["hint"]
            assert "before entry 7" in Desk(site).ledger()["problem"]
            assert ask(site, "privacy", "ledger", "--verify", "--head", str(early)).code == 0


def test_verify_finds_what_was_changed(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    with opened_database(site) as connection:
        connection.execute("UPDATE entry SET at = '' WHERE seq = 2")
    done = ask(site, "privacy", "ledger", "--verify")
    assert (done.code, done.error["what"], done.error["why"]) == (1, "the privacy ledger does not verify", "entry 2 was edited")
    assert ask(site, "privacy", "spent").error["why"] == "entry 2 was edited"


@pytest.mark.parametrize("head", ["3", "x:" + "0" * 64, "3:0", "3:" + "g" * 64])
def test_an_end_that_is_none(site: NodeHome, head: str) -> None:
    done = ask(site, "privacy", "ledger", "--verify", "--head", head)
    assert (done.code, done.error["where"]) == (2, "--head")


# ------------------------------------------------------------------------------------------------- statement and receipts


def test_a_statement_holds_every_assumption(site: NodeHome, ledger: Ledger) -> None:
    for number in range(3):
        finish(ledger, number, spends=(SAMPLED,))
    finish(ledger, 3, phase="evaluate", spends=None)
    finish(ledger, 4, run="run-2")
    data = ask(site, "privacy", "statement", "run-1").data
    assert data["epsilon"] == pytest.approx(epsilon([SAMPLED] * 3, DELTA), abs=1e-9)
    assert data["without_amplification"] == pytest.approx(epsilon([replace(SAMPLED, sampling_rate=1.0)] * 3, DELTA), abs=1e-9)
    assert (data["site"], data["unit"], data["delta"], data["answers"], data["not_covered"]) == ("mercy", "record", DELTA, 4, ["evaluate 3"])
    assert all(word in f"{data['relation']} {data['sampling']} {data['accountant']}" for word in ("add or remove", "in secret", "PLD"))
    assert "add or remove" in fedscale("privacy", "statement", "run-1", "--home", site.path).out


def test_a_statement_about_a_run_without_privacy_promises_nothing(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1, spends=None, unit="")
    data = ask(site, "privacy", "statement", "run-1").data
    assert data["not_covered"] == ["train 1"]
    assert "epsilon" not in data


def test_no_statement_about_a_run_that_never_was(site: NodeHome, ledger: Ledger) -> None:
    ledger.refund(ledger.reserve(CLAIM, None), "nothing left")
    for run in ("run-1", "other"):
        assert ask(site, "privacy", "statement", run).error["exit_code"] == 6


def test_receipts_say_what_left(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    finish(ledger, 2, run="run-2", spends=None, unit="", delta=0.0)
    finish(ledger, 3, run="run-3", phase="init", spends=())
    ledger.reserve(claim(4), None)
    data = ask(site, "node", "receipts").data
    assert [(r["run"], r["phase"], r["round"]) for r in data] == [("run-1", "train", 1), ("run-2", "train", 2), ("run-3", "init", 3)]
    first = data[0]
    assert (first["bytes"], first["sha256"], first["parts"]) == (8, parcel("1").digest, [{"name": "w", "shape": [2]}])
    assert (first["masked"], first["verdict"], first["app"], first["delta"]) == (False, "accepted", CLAIM.app, DELTA)
    assert first["epsilon"] == pytest.approx(epsilon([SPEND], DELTA))
    assert [r["epsilon"] for r in data[1:]] == [None, 0.0]
    assert [r["run"] for r in ask(site, "node", "receipts", "--run", "run-2").data] == ["run-2"]
    shown = fedscale("node", "receipts", "--home", site.path).out
    assert "not covered" in shown
    assert "run-3" in shown


# ---------------------------------------------------------------------------------------------------------------- policy


def test_a_policy_is_shown_set_and_taken_back(site: NodeHome) -> None:
    assert ask(site, "node", "policy", "show").data == Policy().model_dump(mode="json")
    done = ask(site, "node", "policy", "set", "require_dp=true", "datasets.heart.epsilon=4", 'datasets.heart.units=["record"]')
    assert (done.code, done.err) == (0, "")
    assert done.data["policy"]["datasets"]["heart"]["epsilon"] == 4.0
    rules = policy.load(site)
    assert (rules.require_dp, rules.of("heart").cap) == (True, Cap(4.0, 1e-5, "record"))
    shown = fedscale("node", "policy", "show", "--home", site.path).out
    assert "datasets.heart" in shown
    assert "epsilon 4.0" in shown
    assert ask(site, "node", "policy", "unset", "datasets.heart", "require_dp").code == 0
    assert policy.load(site) == Policy()


def test_a_dry_run_changes_no_policy(site: NodeHome) -> None:
    done = ask(site, "node", "policy", "set", "require_dp=true", "--dry-run")
    assert (done.data["dry_run"], done.data["policy"]["require_dp"]) == (True, True)
    policy.save(site, Policy(require_secagg=True))
    assert ask(site, "node", "policy", "unset", "require_secagg", "--dry-run").data["policy"]["require_secagg"] is False
    assert policy.load(site) == Policy(require_secagg=True)


def test_a_policy_for_a_dataset_that_is_not_there_is_noticed(site: NodeHome) -> None:
    done = ask(site, "node", "policy", "set", "datasets.hart.require_dp=true")
    assert (done.code, "this site has declared no dataset 'hart'" in done.err) == (0, True)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("set", "require_pd=true"), "'require_pd' is not a setting"),
        (("set", "require_dp"), "cannot read the setting 'require_dp'"),
        (("set", "datasets.heart.epsilon=4"), "a cap is for one unit of privacy"),
        (("unset", "require_dp"), "'require_dp' is not set"),
    ],
)
def test_a_slip_of_the_pen_changes_nothing(site: NodeHome, words: tuple[str, ...], what: str) -> None:
    done = ask(site, "node", "policy", *words)
    assert (done.code, what in done.error["what"]) == (2, True)
    assert not site.policy_file.exists()
