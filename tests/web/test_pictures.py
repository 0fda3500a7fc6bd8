"""The pictures of the documentation: taken here, and found stale here when a page has other headings than the picture of it.

Taken anew with ``FEDSCALE_PICTURES=1``; otherwise nothing is written.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from fedscale_client import policy
from tests.client.console_site import console, joined, past
from tests.server.running import plan_text
from tests.web.conftest import Front
from tests.web.test_browser import operator, work
from tests.web.windows import PATIENCE, browser, window

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser"]
RENEW = "FEDSCALE_PICTURES"
DESK = {"width": 1120, "height": 760}
MOST_BYTES = 150_000


async def matches(page: Page, name: str, root: Path) -> None:
    """The picture of this name is of a page with the same headings, and small; it is taken now where that was asked for."""
    picture, outline = (root / "docs" / "pictures" / f"{name}{suffix}" for suffix in (".png", ".txt"))
    seen = "\n".join(" ".join(text.split()) for text in await page.locator("h1, h2").all_inner_texts()) + "\n"
    if os.environ.get(RENEW):
        await page.screenshot(path=picture)
        outline.write_text(seen, encoding="utf-8")
    renew = f"the page has changed; take its picture anew: {RENEW}=1 pytest tests/web/test_pictures.py"
    assert outline.read_text(encoding="utf-8") == seen, renew
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < MOST_BYTES


async def test_the_coordinators_pages_look_like_their_pictures(browser: Browser, front: Front, root: Path) -> None:
    nodes = await front.running.nodes("aachen", "bergen", "cork", "delft")
    run = await front.running.submit(plan_text(name="heart-risk", rounds=8, every=1, clients={"min_per_round": 3, "wait_for": 4, "rejoin": 1}))
    working = [asyncio.create_task(work(node, at, until_round=4 * (at == 3))) for at, node in enumerate(nodes)]
    look = await operator(browser, front, viewport=DESK, color_scheme="light")
    page = await look.open(f"/runs/{run}")
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    await expect(page.locator("canvas").first).to_have_attribute("data-rounds", "8")
    await matches(page, "run", root)
    page = await look.open("/")
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await matches(page, "overview", root)
    assert look.faults == []
    for task in working:
        task.cancel()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name may stand in a picture."""
    with tempfile.TemporaryDirectory(prefix="site-") as made:
        yield Path(made)


async def test_the_console_of_a_site_looks_like_its_picture(browser: Browser, root: Path, folder: Path) -> None:
    home = joined(folder / "mercy")
    past(home)
    policy.save(home, policy.load(home, ["datasets.heart.epsilon=5", 'datasets.heart.units=["record"]']))
    async with console(home) as site:
        look = await window(browser, site.address, viewport=DESK, color_scheme="light")
        await look.page.goto(site.link())
        await expect(look.page.get_by_role("heading", name="mercy")).to_be_visible(timeout=PATIENCE)
        await matches(look.page, "console", root)
        assert look.faults == []


def test_every_picture_is_shown_and_every_picture_shown_is_there(root: Path) -> None:
    taken = {path.name for path in (root / "docs" / "pictures").glob("*.png")}
    text = "".join(path.read_text(encoding="utf-8") for path in (root / "docs").rglob("*.md"))
    assert taken == {"run.png", "overview.png", "console.png"}
    assert {name for name in taken if f"pictures/{name}" not in text} == set()
    assert text.count("pictures/") == len(taken)
