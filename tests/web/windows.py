"""Windows of a real Chromium that note what they should not have done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Playwright, async_playwright, expect

PATIENCE = 60_000
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 390, "height": 800}
AUDIT = Path(__file__).with_name("audit.js").read_text()
# Whatever is waited for may take its time on a busy machine; five seconds, the library's own, are soon over.
expect.set_options(timeout=PATIENCE)


@dataclass
class Look:
    """A browser window and everything it should not have done."""

    page: Page
    address: str
    faults: list[str] = field(default_factory=list)

    async def open(self, path: str) -> Page:
        await self.page.goto(self.address + path)
        return self.page


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    playwright: Playwright
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS, timeout=PATIENCE)
        yield chromium
        await chromium.close()


async def window(browser: Browser, address: str, **options: Any) -> Look:
    """A window that notes requests to elsewhere, errors of scripts and what the policy refused."""
    context: BrowserContext = await browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = await context.new_page()
    look = Look(page, address)
    page.on("request", lambda request: None if request.url.startswith(address) else look.faults.append(f"request to {request.url}"))
    page.on("pageerror", lambda error: look.faults.append(f"error {error}"))
    page.on("console", lambda message: look.faults.append(message.text) if message.type in ("error", "warning") else None)
    return look
