"""The console in a real Chromium: the switch, by keyboard, on a phone, in the dark; and not one request to anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Route, expect

from fedscale_client import policy
from tests.client.console_site import APP, FAILURE, Site, console, joined, past, task, tell
from tests.web.windows import AUDIT, PATIENCE, PHONE, Look, browser, window

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser"]
PAGES = ("/", "/asked", "/asked/run-1", "/asked/run-2", "/left", "/privacy", "/asked/none")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    home = joined(tmp_path / "mercy")
    past(home)
    policy.save(home, policy.load(home, ["datasets.heart.epsilon=5", 'datasets.heart.units=["record"]']))
    async with console(home) as made:
        yield made


async def owner(browser: Browser, site: Site, **options: Any) -> Look:
    """A window in which the owner has come in by a link."""
    look = await window(browser, site.address, **options)
    await look.page.goto(site.link())
    await expect(look.page.get_by_role("heading", name="mercy")).to_be_visible(timeout=PATIENCE)
    return look


async def test_every_page_is_readable_in_light_and_dark_on_desk_and_phone(browser: Browser, site: Site, tmp_path: Path) -> None:
    for colour in ("light", "dark"):
        for size in ({"width": 1280, "height": 900}, PHONE):
            look = await owner(browser, site, viewport=size, color_scheme=colour)
            for at, path in enumerate(PAGES):
                page = await look.open(path)
                for details in await page.locator("details").all():
                    await details.evaluate("(one) => { one.open = true; }")
                assert await page.evaluate(AUDIT) == [], f"{path} {colour} {size}"
                await page.screenshot(path=tmp_path / f"console-{colour}-{size['width']}-{at}.png", full_page=True)
            assert [fault for fault in look.faults if "404" not in fault] == []
            await look.page.context.close()


async def test_the_site_is_paused_by_keyboard_and_goes_on(browser: Browser, site: Site) -> None:
    look = await owner(browser, site)
    page, reached = look.page, []
    for _ in range(15):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if reached[-1] == "switch":
            break
    assert reached[:2] == ["Skip to the content", "fedscale"]
    await page.keyboard.press("Enter")
    await expect(page.locator("#region-state")).to_contain_text("paused")
    assert policy.load(site.home).paused
    await expect(page.locator("#switch")).to_have_text("Go on")
    await page.locator("#switch").press("Space")
    await expect(page.locator("#switch")).to_have_text("Pause this site")
    assert not policy.load(site.home).paused
    assert look.faults == []


async def test_what_is_asked_now_appears_on_the_open_page(browser: Browser, site: Site) -> None:
    look = await owner(browser, site)
    page = await look.open("/asked")
    await expect(page.locator("#live")).to_have_text("live")
    tell(site.home, "task", **task("run-3", "train", 1))
    await expect(page.get_by_role("link", name="run-3")).to_be_visible(timeout=PATIENCE)
    await page.get_by_role("link", name="run-3").click()
    await expect(page.locator("#live")).to_have_text("live")
    tell(site.home, "failed", key="run-3/train/1", failure=FAILURE)
    await expect(page.locator("#region-failures")).to_contain_text("secure aggregation only", timeout=PATIENCE)
    assert look.faults == []


async def test_what_happens_while_a_page_is_loading_is_on_it(browser: Browser, site: Site) -> None:
    look, told = await owner(browser, site), asyncio.Event()

    async def late(route: Route) -> None:
        await told.wait()
        await route.continue_()

    await look.page.route("**/api/events", late)
    page = await look.open("/asked")
    await expect(page.get_by_role("link", name="run-3")).to_have_count(0)
    tell(site.home, "task", **task("run-3", "train", 1))
    told.set()
    await expect(page.get_by_role("link", name="run-3")).to_be_visible(timeout=PATIENCE)
    assert look.faults == []


async def test_code_is_read_and_approved(browser: Browser, site: Site) -> None:
    look = await owner(browser, site)
    page = await look.open("/asked/run-1")
    await page.get_by_text("app.py").click()
    await expect(page.get_by_text("what the job runs")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Allow only this").click()
    await expect(page.locator("#region-approval")).to_contain_text("Take it off the list")
    assert policy.load(site.home).apps == (APP,)
    await page.get_by_role("button", name="Take it off the list").click()
    refusal = page.locator("#region-approval").get_by_role("alert")
    await expect(refusal).to_contain_text("without one any app may run; let none run: fedscale node pause")
    assert await page.evaluate(AUDIT) == []
    assert policy.load(site.home).apps == (APP,)
    assert [fault for fault in look.faults if "409" not in fault] == []


async def test_logging_out_and_a_link_that_is_used_up(browser: Browser, site: Site) -> None:
    entrance = site.link()
    look = await window(browser, site.address)
    await look.page.goto(entrance)
    await expect(look.page.get_by_role("heading", name="mercy")).to_be_visible(timeout=PATIENCE)
    await look.page.get_by_role("button", name="Log out").click()
    await expect(look.page.get_by_role("heading", name="The console of this site")).to_be_visible()
    await look.page.goto("about:blank")
    await look.page.goto(entrance)
    await expect(look.page.get_by_role("alert")).to_contain_text("make another: fedscale node open")
    await look.page.goto(f"{site.address}/left")
    await expect(look.page.get_by_text("fedscale node open")).to_be_visible()
    assert [fault for fault in look.faults if "403" not in fault] == []
