"""What a run's page is given: of a long run a picture that a browser can draw, and only derived once when the run is over."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from fedscale.identity import Role
from fedscale.record import RunRecord
from fedscale_server.web import gallery
from fedscale_server.web.gallery import NEWEST, POINTS, curves_of, picture_of, thinned
from tests.fedscale.sample_run import full_run, large_run, round_of, run_of
from tests.server.running import plan_text
from tests.web.conftest import Front
from tests.web.long_run import keep

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def read(record: RunRecord) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(curves_of(record.rounds))
    return told


@pytest.mark.parametrize("count", [0, 1, POINTS, POINTS + 1, 10_000])
def test_a_long_run_is_thinned_evenly_and_keeps_its_first_and_all_of_its_newest_rounds(count: int) -> None:
    kept = thinned(range(count))
    assert len(kept) == min(count, POINTS)
    assert sorted(set(kept)) == list(kept)
    assert list(kept[-NEWEST:]) == list(range(count))[-NEWEST:]
    if count > POINTS:
        gaps = [after - before for before, after in pairwise(kept)]
        assert kept[0] == 0
        assert max(gaps) - min(gaps[:-NEWEST]) <= 1


def test_curves_say_what_the_rounds_say() -> None:
    """Of a run that is short enough, all of it."""
    told = read(record := full_run())
    curves = {(chart["phase"], chart["name"]): chart for chart in told["charts"]}
    for row in record.rounds:
        for name, value in row.metrics.items():
            chart = curves[row.phase, name]
            at = chart["rounds"].index(row.number)
            assert (chart["all"][at], {site: values[at] for site, values in chart["sites"].items()}) == (
                value,
                {site: of_site[name] for site, of_site in row.sites.items()},
            )
    assert dict(told["moved"]) == {
        number: sum(row.bytes_up + row.bytes_down for row in record.rounds if row.number == number) for number in (1, 2)
    }, "both phases of a round together"
    assert told["closed"] == {"train": 2, "evaluate": 2}


def test_what_is_no_number_or_was_not_measured_is_null() -> None:
    rows = [
        round_of(1, "evaluate", metrics={"loss": float("nan")}, sites={"a": {"loss": 1 / 3}}),
        round_of(2, "evaluate", metrics={}, sites={"b": {"loss": float("inf")}}),
    ]
    (chart,) = read(run_of(*rows))["charts"]
    assert chart == {"phase": "evaluate", "name": "loss", "rounds": [1, 2], "all": [None, None], "sites": {"a": [0.333333, None], "b": [None, None]}}


def test_curves_are_a_small_part_of_a_long_record() -> None:
    record = large_run(50, 3_000)
    told = curves_of(record.rounds)
    assert len(told) * 30 < len(record.to_json())
    (chart,) = [chart for chart in json.loads(told)["charts"] if chart["name"] == "auc"]
    assert (len(chart["rounds"]), len(chart["sites"]), chart["rounds"][0], chart["rounds"][-1]) == (POINTS, 50, 1, 3_000)


async def test_a_part_of_a_long_run_has_every_round(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "POINTS", 80)
    record = run_of(*map(round_of, range(1, 201)))
    keep(front.store, record)
    guest, path = await front.person(Role.AUDITOR), f"/api/runs/{record.run}/curves"
    whole = (await guest.http.get(path)).json()
    assert [len(chart["rounds"]) for chart in whole["charts"]] == [80, 80]
    for until, first, last in ((80, 1, 80), (160, 81, 160), (240, 161, 200), (7, 1, 7)):
        part = (await guest.http.get(path, params={"until": until})).json()
        assert {(chart["phase"], chart["name"]) for chart in part["charts"]} == {("train", "loss"), ("evaluate", "loss")}
        numbers = [*range(first, last + 1)]
        for chart in part["charts"]:
            assert chart["rounds"] == numbers
            assert chart["all"] == pytest.approx([1.0 / number for number in numbers], rel=1e-5)
            assert chart["sites"]["south"] == pytest.approx([1.1 / number for number in numbers], rel=1e-5)
        assert part["moved"] == [[number, 6_000_000] for number in numbers]
    assert (await guest.http.get(path, params={"until": 0})).json() == whole
    for wrong in ("-1", "x", "1000001"):
        assert (await guest.http.get(path, params={"until": wrong})).status_code == 400


async def test_a_run_that_is_over_is_read_once(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes next gets the same page, and its record is not read again."""
    record = replace(large_run(3, 700), run="long-1")
    front.store.create_run("long-1", "ward", "long", plan_text(rounds=700), "aa", "bb", "", NOW)
    front.store.finish("long-1", "completed", "", json.loads(record.to_json()), NOW)
    guest, seen = await front.person(Role.AUDITOR), list[str]()
    whole = RunRecord.from_json

    def reading(text: str) -> RunRecord:
        seen.append(text)
        return whole(text)

    monkeypatch.setattr(RunRecord, "from_json", staticmethod(reading))
    pages = [(await guest.http.get("/runs/long-1")).text for _ in range(2)]
    for path in ("/api/runs/long-1/curves", "/api/runs/long-1", "/runs", "/api/runs", "/models", "/privacy"):
        assert (await guest.http.get(path)).status_code == 200, path
    assert len(seen) == 1
    assert (await guest.http.get("/api/runs/long-1/curves")).text == curves_of(record.rounds)
    assert (await guest.http.get("/api/runs/long-1/record")).text == record.to_json(), "as it is stored"
    assert len(seen) == 1
    at_most = f"at most {POINTS} rounds"
    assert [at_most in text and 'href="/api/runs/long-1/record"' in text for text in pages] == [True, True]


async def test_of_the_pictures_the_newest_are_kept(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_KEPT", 1)
    for name in ("one", "two"):
        front.store.create_run(name, "ward", name, plan_text(name=name), "aa", "bb", "", NOW)
        front.store.finish(name, "completed", "", json.loads(replace(full_run(), run=name, name=name).to_json()), NOW)
    guest = await front.person(Role.AUDITOR)
    for name in ("one", "two", "one"):
        assert f"<h1>{name}</h1>" in (await guest.http.get(f"/runs/{name}")).text


async def test_a_run_that_goes_on_is_looked_at_anew(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada, rounds=2)
    guest = await front.person(Role.AUDITOR)
    before = (await guest.http.get(f"/api/runs/{run}/curves")).json()
    await ada.answer(ask, 1.0)
    await ada.answer(await ada.ask("train"), 1.0)
    await front.running.over(run)
    after = (await guest.http.get(f"/api/runs/{run}/curves")).json()
    assert (before["closed"], after["closed"]) == ({}, {"train": 2})
    info = (await guest.http.get(f"/api/runs/{run}")).json()["info"]
    assert (info["status"], info["phase"], info["number"]) == ("completed", "train", 2)
    assert [(row["phase"], row["number"]) for row in (await guest.http.get("/api/runs")).json()] == [("train", 2)]


def test_a_picture_has_what_a_page_shows() -> None:
    shown = picture_of(full_run())
    assert {trouble.site for trouble in shown.troubles} == {"north", "south"}
    assert {share.site: share.failed for share in shown.shares}["south"] == 2
    assert shown.finals["evaluate", "auc"] == 0.875
