"""A power cut at every moment of a run, and a disk that refuses every single call: nothing that was accepted is lost or counted twice."""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscale_server import engine
from tests.chaos.errand import Bench
from tests.chaos.platter import SURE, Cut, Platter, refusing
from tests.chaos.ward import NAMES, ONCE, PARTS, ROUNDS, Told, Ward

ERRORS = (errno.EIO, errno.ENOSPC)


def platter_of(folder: Path) -> Platter:
    (folder / "grave").mkdir()
    return Platter(folder / "home", PARTS, folder / "grave")


def soon_after(platter: Platter, ward: Ward) -> Callable[[], bool]:
    """Whether a call has failed and two answers were accepted all the same."""
    before = len(ward.accepted)
    return lambda: platter.failed and len(ward.accepted) > before + 1


async def faults_after(ward: Ward, run: str, told: list[Told]) -> list[Any]:
    """What is wrong with a run that goes on after a crash: it must end as if nothing had been, and ask for nothing that it had accepted."""
    if not await ward.knows(run):
        return [f"{told} were accepted and the run is gone"] if told else []
    await ward.play(run)
    verdict, again = await ward.verdict(run), set(ward.accepted) & set(told)
    return [*([] if verdict == ONCE else [verdict]), *([f"asked again: {again}"] if again else [])]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", SURE)
async def test_a_power_cut_at_any_moment_loses_and_doubles_nothing(how: Cut, tmp_path: Path, sqlite_at_head: Path) -> None:
    ward = await Ward.open(tmp_path / "home", sqlite_at_head)
    platter = platter_of(tmp_path)
    ward.told = platter.tell
    with platter.watched(how):
        run = await ward.submit("only")
        await ward.play(run)
        platter.cut("the end")
    found, faults = list(platter.remains.values()), {}
    assert await ward.verdict(run) == ONCE
    assert {len(remains.told) for remains in found} == set(range(ROUNDS * len(NAMES) + 2))
    for number, remains in enumerate(found):
        again = await Ward.reopen(tmp_path / f"cut-{number}", remains, ward)
        try:
            faults[remains.after] = await faults_after(again, run, list(remains.told))
        finally:
            await again.close()
    await ward.close()
    assert {moment: fault for moment, fault in faults.items() if fault} == {}


@pytest.mark.timeout(1800)
async def test_whichever_call_the_disk_refuses_every_run_goes_on(tmp_path: Path, sqlite_at_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run meets one refusal, each at the call behind the last one's, and is left open soon after; then comes a crash, and all go on."""
    monkeypatch.setattr(engine, "AGAIN_SECONDS", 0.02)
    ward = await Ward.open(tmp_path / "home", sqlite_at_head)
    platter = platter_of(tmp_path)
    runs: list[str] = []
    with platter.watched(), refusing(platter):
        while not runs or platter.failed:
            platter.refuse(len(runs) + 1, ERRORS[len(runs) % 2])
            runs.append(await ward.submit(f"key-{len(runs)}"))
            await ward.play(runs[-1], soon_after(platter, ward))
        platter.hows = (Cut.EVERYTHING,)
        platter.cut("everything")
    again = await Ward.reopen(tmp_path / "again", list(platter.remains.values())[-1], ward)
    faults = {}
    try:
        for number, run in enumerate(runs, 1):
            faults[number] = await faults_after(again, run, [told for told in ward.accepted if told[0] == run])
    finally:
        await again.close()
        await ward.close()
    assert len(runs) > 50
    assert {number: fault for number, fault in faults.items() if fault} == {}


# ------------------------------------------------------------------------------------------ any workload, any write


@pytest.mark.timeout(7200)
def test_whatever_a_power_cut_leaves_of_whichever_run_nothing_is_lost(tmp_path: Path, sqlite_at_head: Path, *, release: bool) -> None:
    """Every write that was not synced is lost, torn or overtaken by a later one, each by chance."""
    cuts, each = (10_000, 100) if release else (240, 30)
    tried, faults = 0, dict[int, list[tuple[str, list[str]]]]()
    with Bench.at(tmp_path, sqlite_at_head) as bench:
        for seed in itertools.count():
            count, faults[seed] = bench.tried(seed, min(each, cuts - tried))
            tried += count
            if tried >= cuts:
                break
    sys.stdout.write(f"{tried} power cuts in {len(faults)} runs: {sum(map(len, faults.values()))} violations\n")
    assert {seed: wrong for seed, wrong in faults.items() if wrong} == {}
