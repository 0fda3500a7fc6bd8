"""The timeline of a run in a real Chromium: what each site does, drop-outs and retries, by pointer, by keyboard and as a table."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from playwright.async_api import Browser, Locator, expect

from fedscale.identity import Role
from fedscale.proto.v1 import node_pb2
from fedscale.record import RunRecord
from fedscale.report import html
from fedscale.wire.codec import frames
from fedscale.wire.convert import key_to_proto
from tests.server.running import Ask, Counting, Node, plan_text, until
from tests.web.conftest import Front
from tests.web.test_browser import operator
from tests.web.windows import AUDIT, PATIENCE, PHONE, Look, browser, window

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser"]
DESK = {"width": 1280, "height": 900}
SPELL = 0.12
REPORT = "http://report.invalid"


class Site:
    """A node that takes its time for each stage and says what it does."""

    def __init__(self, node: Node, pace: float) -> None:
        self.node, self.pace, self.learner = node, pace, Counting()

    def say(self, ask: Ask, stage: str) -> None:
        self.node.say(node_pb2.NodeMessage(progress=node_pb2.Progress(key=key_to_proto(ask.key), stage=stage)))

    async def spell(self, times: float = 1.0) -> None:
        await asyncio.sleep(SPELL * self.pace * times)

    async def prepare(self) -> tuple[Ask, bytes, str]:
        """Everything before the upload: model fetched, trained, masked."""
        ask = await self.node.ask()
        await self.spell()
        body, schema = await self.node.compute(ask, self.learner)
        await self.spell()
        for stage, times in ((str(ask.task.phase), 3.0), ("mask", 1.0)):
            self.say(ask, stage)
            await self.spell(times)
        return ask, body, schema

    async def answer(self) -> None:
        ask, body, schema = await self.prepare()
        await self.node.submit(ask.key, body, schema=schema)

    async def answer_at_the_second_attempt(self) -> None:
        """The first upload breaks off in the middle."""
        ask, body, schema = await self.prepare()
        digest, size = None, str(len(body))

        async def breaking():  # type: ignore[no-untyped-def]
            yield next(iter(frames(body[: len(body) // 2])))
            await self.spell(2)
            raise ConnectionError

        with pytest.raises((ConnectionError, grpc.aio.AioRpcError, asyncio.CancelledError)):
            await self.node.submit(ask.key, body, digest=digest, size=size, parts=breaking())
        await self.spell()
        await self.node.submit(ask.key, body, schema=schema)

    async def fail(self) -> None:
        ask, _, _ = await self.prepare()
        self.node.fail(ask.key)

    async def vanish(self) -> None:
        await self.prepare()
        await self.node.leave()

    async def always(self) -> None:
        while True:
            await self.answer()


async def trained(front: Front) -> str:
    """A run of three rounds with everything that can be seen; its id."""
    aachen, bergen, cork, delft = await front.running.nodes("aachen", "bergen", "cork", "delft")
    sites = [Site(node, 1 + at / 3) for at, node in enumerate((aachen, bergen, cork, delft))]
    plan = plan_text(rounds=3, every=1, clients={"min_per_round": 2, "wait_for": 4, "rejoin": 1})
    run = await front.running.submit(plan)
    first = await until(lambda: next((site for site in sites if site.node.asks), None))
    ask = await first.node.ask("init")
    await first.node.initialize(ask)
    steady = [asyncio.create_task(sites[0].always())]
    await asyncio.gather(sites[1].answer_at_the_second_attempt(), sites[2].fail(), sites[3].answer())
    steady += [asyncio.create_task(site.always()) for site in sites[1:3]]
    await sites[3].vanish()
    await front.running.over(run)
    for task in steady:
        task.cancel()
    return run


async def drawn(look: Look, run: str) -> Locator:
    """The timeline of a run's page once it shows as much as the record holds: a page is told of one round after the other."""
    page = await look.open(f"/runs/{run}")
    record = await (await page.request.get(f"{look.address}/api/runs/{run}/record")).json()
    parts = sum(len(lane) for phase in record["rounds"] for lane in phase["lanes"].values())
    await expect(page.locator("#timeline")).to_have_attribute("data-parts", str(parts))
    return page.locator("#timeline")


async def test_every_stage_is_drawn_and_told(browser: Browser, front: Front, tmp_path: Path) -> None:
    run = await trained(front)
    for colour, size in (("light", DESK), ("dark", PHONE), ("dark", DESK), ("light", PHONE)):
        look = await operator(browser, front, viewport=size, color_scheme=colour)
        canvas, page = await drawn(look, run), look.page
        await expect(canvas).to_have_attribute("data-lanes", "4")
        stages = set(str(await canvas.get_attribute("data-stages")).split())
        assert stages == {"wait", "download", "train", "evaluate", "mask", "upload", "away", "failed"}
        assert int(await canvas.get_attribute("data-again") or 0) >= 1, "the second upload is drawn"
        await page.locator("#spent summary").click()
        await expect(page.locator("#spent tbody tr")).to_have_count(4)
        assert await page.evaluate(AUDIT) == []
        await page.locator("figure.wide").screenshot(path=tmp_path / f"{colour}-{size['width']}.png")
        assert look.faults == []
    guest = await front.person(Role.AUDITOR)
    record = RunRecord.from_json((await guest.http.get(f"/api/runs/{run}/record")).text)
    look = await window(browser, REPORT, viewport=DESK)
    await look.page.set_content(html(record))
    await look.page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert look.faults == []


async def test_a_lane_is_read_part_by_part_by_keyboard(browser: Browser, front: Front) -> None:
    run = await trained(front)
    look = await operator(browser, front, viewport=DESK)
    canvas, page = await drawn(look, run), look.page
    readout = page.locator("#timeline-readout")
    await expect(canvas).to_have_attribute("data-lanes", "4")
    await canvas.focus()
    heard = []
    for key in ("ArrowDown", *["ArrowLeft"] * 14):
        await page.keyboard.press(key)
        heard.append(str(await readout.inner_text()))
    assert all(text.startswith("bergen: ") for text in heard), heard
    told = " | ".join(heard)
    for words in ("waited, evaluate 3", "uploaded, evaluate 3", "masked, train 3", "trained, train 3", "downloaded, train 3"):
        assert words in told, told


async def test_whoever_comes_in_the_middle_of_a_round_sees_what_was_before(browser: Browser, front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run, (ask,) = await front.running.begun(ada)
    site = Site(ada, 1.0)
    await ada.fetch(ask.task.model)
    site.say(ask, "train")
    guest = await front.person(Role.AUDITOR)
    look = await operator(browser, front, viewport=DESK)
    page = await look.open(f"/runs/{run}")
    canvas = page.locator("#timeline")
    await expect(canvas).to_have_attribute("data-stages", "wait download train")
    site.say(ask, "mask")
    await expect(canvas).to_have_attribute("data-stages", "wait download train mask")
    site.say(ask, "upload")
    await ada.answer(ask)
    await expect(page.locator("#region-state")).to_contain_text("completed", timeout=PATIENCE)
    await expect(canvas).to_have_attribute("data-stages", "wait download train mask upload")
    record = (await guest.http.get(f"/api/runs/{run}/record")).json()
    assert [stage for stage, _ in record["rounds"][0]["lanes"]["ada"]] == ["wait", "download", "train", "mask", "upload", "wait"]
    assert look.faults == []
