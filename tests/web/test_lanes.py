"""Lanes as real nodes fill them, under masks, and what is left of them in the record."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fedscale.identity import Role
from fedscale.record import RunRecord
from tests.web.conftest import Front
from tests.web.test_failure_tour import APP, Tour, stamps, tour

__all__ = ["stamps", "tour"]
NAMES = ("aachen", "bergen", "cork")


async def test_real_sites_under_masks_show_every_stage(front: Front, tour: Tour, tmp_path: Path) -> None:
    await asyncio.gather(*(tour.site(name, "ward") for name in NAMES))
    run = await tour.run("ward", APP, sites=3, every=1, clients={"min_per_round": 3}, secagg={"enabled": True})
    await front.running.over(run)
    guest = await front.person(Role.AUDITOR)
    record = RunRecord.from_json((await guest.http.get(f"/api/runs/{run}/record")).text)
    lanes = {row.phase: row.lanes for row in record.rounds}
    for phase in ("train", "evaluate"):
        assert set(lanes[phase]) == set(NAMES)
        for lane in lanes[phase].values():
            stages = [stage for stage, _ in lane]
            for before, after in (("wait", phase), (phase, "mask"), ("mask", "upload"), ("upload", "unmask")):
                assert stages.index(before) < stages.index(after), stages
    shown = (await guest.http.get(f"/runs/{run}")).text
    table = shown.partition('id="region-spent"')[2].partition("</table>")[0]
    for name in (*NAMES, "unmasks", "masks", "uploads"):
        assert name in table
