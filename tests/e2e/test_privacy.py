"""A private run through real processes: one site answers within its budget, another refuses at its cap, and everybody can see why."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from fedscale.errors import Cause
from tests.command import fedscale
from tests.e2e.conftest import declared, write_table
from tests.e2e.federation import Federation, until

BUDGET, DELTA, ROUNDS = 3.0, 1e-5, 2

APP = """
import numpy as np
from fedscale.learner import Phase, Result

class Hidden:
    def require_private(self, unit):
        pass

    def run(self, work):
        if work.phase is Phase.INIT:
            return Result({"w": np.zeros(3, np.float32)}, 0)
        return Result({"w": work.arrays["w"] + np.float32(work.private.noise_multiplier)}, len(work.data), {}, work.private)

app = Hidden()
"""
JOB = f"""
job = {{ name = "hidden", app = "hidden:app", data = "ward" }}
strategy = {{ rounds = {ROUNDS} }}
clients = {{ wait_for = 2, deadline = 60 }}
train = {{ batch_size = 10 }}
evaluate = {{ every = 0 }}
privacy = {{ epsilon = {BUDGET}, delta = {DELTA} }}
"""


def ask(*words: object) -> Any:
    """The data of a command, run in this process."""
    return fedscale(*words, "--json").data


def test_a_site_refuses_at_its_cap_and_the_other_goes_on(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "hidden.py").write_text(APP)
    (tmp_path / "job" / "job.toml").write_text(JOB)
    tables = {name: declared(write_table(tmp_path / f"{name}.csv", name)) for name in ("ann", "bob")}
    with Federation(tmp_path / "federation") as federation:
        federation.join_all(tables, tables.__getitem__)
        cap = ("datasets.ward.epsilon=1", 'datasets.ward.units=["record"]')
        ask("node", "policy", "set", *cap, "--home", federation.node_home("bob"))
        run = federation.submit(tmp_path / "job" / "job.toml")
        record = federation.finished(run)
        assert (record.status, [row.answered for row in record.rounds]) == ("completed", [("ann",)] * ROUNDS)
        refused = [row.failures["bob"] for row in record.rounds]
        assert {failure.cause for failure in refused} == {Cause.POLICY}
        assert all("the cap is epsilon 1 at delta 1e-05 for each record" in failure.what for failure in refused)

        federation.nodes["ann"].send(signal.SIGKILL)
        ann, bob = (("--home", federation.node_home(name)) for name in ("ann", "bob"))
        (account,) = ask("privacy", "spent", *ann)["accounts"]
        assert account["epsilon"] == pytest.approx(BUDGET, rel=0.02)
        assert account["epsilon"] <= BUDGET
        said = ask("privacy", "statement", run, *ann)
        assert (said["epsilon"], said["unit"]) == (account["epsilon"], "record")
        assert said["answers"] in (ROUNDS, ROUNDS + 1)  # one of both made the first model
        assert ask("privacy", "spent", *bob)["accounts"] == []
        assert ask("privacy", "ledger", "--verify", *ann)["entries"] == 3 * said["answers"]
        assert [receipt["verdict"] for receipt in ask("node", "receipts", "--run", run, *ann)] == ["accepted"] * said["answers"]


@pytest.mark.timeout(600)
def test_a_ledger_put_back_to_an_older_copy_is_noticed_by_what_the_coordinator_has_noted(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "hidden.py").write_text(APP)
    (tmp_path / "job" / "job.toml").write_text(JOB)
    tables = {name: declared(write_table(tmp_path / f"{name}.csv", name)) for name in ("ann", "bob")}
    once = "strategy.rounds=1"
    with Federation(tmp_path / "federation") as federation:
        federation.join_all(tables, tables.__getitem__)
        home = federation.node_home("ann")
        first = federation.finished(federation.submit(tmp_path / "job" / "job.toml", once))
        federation.nodes["ann"].stop()
        shutil.copytree(home, tmp_path / "backup")
        federation.start_node("ann")
        federation.connected("ann")
        second = federation.finished(federation.submit(tmp_path / "job" / "job.toml", once, "job.seed=1"))
        heads: list[Any] = [record.extra["ledgers"] for record in (first, second)]
        assert [sorted(each) for each in heads] == [["ann", "bob"]] * 2
        assert ask("privacy", "ledger", "--verify", "--head", heads[1]["ann"], "--home", home)["entries"] > 0

        federation.nodes["ann"].stop()
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "backup", home)
        # By itself, the whole home of an earlier day verifies.
        assert ask("privacy", "ledger", "--verify", "--home", home)["entries"] > 0
        rolled = federation.start_node("ann")
        until(lambda: "ledger rolled back" in rolled.told(), "the node that looks at its ledger")
        federation.connected("ann")
        third = federation.finished(federation.submit(tmp_path / "job" / "job.toml", once, "job.seed=2"))
        assert [row.answered for row in third.rounds] == [("bob",)]
        failure = third.rounds[0].failures["ann"]
        assert (failure.cause, "privacy ledger of this site cannot be used" in failure.what) == (Cause.POLICY, True)
