"""A run that is led from outside, on every page that knows runs: under way, paused and over."""

from __future__ import annotations

from typing import Any

from fedscale.identity import Role
from tests.server.test_courier import Leader, replied
from tests.web.conftest import Front

PAGES = ("/", "/runs", "/runs/{run}", "/runs/{run}/card", "/sites", "/models", "/privacy", "/compare?run={run}&run={run}")
FACTS = ("/api/status", "/api/runs", "/api/runs/{run}", "/api/runs/{run}/record", "/api/runs/{run}/report", "/api/runs/{run}/card")


async def _shown(guest: Any, run: str) -> dict[str, str]:
    """What each page says."""
    texts = {}
    for path in (*PAGES, *FACTS):
        answer = await guest.http.get(path.format(run=run))
        assert answer.status_code == 200, (path, answer.text)
        texts[path] = answer.text
    return texts


async def test_every_page_shows_a_led_run(front: Front) -> None:
    ada, bob = await front.running.nodes("ada", "bob")
    guest, leader = await front.person(Role.COORDINATOR), await Leader.begin(front.running)
    assert leader.run in (await _shown(guest, leader.run))["/runs"]
    for number, phase in enumerate(("query", "train"), 1):
        for node in (ada, bob):
            await leader.ask(node.name, number, phase=phase, round=1)
    for node in (ada, bob):
        await replied(node)
    while (ask := await bob.ask("message")).task.number != 2:
        pass  # the first one, again
    bob.fail(ask.key)
    assert [bool((await leader.next()).cause) for _ in range(3)] == [False, False, True]
    under_way = await _shown(guest, leader.run)
    assert "ValueError in the app" in under_way["/runs/{run}"]
    await leader.conclude(metrics=[("train", 1, {"loss": 0.5})])
    over = await _shown(guest, leader.run)
    assert "completed" in over["/runs/{run}"]
    assert '"loss":0.5' in over["/api/runs/{run}/record"].replace(" ", "")

    none = await guest.http.get(f"/api/runs/{leader.run}/model")
    assert (none.status_code, "has no model" in none.text) == (409, True), "it is in the leader's folder"
