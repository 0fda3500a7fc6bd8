"""The failure tour as people see it: several kinds of failures of real nodes, read from what a real Chromium displays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from fedscale.advice import ADVICE
from fedscale.errors import Cause
from tests.web.conftest import Front
from tests.web.test_browser import operator
from tests.web.test_failure_tour import APP, BY_APP, BY_DATA, BY_POLICY, PLANTED, Tour, stamps, tour
from tests.web.windows import AUDIT, PATIENCE, browser

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser", "stamps", "tour"]
COLUMNS = ["Site", "Rounds", "Cause", "What happened", "Where", "What to do"]
BROKEN = ("raises", "one-class", "not-finite", "no-weight")
# What a row shows, as far as it is drawn: a cell that is hidden or has no size reads as nothing.
SHOWN = """(rows) => rows.map((row) => [...row.cells].map((cell) => {
  const box = cell.getBoundingClientRect();
  return cell.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && box.width > 0 && box.height > 0 ? cell.innerText.trim() : "";
}))"""
# By the page itself: the page may draw a table anew while a test holds on to a part of it.
REVEAL = "(what) => document.querySelector(what).scrollIntoView({ block: 'center', inline: 'end' })"


async def test_reason_round_site_and_next_step_are_read_on_the_open_page(browser: Browser, front: Front, tour: Tour) -> None:
    rule, _, policy_words = BY_POLICY["dp-only"]
    await asyncio.gather(
        tour.site("healthy", "ward"),
        *(tour.site(name, "ward", BY_APP[name][0]) for name in BROKEN),
        tour.site("no-file", "ward", changes=Path.unlink),
        tour.site("dp-only", "ward", rules=[rule]),
    )
    look = await operator(browser, front, viewport={"width": 1280, "height": 900})
    run = await tour.run("ward", APP, sites=len(tour.homes))
    page = await look.open(f"/runs/{run}")
    rows = page.locator("#failures tbody tr")
    await expect(rows).to_have_count(len(tour.homes) - 1, timeout=PATIENCE)
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    assert await page.locator("#failures thead th").all_inner_texts() == COLUMNS
    shown = {row[0]: row[1:] for row in await rows.evaluate_all(SHOWN)}
    expected = {name: BY_APP[name][1:] for name in BROKEN} | {"no-file": BY_DATA["no-file"], "dp-only": ("policy", policy_words)}
    assert {name: (row[0], row[1]) for name, row in shown.items()} == {name: ("train 1", cause) for name, (cause, _) in expected.items()}
    assert {name: row for name, row in shown.items() if not row[2] or not row[4]} == {}, "each says what happened and what to do"
    assert {name: (words, shown[name]) for name, (_, words) in expected.items() if words not in " ".join(shown[name])} == {}
    assert {cause for cause, _ in expected.values()} <= {str(cause) for cause in Cause} & {str(cause) for cause in ADVICE}
    assert not PLANTED.search(await page.locator("body").inner_text())
    assert await page.evaluate(AUDIT) == []
    await page.evaluate(REVEAL, "#failures tbody tr")
    await expect(rows.first).to_be_in_viewport()
    assert look.faults == []


async def test_on_a_phone_the_next_step_can_be_reached(browser: Browser, front: Front, tour: Tour) -> None:
    await asyncio.gather(tour.site("healthy", "ward"), tour.site("raises", "ward", BY_APP["raises"][0]))
    run = await tour.run("ward", APP, sites=2)
    await front.running.over(run)
    look = await operator(browser, front, viewport={"width": 390, "height": 800})
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#live")).to_be_hidden()
    await page.evaluate(REVEAL, "#failures tbody td:last-child")
    advice = page.locator("#failures tbody td:last-child")
    await expect(advice).to_be_in_viewport()
    await expect(advice).not_to_be_empty()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the table scrolls, the page does not"
    assert look.faults == []
