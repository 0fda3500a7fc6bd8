"""The timeline of a report: a lane a site, and the same in numbers."""

from __future__ import annotations

import re
from dataclasses import replace

from fedscale.lanes import STAGES, Mark
from fedscale.record import RoundRecord
from fedscale.report.figures import GRID_ROWS
from fedscale.report.page import html
from fedscale.report.timeline import HEIGHTS, SHOWN, timeline
from tests.fedscale.report.outline import Element, outline
from tests.fedscale.sample_run import round_of, run_of

LANE: tuple[Mark, ...] = (("wait", 0.0), ("download", 0.2), ("train", 0.5), ("upload", 1.5), ("upload", 1.7), ("wait", 1.8))
GONE: tuple[Mark, ...] = (("wait", 0.0), ("train", 0.5), ("away", 1.0), ("failed", 2.0))


def drawn(*rounds: RoundRecord) -> Element:
    return outline("<main>" + "".join(timeline(run_of(*rounds))) + "</main>")


def rounds(count: int, **lanes: tuple[Mark, ...]) -> list[RoundRecord]:
    return [round_of(number, lanes=lanes or {"north": LANE, "south": GONE}) for number in range(1, count + 1)]


def test_a_run_without_lanes_has_no_timeline() -> None:
    assert timeline(run_of(round_of(1))) == []
    assert "Timeline" not in html(run_of(round_of(1)))
    assert "Timeline" in html(run_of(*rounds(1)))


def test_each_stage_of_a_lane_is_one_path_with_words() -> None:
    page = drawn(*rounds(2))
    paths = {(path.attributes["class"], path.text): path.attributes["d"] for path in page.all("svg", "states")[0].all("path")}
    told = {(f"stage-{stage}", STAGES[stage]) for stage in ("wait", "download", "train", "upload", "away", "failed")}
    assert set(paths) == told | {("stage-again", "tried again")}
    assert paths["stage-away", STAGES["away"]].count("M") == 2, "once a round"
    assert [item.text for item in page.one("ul", "legend").all("li")] == [
        *(f"{STAGES[stage]}{STAGES[stage]}" for stage in STAGES if (f"stage-{stage}", STAGES[stage]) in told),
        "tried againtried again",
    ]


def test_parts_lie_where_their_seconds_are() -> None:
    page = drawn(*rounds(2, north=LANE))
    (upload,) = [path for path in page.all("svg", "states")[0].all("path") if path.attributes["class"] == "stage-upload"]
    begins = [float(x) for x in re.findall(r"M([\d.]+) ", upload.attributes["d"])]
    second = (996.0 - 170.0) / 4
    assert begins == [round(170 + at * second, 1) for at in (1.5, 1.7, 3.5, 3.7)]


def test_the_numbers_are_a_table() -> None:
    table = drawn(*rounds(2)).one("table")
    head = [cell.text for cell in table.one("thead").all("th")]
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")}
    assert head == ["Site", "waits", "downloads", "trains", "uploads", "connection lost", "tried again", "lost, times", "failed, times"]
    assert rows == {"north": ["0.8 s", "0.6 s", "2 s", "0.6 s", "", "2", "", ""], "south": ["1 s", "", "1 s", "", "2 s", "", "2", "2"]}


def test_of_many_rounds_and_sites_some_are_drawn_and_it_says_so() -> None:
    many = {f"site-{at:02}": LANE for at in range(GRID_ROWS + 5)}
    page = drawn(*rounds(SHOWN + 5, **many))
    assert len(page.all("svg", "states")[0].all("g")) == GRID_ROWS
    assert page.one("figcaption").text == f"The last {SHOWN} phases. The first {GRID_ROWS} of {GRID_ROWS + 5} sites."
    assert len(page.one("tbody").all("tr")) == GRID_ROWS + 5


def test_names_of_sites_are_escaped_and_long_ones_cut() -> None:
    page = drawn(replace(rounds(1)[0], lanes={"<script>" + "x" * 40: LANE}))
    assert page.all("script") == []
    label = page.all("svg", "states")[0].one("g").all("text")[0]
    assert label.text.endswith("<script>" + "x" * 40)


def test_every_stage_but_failures_has_a_height_of_its_own() -> None:
    assert set(HEIGHTS) == set(STAGES) - {"failed"}
    apart = {stage: HEIGHTS[stage] for stage in HEIGHTS if stage != "evaluate"}
    assert len(set(apart.values())) == len(apart)
