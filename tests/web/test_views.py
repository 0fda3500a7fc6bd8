"""What pages derive from records: progress, what needs attention, failures, shares, differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedscale.errors import Cause, Failure
from fedscale.record import RoundRecord, RunRecord
from fedscale_server.answers import RunInfo, Site, Status
from fedscale_server.web.views import attention, differences, progress, shares, troubles

INFO = RunInfo("heart-1", "ward", "heart", "running", "", "train", 1, 10, 100.0, 0.0)
SITE = Site("ada", "ward", connected=True, datasets=("default",), last_seen=1000.0, version="1", revoked=False)
LOST = Failure(Cause.LOST, "the connection broke", "", "see its log", "")
CODE = Failure(Cause.CODE, "ValueError", "app.py:7", "mend the app", "")


def row(number: int, phase: Any = "train", seconds: float = 1.0, **values: Any) -> RoundRecord:
    facts: dict[str, Any] = {"answered": (), "failures": {}, "metrics": {}, "sites": {}, "weight": 1.0, "bytes_up": 0, "bytes_down": 0}
    return RoundRecord(number=number, phase=phase, seconds=seconds, **{**facts, **values})


def record(*rows: RoundRecord) -> RunRecord:
    return RunRecord("heart-1", "heart", "running", "", "", "", ("ada", "ben"), rows, 0.0, 0, 0, "", {})


def status(*sites: Site, runs: tuple[RunInfo, ...] = ()) -> Status:
    return Status("1", "trial", "a:1", "a:2", sites, runs)


def test_the_time_to_go_is_that_of_the_last_rounds() -> None:
    rows = [
        row(n, phase, seconds)
        for n, both in enumerate([(90, 9), (3, 1), (3, 1), (3, 1), (3, 1), (3, 1)], 1)
        for phase, seconds in zip(("train", "evaluate"), both, strict=True)
    ]
    now = progress(replace(INFO, number=7), record(*rows), 5)
    assert (now.fraction, now.since) == (0.6, 5)
    assert now.eta_seconds == pytest.approx(4.0 * 10 * 0.4)


def test_without_a_closed_round_nothing_is_promised() -> None:
    assert progress(INFO, record(), 0).eta_seconds is None
    assert progress(INFO, record(row(1)), 0).eta_seconds is None, "half a round is no measure"
    assert progress(replace(INFO, number=2, status="paused"), record(row(1)), 0).eta_seconds is None
    assert progress(replace(INFO, number=0, phase=""), record(), 0).fraction == 0.0


@pytest.mark.parametrize(("word", "done"), [("completed", 1.0), ("failed", 0.4), ("stopped", 0.4)])
def test_a_run_that_is_over_has_no_time_to_go(word: str, done: float) -> None:
    now = progress(replace(INFO, number=5, status=word), record(row(1), row(2)), 0)
    assert (now.fraction, now.eta_seconds) == (done, None)


def test_a_quiet_federation_needs_no_attention() -> None:
    assert attention(status(SITE, runs=(INFO,)), {"heart-1": record(row(1))}, 2000.0) == []


def test_what_needs_attention_the_worst_first() -> None:
    new, away = replace(SITE, name="new", connected=False, last_seen=0.0), replace(SITE, name="away", connected=False)
    gone, other = replace(away, name="gone", revoked=True), replace(SITE, name="old", version="0")
    paused, waiting = replace(INFO, run="p-1", status="paused"), replace(INFO, run="w-1", number=0)
    failing = {"heart-1": record(row(1, failures={"ada": CODE}), row(2, failures={"ben": LOST}))}
    found = attention(status(new, away, gone, other, runs=(paused, waiting, INFO)), failing, 1000.0 + 3.5 * 86_400)
    assert [(r.level, r.text) for r in found] == [
        ("bad", "ben failed in round 2 of heart-1: lost: the connection broke"),
        ("warn", "away has been away for 3 days"),
        ("warn", "run p-1 is paused"),
        ("info", "new has joined and never connected"),
        ("info", "other releases than the coordinator's 1: old (0)"),
        ("info", "run w-1 waits to begin; 1 sites of ward are connected"),
    ]
    assert all(remark.hint for remark in found)


def test_sinks_of_curves_that_fall_behind_or_fail_need_attention() -> None:
    found = attention(status(), {}, 1000.0, {"mlflow": (3, 1), "csv": (0, 0)})
    assert [(remark.level, remark.text) for remark in found] == [
        ("warn", "mlflow gets no curves of 1 runs any more; the runs go on"),
        ("info", "mlflow is too slow: 3 phases of rounds wait until their runs are over"),
    ]


def test_a_failure_that_comes_again_is_one_line() -> None:
    rows = [row(n, failures={"ada": CODE}) for n in (1, 2, 3, 7)] + [row(5, failures={"ben": LOST, "ada": LOST})]
    found = [(t.site, t.rounds, t.failure.cause) for t in troubles(record(*rows))]
    assert found == [("ada", "1\N{EN DASH}3, 7", "code"), ("ben", "5", "lost"), ("ada", "5", "lost")]
    assert troubles(record()) == []


def test_a_site_is_shown_with_its_newest_metrics_and_only_with_what_the_plan_shows() -> None:
    rows = [
        row(1, answered=("ada", "ben"), metrics={"loss": 0.5}),
        row(1, "evaluate", answered=("ada",), failures={"ben": LOST}, metrics={"auc": 0.7}, sites={"ada": {"auc": 0.6, "hidden": 1.0}}),
        row(2, "evaluate", answered=("ada",), metrics={"auc": 0.8}, sites={"ada": {"auc": 0.9}}),
    ]
    ada, ben = shares(record(*rows))
    assert (ada.site, ada.answered, ada.failed, ada.metrics) == ("ada", 3, 0, {("evaluate", "auc"): 0.9})
    assert (ben.site, ben.answered, ben.failed, ben.metrics) == ("ben", 1, 1, {})


def test_plans_differ_in_what_is_not_the_same_everywhere() -> None:
    plans: list[tuple[str, Any]] = [("a", {"job": {"seed": 1, "name": "x"}, "train": {"lr": 0.1}}), ("b", {"job": {"seed": 2, "name": "x"}})]
    assert differences(plans) == [("job.seed", ["1", "2"]), ("train.lr", ["0.1", ""])]
    assert differences(plans[:1] * 2) == []
