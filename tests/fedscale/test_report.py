"""The page of a run is valid, sealed and escaped whatever the run holds; its files are replaced whole."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fedscale.errors import Cause, ConfigError, Failure
from fedscale.record import RunRecord
from fedscale.report import html, write
from tests.fedscale.report.outline import Element, outline, section
from tests.fedscale.sample_run import full_run, large_run, round_of, run_of

FILES = {"summary.json", "metrics.csv", "metrics.json", "report.html"}
HOSTILE = """</title></style></pre>--><script>alert(1)</script>"'><img src=x onerror=alert(2)>&amp;${x}{{x}}\x00\x1b"""


def page_of(record: RunRecord) -> Element:
    return outline(html(record))


VARIANTS = {
    "zero rounds": run_of(status="failed", reason="too few nodes"),
    "one round": run_of(round_of(1)),
    "no metric": run_of(round_of(1, metrics={}, sites={})),
    "nobody": run_of(round_of(1, answered=(), metrics={}, sites={}), nodes=()),
    "not finite": run_of(round_of(1, metrics={"loss": math.nan}, sites={"north": {"loss": math.inf}}, seconds=math.nan, weight=math.nan)),
    "huge": run_of(round_of(1, metrics={"loss": 1e308}, sites={"north": {"loss": -1e308}}), round_of(2, metrics={"loss": 1e299})),
    "full": full_run(),
    "large": large_run(sites=200, rounds=40),
    "long": large_run(sites=3, rounds=700),
    "no text": run_of(round_of(1), name="", status="", plan_toml="", plan_hash="", model_digest="", run=""),
}


# ----------------------------------------------------------------------------------------------------------- every page


@pytest.mark.parametrize("name", VARIANTS)
def test_every_page_is_balanced_and_complete(name: str) -> None:
    text = html(VARIANTS[name])
    page = outline(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) - len(page.one("body").all("title")) == 1
    assert page.one("html").attributes["lang"] == "en"


@pytest.mark.parametrize("name", VARIANTS)
def test_no_page_asks_for_anything(name: str) -> None:
    text = html(VARIANTS[name])
    page = outline(text)
    used = {key for element in page.walk() for key in element.attributes}
    assert not {"src", "href", "srcset", "action", "data", "xlink:href", "poster", "style"} & used
    assert not [key for key in used if key.startswith("on")]
    assert not {"script", "link", "iframe", "object", "embed", "img", "form", "base", "use", "image", "a"} & {e.name for e in page.walk()}
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", text)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_page_shows_a_broken_number(name: str) -> None:
    page = page_of(VARIANTS[name])
    numbers = [
        value for element in page.walk() for key, value in element.attributes.items() if key in ("d", "x", "y", "cx", "cy", "x1", "y1", "width")
    ]
    assert not [value for value in numbers if "nan" in value or "inf" in value]
    assert not re.search(r"\bnan\b", page.one("body").text)


@pytest.mark.parametrize("name", VARIANTS)
def test_ids_are_not_repeated_and_classes_are_styled(name: str) -> None:
    page = page_of(VARIANTS[name])
    style = page.one("style").text
    classes = {word for element in page.walk() for word in element.attributes.get("class", "").split()}
    unstyled = {word for word in classes if not re.search(rf"\.{re.escape(word)}\b", style)}
    assert unstyled <= {"tick", "d0", "reason"}
    assert not [element for element in page.walk() if "id" in element.attributes]


def test_the_browser_is_told_to_load_nothing() -> None:
    head = page_of(full_run()).one("head")
    metas = head.all("meta")
    assert metas[0].attributes == {"charset": "utf-8"}
    assert metas[1].attributes["http-equiv"] == "Content-Security-Policy"
    rules = metas[1].attributes["content"].split("; ")
    assert rules[:2] == ["default-src 'none'", "style-src 'unsafe-inline'"]
    assert set(rules[2:]) == {"base-uri 'none'", "form-action 'none'"}


def test_a_page_is_a_pure_function_of_its_record() -> None:
    assert html(full_run()) == html(RunRecord.from_json(full_run().to_json()))


def test_a_large_run_stays_a_page_one_can_send() -> None:
    assert len(html(large_run(sites=200, rounds=200))) < 1_500_000


# ------------------------------------------------------------------------------------------------------------- hostile text


def hostile_run() -> RunRecord:
    failure = Failure(Cause.CODE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    row = round_of(1, failures={HOSTILE: failure}, answered=(HOSTILE + "2",), metrics={HOSTILE: 0.5}, sites={HOSTILE: {HOSTILE: 0.25}})
    texts = {field.name: HOSTILE for field in fields(RunRecord) if field.type == "str"}
    extra: dict[str, Any] = {
        HOSTILE: HOSTILE,
        "comparison": [{"kind": HOSTILE, "site": HOSTILE, HOSTILE: 0.5, "auc": 0.5, "note": HOSTILE}],
        "privacy": {"epsilon": 1.0, "delta": HOSTILE, HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "hashes": {HOSTILE: HOSTILE},
        "seeds": [HOSTILE],
    }
    return run_of(row, **texts, nodes=(HOSTILE,), extra=extra)


def test_hostile_text_adds_no_element_and_no_attribute() -> None:
    harmless = page_of(run_like_hostile("harmless"))
    hostile = page_of(hostile_run())
    assert [(e.name, sorted(e.attributes)) for e in hostile.walk()] == [(e.name, sorted(e.attributes)) for e in harmless.walk()]


def run_like_hostile(text: str) -> RunRecord:
    """The same run with other words."""
    return RunRecord.from_json(hostile_run().to_json().replace(json.dumps(HOSTILE)[1:-1], text))


def test_hostile_text_is_shown_as_it_is_without_its_controls() -> None:
    page = page_of(hostile_run())
    shown = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert page.one("h1").text == shown
    assert section(page, "Plan").one("pre").text == shown
    assert section(page, "Failures").all("td")[1].text.startswith(shown)
    assert page.one("p", "reason").text == shown
    assert not re.search("[\x00-\x08\x0b-\x1f]", html(hostile_run()))


def test_marks_that_reorder_text_are_replaced() -> None:
    page = page_of(run_of(round_of(1), name="invoice\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe"))
    assert page.one("h1").text == "invoice\N{REPLACEMENT CHARACTER}fdp.exe"


# ------------------------------------------------------------------------------------------------------------------ files


def test_write_leaves_four_files_that_agree(tmp_path: Path) -> None:
    record = full_run()
    paths = write(record, tmp_path / "deep" / "run")
    assert set(paths) == FILES
    assert {path.name for path in (tmp_path / "deep" / "run").iterdir()} == FILES
    assert RunRecord.from_json(paths["metrics.json"].read_text()) == record
    assert paths["report.html"].read_text("utf-8") == html(record)
    assert json.loads(paths["summary.json"].read_text("utf-8"))["evaluate.auc"] == 0.875
    with paths["metrics.csv"].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_write_replaces_what_lies_there(tmp_path: Path) -> None:
    write(full_run(), tmp_path)
    write(run_of(round_of(1), name="second"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "summary.json").read_text())["name"] == "second"


def test_a_reader_keeps_the_whole_old_file(tmp_path: Path) -> None:
    paths = write(full_run(), tmp_path)
    before = paths["report.html"].read_text("utf-8")
    with paths["report.html"].open(encoding="utf-8") as reader:
        start = reader.read(100)
        write(run_of(round_of(1), name="second"), tmp_path)
        assert start + reader.read() == before


def test_a_diverged_run_is_written_as_strict_json(tmp_path: Path) -> None:
    paths = write(VARIANTS["not finite"], tmp_path)
    assert "NaN" not in paths["summary.json"].read_text() + paths["metrics.json"].read_text()
    assert json.loads(paths["summary.json"].read_text())["train.loss"] is None


def test_broken_characters_do_not_break_a_file(tmp_path: Path) -> None:
    paths = write(run_of(round_of(1), name="a\ud800b"), tmp_path)
    assert json.loads(paths["summary.json"].read_text("utf-8"))["name"] == "a?b"
    assert outline(paths["report.html"].read_text("utf-8")).one("h1").text == "a\N{REPLACEMENT CHARACTER}b"


def test_a_failed_write_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(full_run(), tmp_path)
    before = {name: path.read_bytes() for name, path in paths.items()}

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ConfigError) as caught:
        write(run_of(round_of(1), name="second"), tmp_path)
    assert caught.value.why == "No space left on device"
    assert caught.value.where == str(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="the run's files cannot be written"):
        write(full_run(), tmp_path / "taken")
