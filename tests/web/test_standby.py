"""The dashboard of a coordinator that stands by: it says so where something would be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedscale.identity import Role
from fedscale_server.store.leases import STANDBY


async def test_nothing_is_changed_where_another_coordinator_leads(start: Callable[..., Any]) -> None:
    front = await start()
    front.account("ada", Role.AUDITOR)
    guest = front.guest()
    front.store.fence(STANDBY)
    answer = await guest.login("ada")
    assert answer.status_code == 503
    assert "this coordinator stands by" in answer.text
    assert "open the dashboard of the coordinator that leads" in answer.text
