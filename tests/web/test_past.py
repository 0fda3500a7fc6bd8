"""Rounds of long ago on the page of a run: by pointer and by keyboard, on a phone, and while the run goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from fedscale.identity import Role
from fedscale.record import Phase, RunRecord
from fedscale_server.web import gallery, pages
from fedscale_server.web.past import PHASES, phases
from tests.fedscale.sample_run import round_of, run_of
from tests.server.running import Counting, Node
from tests.web.conftest import Front
from tests.web.long_run import BEGAN, SECONDS, drawn, keep
from tests.web.test_browser import operator
from tests.web.windows import AUDIT, PATIENCE, PHONE, browser

__all__ = ["browser"]
DESK = {"width": 1280, "height": 900}
ROUNDS = 90
BOTH: tuple[Phase, ...] = ("train", "evaluate")


def kept(front: Front, rounds: int = ROUNDS) -> RunRecord:
    """A run with training and evaluation in each round, and its journal."""
    record = run_of(*map(round_of, range(1, rounds + 1)))
    keep(front.store, record)
    return record


@pytest.mark.parametrize(("until", "first", "last"), [(1, 1, 1), (20, 1, 20), (21, 2, 21), (57, 38, 57), (90, 71, 90), (91, 71, 90)])
async def test_the_phases_up_to_a_round_are_those_of_the_journal(front: Front, until: int, first: int, last: int) -> None:
    record = kept(front)
    found = phases(front.store, record.run, until)
    assert [(phase.phase, phase.number) for phase in found] == [(phase, number) for number in range(first, last + 1) for phase in BOTH]
    began = BEGAN.timestamp() + 2 * SECONDS * (first - 1)
    assert [(phase.opened, phase.end) for phase in found] == [(began + SECONDS * at, began + SECONDS * (at + 1)) for at in range(len(found))]
    assert [phase.lanes for phase in found] == [drawn(round_of(number, phase)).lanes for number in range(first, last + 1) for phase in BOTH]


async def test_a_phase_that_is_open_is_left_to_whoever_follows_the_run(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada, rounds=2)
    assert phases(front.store, run, 1) == []
    await ada.answer(ask)
    await ada.ask("train")
    (past,) = phases(front.store, run, 2)
    assert (past.phase, past.number, [*past.lanes]) == ("train", 1, ["ada"])
    assert past.opened <= past.end


async def test_a_clock_that_was_set_back_makes_no_phase_end_before_it_began(front: Front) -> None:
    record = kept(front, rounds=1)
    payload = {"phase": "train", "number": 2, "detail": {}}
    front.store.append(record.run, "note.opened", payload, BEGAN, "note.opened/train/2")
    front.store.append(record.run, "note.closed", payload, BEGAN.replace(year=2025), "note.closed/train/2")
    last = phases(front.store, record.run, 2)[-1]
    assert (last.number, last.opened, last.end, last.lanes) == (2, BEGAN.timestamp(), BEGAN.timestamp(), {})


async def test_the_api_gives_a_part_at_a_time(front: Front) -> None:
    record = kept(front)
    guest = await front.person(Role.AUDITOR)

    async def asked(**given: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await guest.http.get(f"/api/runs/{record.run}/timeline", params=given)).json()
        return found

    newest, older, beyond = await asked(), await asked(until=30), await asked(until=1_000_000)
    assert (len(newest), newest[-1]["number"], newest) == (PHASES, ROUNDS, beyond)
    assert [older[0]["number"], older[-1]["number"]] == [11, 30]
    assert older[-1]["lanes"]["south"] == [["wait", 0.0], ["evaluate", 0.2], ["upload", 1.5], ["wait", 1.7]]
    for wrong in ("0", "-1", "1e3", "1000001"):
        assert (await guest.http.get(f"/api/runs/{record.run}/timeline?until={wrong}")).status_code == 400


async def shows(page: Page, text: str) -> None:
    """Wait until the page says which rounds it shows."""
    await expect(page.locator("#timeline-rounds output")).to_have_text(text, timeout=PATIENCE)


def requests(page: Page) -> list[str]:
    """The addresses that a page asks for, from now on."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    return seen


async def last_told(page: Page) -> str:
    """What the keyboard reads of the newest part on the timeline."""
    await page.locator("#timeline").focus()
    await page.keyboard.press("ArrowDown")
    return str(await page.locator("#timeline-readout").inner_text())


@pytest.mark.requires("chromium")
async def test_one_goes_back_and_forth_by_pointer(browser: Browser, front: Front, tmp_path: Path) -> None:
    record = kept(front)
    for colour, size in (("light", DESK), ("dark", PHONE)):
        look = await operator(browser, front, viewport=size, color_scheme=colour)
        seen = requests(look.page)
        page = await look.open(f"/runs/{record.run}")
        await shows(page, "Rounds 71 to 90 of 90, the newest")
        assert (await last_told(page)).endswith("evaluate 90, 0.3 s")
        later, newest = (page.get_by_role("button", name=name) for name in ("Later", "Newest"))
        await expect(later).to_be_disabled()
        await page.get_by_role("button", name="Earlier").click()
        await shows(page, "Rounds 51 to 70 of 90")
        assert (await last_told(page)).endswith("evaluate 70, 0.3 s")
        assert await page.evaluate(AUDIT) == []
        await page.locator("figure.wide").screenshot(path=tmp_path / f"{colour}-{size['width']}.png")
        await page.get_by_role("button", name="Earlier").click()
        await shows(page, "Rounds 31 to 50 of 90")
        await later.click()
        await shows(page, "Rounds 51 to 70 of 90")
        await newest.click()
        await shows(page, "Rounds 71 to 90 of 90, the newest")
        await expect(newest).to_be_disabled()
        asked = [url.removeprefix(f"{front.address}/api/runs/{record.run}/") for url in seen]
        assert "record" not in asked, "never all of it"
        assert [path for path in asked if path.startswith("timeline?")] == ["timeline?until=70", "timeline?until=50", "timeline?until=70"]
        assert look.faults == []
        await page.context.close()


@pytest.mark.requires("chromium")
async def test_one_goes_back_and_forth_by_keyboard(browser: Browser, front: Front) -> None:
    record = kept(front)
    look = await operator(browser, front, viewport=DESK)
    page = await look.open(f"/runs/{record.run}")
    await shows(page, "Rounds 71 to 90 of 90, the newest")
    slider = page.get_by_role("slider", name="the last round shown")
    await slider.focus()
    for key, text, more in (
        ("ArrowLeft", "Rounds 70 to 89 of 90", True),
        ("Home", "Round 1 of 90", False),
        ("ArrowRight", "Rounds 1 to 2 of 90", False),
        ("End", "Rounds 71 to 90 of 90, the newest", True),
    ):
        await page.keyboard.press(key)
        await shows(page, text)
        await expect(slider).to_have_attribute("aria-valuetext", text)
        await expect(page.get_by_role("button", name="Earlier")).to_be_enabled(enabled=more)
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await shows(page, "Rounds 51 to 70 of 90")
    assert look.faults == []


@pytest.mark.requires("chromium")
async def test_of_all_that_a_slider_passes_only_where_it_stops_is_drawn(browser: Browser, front: Front) -> None:
    record = kept(front)
    look = await operator(browser, front, viewport=DESK)
    page, go, asked = look.page, asyncio.Event(), list[str]()

    async def slow(route: Route) -> None:
        asked.append(route.request.url.rpartition("=")[2])
        await go.wait()
        await route.continue_()

    await page.route("**/timeline?until=*", slow)
    await look.open(f"/runs/{record.run}")
    await shows(page, "Rounds 71 to 90 of 90, the newest")
    slider = page.get_by_role("slider", name="the last round shown")
    for value in (80, 60, 45, 33):
        await slider.evaluate("(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value)
    await expect(slider).to_have_js_property("value", "33")
    go.set()
    await shows(page, "Rounds 14 to 33 of 90")
    assert asked == ["80", "33"]
    assert look.faults == []


@pytest.mark.requires("chromium")
async def test_rounds_that_cannot_be_fetched_leave_what_is_there(browser: Browser, front: Front) -> None:
    record = kept(front)
    look = await operator(browser, front, viewport=DESK)
    page = look.page
    refused = {"error": {"what": "the database is busy", "hint": "try again"}}
    await page.route("**/timeline?until=*", lambda route: route.fulfill(status=503, json=refused))
    await look.open(f"/runs/{record.run}")
    await shows(page, "Rounds 71 to 90 of 90, the newest")
    await page.get_by_role("button", name="Earlier").click()
    await shows(page, "the database is busy; try again")
    assert (await last_told(page)).endswith("evaluate 90, 0.3 s")
    await page.unroute("**/timeline?until=*")
    await page.get_by_role("button", name="Earlier").click()
    await shows(page, "Rounds 51 to 70 of 90")
    assert [fault for fault in look.faults if "503" not in fault] == []


async def go_on(node: Node, learner: Counting, count: int) -> None:
    """Take part in so many phases."""
    for _ in range(count):
        ask = await node.ask()
        body, schema = await node.compute(ask, learner)
        await node.submit(ask.key, body, schema=schema)


@pytest.mark.requires("chromium")
async def test_a_run_that_goes_on_disturbs_nobody_who_looks_back(browser: Browser, front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada, rounds=60, every=1)
    learner = Counting()
    await ada.answer(ask)
    look = await operator(browser, front, viewport=DESK)
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#timeline")).to_have_attribute("data-lanes", "1", timeout=PATIENCE)
    await expect(page.locator("#timeline-rounds")).to_be_hidden()
    await go_on(ada, learner, 2 * 24 - 1)
    await shows(page, "Rounds 5 to 25 of 25, the newest")
    await page.get_by_role("button", name="Earlier").click()
    await shows(page, "Rounds 1 to 5 of 25")
    assert "evaluate 5, " in await last_told(page)
    parts = sum(len(lane) for phase in phases(front.store, run, 5) for lane in phase.lanes.values())
    await expect(page.locator("#timeline")).to_have_attribute("data-parts", str(parts))
    await go_on(ada, learner, 4)
    await shows(page, "Rounds 1 to 5 of 27")
    assert "evaluate 5, " in await last_told(page)
    await expect(page.locator("#timeline")).to_have_attribute("data-parts", str(parts))
    await page.get_by_role("button", name="Newest").click()
    await shows(page, "Rounds 7 to 27 of 27, the newest")
    await go_on(ada, learner, 2)
    await shows(page, "Rounds 8 to 28 of 28, the newest")
    await expect(page.get_by_role("slider", name="the last round shown")).to_have_js_property("value", "28")
    assert look.faults == []


def few_points(patch: pytest.MonkeyPatch, points: int, newest: int) -> None:
    """Runs of a few rounds are long ones."""
    for module in (gallery, pages):
        patch.setattr(module, "POINTS", points)
    patch.setattr(gallery, "NEWEST", newest)


@pytest.mark.requires("chromium")
async def test_every_round_of_a_part_is_drawn(browser: Browser, front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few_points(monkeypatch, 40, 10)
    record = kept(front)
    look = await operator(browser, front, viewport=PHONE)
    page = await look.open(f"/runs/{record.run}")
    part, chart, readout = page.get_by_label("Draw", exact=True), page.locator("canvas").first, page.locator(".readout").first
    await expect(part.locator("option")).to_have_text(
        ["the whole run, some of its rounds", "rounds 1 to 40, every one", "rounds 41 to 80, every one", "rounds 81 to 90, every one"]
    )
    # Each has another number of rounds than the one before, so that it is known when it is there.
    for chosen, count, first, second in (("120", 10, 81, 82), ("80", 40, 41, 42), ("120", 10, 81, 82), ("", 40, 1, 3)):
        await part.select_option(chosen)
        await expect(chart).to_have_attribute("data-rounds", str(count))
        for key, number in (("Home", first), ("ArrowRight", second)):
            await chart.press(key)
            await expect(readout).to_contain_text(f"round {number}: all sites {1 / number:.3f}")
    assert await page.evaluate(AUDIT) == []
    await page.screenshot(path=tmp_path / "part.png", full_page=True)
    assert look.faults == []


@pytest.mark.requires("chromium")
async def test_a_part_that_is_drawn_stays_while_the_run_goes_on(browser: Browser, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    few_points(monkeypatch, 5, 2)
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada, rounds=60, every=1)
    learner = Counting()
    await ada.answer(ask)
    await go_on(ada, learner, 2 * 8 - 1)
    look = await operator(browser, front, viewport=DESK)
    page = await look.open(f"/runs/{run}")
    part, chart = page.get_by_label("Draw", exact=True), page.locator("canvas").first
    await expect(chart).to_have_attribute("data-rounds", "5")
    await part.select_option("10")
    # Round 9 is open.
    await expect(chart).to_have_attribute("data-rounds", "3")
    await go_on(ada, learner, 2)
    await expect(page.locator("#region-state")).to_contain_text("train 10 of 60")
    await expect(chart).to_have_attribute("data-rounds", "3")
    await page.route("**/curves?until=5", lambda route: route.fulfill(status=503, json={"error": {"what": "the database is busy"}}))
    await part.select_option("5")
    await expect(page.locator("#curves-part ~ output")).to_have_text("the database is busy")
    await expect(chart).to_have_attribute("data-rounds", "3")
    await part.select_option("")
    await expect(chart).to_have_attribute("data-rounds", "5")
    await go_on(ada, learner, 2)
    await expect(chart).to_have_attribute("data-rounds", "6")
    assert [fault for fault in look.faults if "503" not in fault] == []
