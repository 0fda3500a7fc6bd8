"""The dashboard in a real Chromium: what people see and do, live, by keyboard, on a phone; and not one request to anybody else."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from fedscale.identity import Role, Ticket
from fedscale.learner import Phase, Result, Work
from fedscale.web.links import link
from tests.server.running import Node, plan_text, until
from tests.web.conftest import PASSWORD, Front
from tests.web.windows import AUDIT, PATIENCE, PHONE, Look, browser, window

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser"]
PAGES = ("/", "/runs", "/sites", "/models", "/privacy", "/audit")
SECRET = "Jane Roe 1944-02-29"

FIRST_PAINT = """() => new Promise((told) => {
  new PerformanceObserver((list) => told(list.getEntries()[0].startTime)).observe({ type: "paint", buffered: true });
})"""

# As many lines of as many points, drawn by nobody's code: how long this machine takes for it at this moment.
PLAIN = """() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1200, height: 400 }).getContext("2d"), began = performance.now();
  for (let site = 0; site < 50; site += 1) {
    pen.beginPath();
    for (let at = 0; at < 500; at += 1) pen.lineTo(2.4 * at, 200 + 150 * Math.sin(at / 20 + site));
    pen.stroke();
  }
  return performance.now() - began;
}"""


async def operator(browser: Browser, front: Front, **options: Any) -> Look:
    """A window in which the operator has come in by a link."""
    look = await window(browser, front.address, **options)
    await look.page.goto(link(front.running.path, time.time()))
    await expect(look.page.get_by_role("heading", name="Overview")).to_be_visible(timeout=PATIENCE)
    return look


class Steady:
    """A learner that gets better in the same way each time and quotes a patient where it may."""

    def __init__(self, offset: float) -> None:
        self.offset, self.times = offset, 0

    def run(self, work: Work) -> Result:
        import numpy as np

        if work.phase is Phase.INIT or work.arrays is None:
            return Result({"w": np.zeros(4, np.float32)}, 0)
        self.times += 1
        value = np.array([10.0 / (1 + self.times) + self.offset])
        return Result({"w": work.arrays["w"] + 1} if work.phase is Phase.TRAIN else None, 10, dict.fromkeys(work.metrics, value))


async def work(node: Node, number: int, *, until_round: int = 0) -> None:
    """Answer everything a little later; leave for good at ``until_round``."""
    learner = Steady(number / 10)
    while True:
        ask = await node.ask()
        await asyncio.sleep(0.02 * (number + 1))
        if until_round and ask.task.number == until_round:
            await node.leave()
            return
        await node.do(ask, learner)


async def test_a_live_run_in_which_one_of_four_sites_dies(browser: Browser, front: Front, tmp_path: Path) -> None:
    nodes = await front.running.nodes("aachen", "bergen", "cork", "delft")
    look = await operator(browser, front, viewport={"width": 1280, "height": 900})
    run = await front.running.submit(plan_text(rounds=8, every=1, clients={"min_per_round": 3, "wait_for": 4, "rejoin": 1}))
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#no-charts")).to_be_visible()
    await expect(page.locator("#live")).to_have_text("live")
    working = [asyncio.create_task(work(node, at, until_round=4 * (at == 3))) for at, node in enumerate(nodes)]
    await expect(page.locator(".charts h3").first).to_contain_text("Loss, evaluation")
    failures = page.locator("#failures")
    await expect(failures).to_contain_text("delft", timeout=PATIENCE)
    await expect(failures).to_contain_text("lost")
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    await expect(page.locator("#live")).to_be_hidden()
    await expect(page.locator("#region-actions button")).to_have_count(0)
    await expect(page.locator("canvas").first).to_have_attribute("data-rounds", "8")
    timeline = page.locator("#timeline")
    await expect(timeline).to_have_attribute("data-lanes", "4")
    # The drop-out is drawn.
    await expect(timeline).to_have_attribute("data-failed", re.compile("[1-9]"))
    legend = await page.locator(".charts figure").first.locator(".legend").inner_text()
    for name in ("all sites", "worst site", "aachen", "delft"):
        assert name in legend
    await page.screenshot(path=tmp_path / "run.png", full_page=True)
    assert look.faults == []
    for task in working:
        task.cancel()


async def test_the_page_comes_back_after_a_restart_without_a_lost_event(browser: Browser, front: Front) -> None:
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada, rounds=3)
    look = await operator(browser, front)
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#live")).to_have_text("live")
    await front.running.restart()
    front.running.people.remove(front.running.admin)
    ada.channel = ada.credentials.channel(front.running.ready.address)
    await ada.connect()
    ada.work(Steady(0))
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    await expect(page.locator("canvas").first).to_have_attribute("data-rounds", "3")
    assert [fault for fault in look.faults if "ERR_" not in fault and "Failed to load" not in fault] == []


async def test_a_project_is_made_a_site_invited_and_shut_out(browser: Browser, front: Front) -> None:
    look = await operator(browser, front)
    page = await look.open("/sites")
    await page.get_by_label("Name of the project").fill("heart")
    await page.get_by_role("button", name="Make it").click()
    await expect(page.get_by_label("Project", exact=True)).to_contain_text("heart")
    await page.get_by_label("Project", exact=True).select_option("heart")
    await page.get_by_label("Name of the site").fill("north")
    await page.get_by_role("button", name="Make a ticket").click()
    ticket = page.get_by_label("ticket", exact=True)
    await expect(ticket).to_be_visible()
    assert Ticket.parse(await ticket.inner_text()).address == front.running.ready.enrolment
    await page.reload()
    await expect(ticket).to_be_hidden()
    ada = await front.running.node("ada")
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.get_by_role("button", name="shut out ada").click()
    await expect(page.locator("#region-sites")).to_contain_text("shut out")
    await until(lambda: not ada.connected)
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url("**/login")
    assert look.faults == []


async def test_a_run_is_submitted_steered_and_exported(browser: Browser, front: Front, tmp_path: Path) -> None:
    ada, look = await front.running.node("ada"), await operator(browser, front)
    job = tmp_path / "job.toml"
    job.write_text(plan_text(rounds=2))
    (tmp_path / "app.py").write_text("app = None\n")
    page = await look.open("/runs")
    await page.get_by_label("Project").select_option("ward")
    await page.get_by_label("Job file and app").set_input_files([job])
    await page.get_by_role("button", name="Submit").click()
    await expect(page.get_by_role("alert")).to_contain_text("there is no module for app")
    await page.get_by_label("Job file and app").set_input_files([job, tmp_path / "app.py"])
    await page.get_by_role("button", name="Submit").click()
    await page.wait_for_url("**/runs/trial-*")
    await ada.initialize(await ada.ask("init"))
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#region-state")).to_contain_text("paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("#region-state")).to_contain_text("running")
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator("#region-state")).to_contain_text("stopped")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Model", exact=True).click()
    assert (await download.value).suggested_filename.endswith(".safetensors")
    assert [fault for fault in look.faults if "400" not in fault] == []


async def test_one_logs_in_and_steers_by_keyboard(browser: Browser, front: Front) -> None:
    front.account("grace", Role.RESEARCHER)
    ada = await front.running.node("ada")
    run, _ = await front.running.begun(ada, rounds=2)
    look = await window(browser, front.address)
    page = await look.open(f"/runs/{run}")
    await expect(page.get_by_label("Name", exact=True)).to_be_focused()
    for word in ("grace", PASSWORD):
        await page.keyboard.type(word)
        await page.keyboard.press("Enter" if word == PASSWORD else "Tab")
    await expect(page.locator("#pause")).to_be_visible()
    reached = []
    for _ in range(40):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        visible = await page.evaluate("(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none'; })()")
        assert visible or reached[-1] in ("main", ""), f"nobody sees where the focus is: {reached[-1]}"
        if reached[-1] == "pause":
            break
    assert reached[0] == "Skip to the content"
    assert "Sites" in reached
    await page.keyboard.press("Space")
    await expect(page.locator("#region-state")).to_contain_text("paused")
    await page.locator("#resume").press("Enter")
    await expect(page.locator("#region-state")).to_contain_text("running")
    assert look.faults == []


async def test_curves_and_lanes_are_read_by_keyboard(browser: Browser, front: Front) -> None:
    ada = await front.running.node("ada")
    run = await front.running.submit(plan_text(rounds=2))
    ada.work(Steady(0))
    await front.running.over(run)
    look = await operator(browser, front)
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("canvas").first).to_have_attribute("data-rounds", "2")
    await page.locator("canvas").first.focus()
    await page.keyboard.press("Home")
    await expect(page.locator(".readout").first).to_contain_text("round 1: all sites")
    await page.keyboard.press("ArrowRight")
    await expect(page.locator(".readout").first).to_contain_text("round 2: all sites")
    await page.locator("#timeline").focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("#timeline-readout")).to_contain_text("ada: ")
    assert look.faults == []


async def test_every_page_is_readable_in_light_and_dark_on_desk_and_phone(browser: Browser, front: Front, tmp_path: Path) -> None:
    nodes = await front.running.nodes("ada", "ben")
    runs = []
    for seed in (1, 2):
        run, (ask, other) = await front.running.begun(*nodes, seed=seed, every=1, clients={"min_per_round": 1, "wait_for": 2})
        nodes[0].fail(ask.key)
        await nodes[1].answer(other, 1.0)
        working = [asyncio.create_task(work(node, 0)) for node in nodes]
        await front.running.over(run)
        for task in working:
            task.cancel()
        runs.append(run)
    going, _ = await front.running.begun(*nodes, rounds=3)
    paths = (*PAGES, f"/runs/{runs[0]}", f"/runs/{going}", f"/compare?run={runs[0]}&run={runs[1]}", "/runs/none")
    for colour in ("light", "dark"):
        for size in ({"width": 1280, "height": 900}, PHONE):
            look = await operator(browser, front, viewport=size, color_scheme=colour)
            for path in paths:
                page = await look.open(path)
                if path.startswith(f"/runs/{runs[0]}"):
                    await expect(page.locator("canvas").first).to_have_attribute("data-rounds", "1")
                assert await page.evaluate(AUDIT) == [], f"{path} {colour} {size}"
            await look.page.screenshot(path=tmp_path / f"{colour}-{size['width']}.png")
            assert [fault for fault in look.faults if "404" not in fault] == []
            await look.page.context.close()


def long_record(sites: int, rounds: int) -> dict[str, Any]:
    """A run of many sites and rounds as its record."""
    names = [f"site-{at:02}" for at in range(sites)]

    def row(number: int) -> dict[str, Any]:
        of_sites = {name: {"auc": 0.5 + 0.4 * number / rounds - at / 500 + (number * at % 7) / 300} for at, name in enumerate(names)}
        facts = {"failures": {}, "weight": 1.0, "seconds": 1.0, "bytes_up": 10, "bytes_down": 10}
        return {"number": number, "phase": "evaluate", "answered": names, "metrics": {"auc": 0.5 + 0.4 * number / rounds}, "sites": of_sites, **facts}

    facts = {"run": "big-1", "name": "big", "status": "completed", "reason": "", "plan_hash": "", "model_digest": "", "seconds": 1.0}
    return {
        **facts,
        "plan_toml": plan_text(),
        "nodes": names,
        "rounds": list(map(row, range(1, rounds + 1))),
        "bytes_up": 0,
        "bytes_down": 0,
        "extra": {},
    }


async def test_fifty_sites_and_five_hundred_rounds_are_drawn_in_a_frame(
    browser: Browser, front: Front, record_property: Callable[[str, str], None]
) -> None:
    front.store.create_run("big-1", "ward", "big", plan_text(), "aa", "bb", "", datetime.now(UTC))
    front.store.finish("big-1", "completed", "", long_record(50, 500), datetime.now(UTC))
    look = await operator(browser, front, viewport={"width": 1280, "height": 900})
    page = await look.open("/runs/big-1")
    chart = page.locator("canvas").first
    await expect(chart).to_have_attribute("data-rounds", "500", timeout=PATIENCE)
    times, plain = [], []
    for _ in range(20):
        plain.append(float(await page.evaluate(PLAIN)))
        await chart.press("ArrowLeft")
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        times.append(float(await chart.get_attribute("data-redraw-ms") or "inf"))
    await look.open("/")
    paint = await page.evaluate(FIRST_PAINT)
    record_property("measured", f"redraw of 50 sites and 500 rounds {median(times)} ms (median of {len(times)}), first paint {paint:.0f} ms")
    assert min(times) < max(16, 8 * min(plain)), (times, plain)
    assert look.faults == []


async def test_planted_patients_appear_nowhere(browser: Browser, front: Front) -> None:
    nodes = await front.running.nodes("ada", "ben")
    run, (ask, other) = await front.running.begun(*nodes, clients={"min_per_round": 1, "wait_for": 2})
    look = await operator(browser, front)
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#live")).to_have_text("live")
    change = ask.words(0.0).copy()
    change[: len(SECRET) // 4] = [int.from_bytes(SECRET.encode()[4 * at : 4 * at + 4], "little") for at in range(len(SECRET) // 4)]
    await nodes[0].submit(ask.key, change.tobytes())
    await nodes[1].answer(other, 1.0)
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    seen = [await page.content()]
    for path in (*PAGES, "/api/status", "/metrics", f"/api/runs/{run}/record"):
        answer = await page.request.get(front.address + path)
        seen.append(await answer.text())
    assert [text for text in seen if "Jane" in text or "1944" in text] == []
