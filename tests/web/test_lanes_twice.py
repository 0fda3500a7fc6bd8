"""The page and the terminal draw lanes from the same events: by the same rules, written once in Python and once in JavaScript."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from playwright.async_api import Browser, Route

from fedscale.lanes import MOST_MARKS, STAGES
from fedscale_server.answers import Event
from fedscale_server.view import View
from fedscale_server.web.pages import STATIC
from tests.web.windows import browser, window

pytestmark = pytest.mark.requires("chromium")
__all__ = ["browser"]
PAGE = "http://lanes.invalid"
SITES = ("ada", "ben", "cyd")
KINDS = ("stage", "answered", "failed", "lost", "returned", "spoke", "accepted", "progress", "pause")
# Lanes after each event, as the page's own script keeps them.
SCRIPT = """async (events) => {
  const { Timeline } = await import("/static/timeline.js");
  const timeline = new Timeline(...["canvas", "p", "ul"].map((name) => document.body.appendChild(document.createElement(name))));
  return events.map((event) => { timeline.take(event); return structuredClone(Object.fromEntries(timeline.rounds.at(-1)?.lanes ?? [])); });
}"""


def events(seed: int, count: int) -> list[Event]:
    """Rounds in which anything happens to anybody, also to a site that nobody asked, and on a clock that is set back now and then."""
    rng, at, made = random.Random(seed), 1000.0, list[Event]()
    for number in range(1, 4):
        made.append(Event(len(made) + 1, at, "opened", "", "train", number, {"cohort": list(SITES)}))
        for _ in range(count):
            at += rng.choice((0.001, 0.5, 2.0, -1.0))
            kind, node = rng.choices(KINDS, (12, 1, 0.2, 2, 2, 3, 1, 1, 1))[0], rng.choice((*SITES, "eve"))
            detail: dict[str, Any] = {"fraction": 0.5, "what": "", "cause": "code"}
            if kind == "stage":
                detail = {"stage": rng.choice(list(STAGES)[:-1]), "again": rng.random() < 0.3}
            made.append(Event(len(made) + 1, at, kind, node, "train", number, detail))
        if number == 2:  # somebody who comes later is told all at once
            lanes = {"ada": [["wait", 0.0], ["train", 1.5]], "ben": [["wait", 0.0]]}
            made.append(Event(0, made[-count - 1].at, "lanes", "", "train", number, {"lanes": lanes}))
            made.append(Event(0, at + 9, "stage", "ben", "train", number, {"stage": "unmask", "again": False}))
            made.append(Event(len(made) + 1, at + 10, "spoke", "ben", "train", number, {"step": "opening"}))
    return made


def by_python(told: Sequence[Event]) -> list[dict[str, Any]]:
    """Lanes after each event, as the terminal keeps them."""
    view, found = View(3), []
    for event in told:
        view.take(event)
        found.append({site: [list(mark) for mark in lane] for site, lane in view.lanes.marks.items()})
    return found


def stages(lanes: dict[str, Any]) -> dict[str, list[str]]:
    """Lanes without their times."""
    return {site: [stage for stage, _ in lane] for site, lane in lanes.items()}


async def by_javascript(browser: Browser, told: Sequence[Event]) -> list[dict[str, Any]]:
    """The same, as the page keeps them."""

    async def serve(route: Route) -> None:
        path = STATIC.get(route.request.url.rpartition("/")[2])
        given: dict[str, Any] = {"path": path} if path else {"body": "<!doctype html><body></body>", "content_type": "text/html"}
        await route.fulfill(**given)

    look = await window(browser, PAGE)
    await look.page.route(f"{PAGE}/**", serve)
    await look.open("/")
    plain = [{"kind": e.kind, "node": e.node, "phase": e.phase, "number": e.number, "at": e.at, "detail": e.detail} for e in told]
    lanes: list[dict[str, Any]] = await look.page.evaluate(SCRIPT, json.loads(json.dumps(plain)))
    assert look.faults == []
    return lanes


async def test_the_same_events_give_the_same_lanes(browser: Browser) -> None:
    told = [event for seed in range(8) for event in events(seed, 40)] + events(99, 600)
    expected, found = by_python(told), await by_javascript(browser, told)
    for event, ours, theirs in zip(told, expected, found, strict=True):
        assert stages(theirs) == stages(ours), event
        for site, lane in ours.items():
            assert [at for _, at in theirs[site]] == pytest.approx([at for _, at in lane], abs=1e-3), event
    assert {stage for lanes in expected for lane in lanes.values() for stage, _ in lane} == set(STAGES), "every stage was met"
    assert max(len(lane) for lanes in expected for lane in lanes.values()) >= MOST_MARKS, "and so was the end of a lane"
