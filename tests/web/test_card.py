"""The model card on the dashboard: a page to be printed and the same as JSON, linked from where models are."""

from __future__ import annotations

from fedscale.identity import Role
from fedscale.report.page import POLICY
from tests.server.running import plan_text
from tests.web.conftest import Front


async def test_the_card_of_a_run_is_linked_printed_and_served_as_json(front: Front) -> None:
    (ada,) = await front.running.nodes("ada")
    run = await front.running.submit(plan_text(rounds=2, every=1, evaluate={"min_cell": 5}))
    ada.work()
    await front.running.over(run)
    guest = await front.person(Role.AUDITOR)
    for path in (f"/runs/{run}", "/models"):
        shown = (await guest.http.get(path)).text
        assert (f'href="/runs/{run}/card"' in shown) == (path == "/models"), "an auditor reads it where models are listed"
    person = await front.person(Role.RESEARCHER)
    assert f'href="/runs/{run}/card"' in (await person.http.get(f"/runs/{run}")).text
    page = await guest.http.get(f"/runs/{run}/card")
    told = (await guest.http.get(f"/api/runs/{run}/card")).json()
    assert (page.status_code, page.headers["content-security-policy"]) == (200, POLICY)
    assert told["model"]["sha256"] == (await front.running.detail(run))[0].model
    assert told["data"]["sites"] == {"ada": {"answered": 4, "failed": 0, "examples": "at least 5"}}
    assert [each["worst_site"] for each in told["metrics"]] == ["ada", ""]
    for words in (told["model"]["sha256"], "to be filled in", "at least 5", "Model card"):
        assert words in page.text


async def test_a_run_without_a_model_has_a_card_that_says_so(front: Front) -> None:
    run = await front.running.submit(plan_text())
    guest = await front.person(Role.AUDITOR)
    assert "no model" in (await guest.http.get(f"/runs/{run}/card")).text
