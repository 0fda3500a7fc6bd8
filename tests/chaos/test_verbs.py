"""Faults against real processes, as a user inflicts them; small versions of what a release is put through."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from fedscale_simulations.cast import Cast
from fedscale_simulations.chaos.campaign import Campaign, Trouble
from fedscale_simulations.chaos.disk import Disk
from fedscale_simulations.chaos.jump import Jump
from fedscale_simulations.chaos.kill import Who
from fedscale_simulations.chaos.network import Break, storm
from fedscale_simulations.chaos.oracle import Job
from fedscale_simulations.chaos.pause import Pause
from fedscale_simulations.chaos.troupe import SERVER, Troupe
from tests.command import fedscale

SMALL = ("--nodes", 3, "--rounds", 6, "--json")
NOTHING = {"lost": 0, "doubled": 0, "stray": 0, "gaps": 0, "identical": True, "unfinished": 0}


def sound(*words: object) -> dict[str, Any]:
    """The data of a verb that has found nothing."""
    done = fedscale("chaos", *words, *SMALL)
    assert done.code == 0, done.out + done.err
    data: dict[str, Any] = done.data
    assert {name: data[name] for name in NOTHING} == NOTHING
    assert data["rounds"] == 6 * data["runs"] > 0
    return data


@pytest.mark.timeout(600)
def test_killed_at_random_moments() -> None:
    data = sound("kill", "--kills", 10, "--seed", 4)
    assert (data["kills"], sum(data["kinds"].values()), data["seed"]) == (10, 10, 4)
    assert set(data["kinds"]) == {"server", "node", "server and node"}
    assert 0 < data["restart_seconds"]["p50"] <= data["restart_seconds"]["p99"]


@pytest.mark.timeout(600)
def test_clocks_that_jump_by_hours() -> None:
    data = sound("clock", "--faults", 8, "--seed", 2)
    assert (data["faults"], sum(data["kinds"].values())) == (8, 8)
    assert len(data["kinds"]) >= 2


def test_a_clock_that_was_set_is_the_one_that_the_process_goes_by(tmp_path: Path) -> None:
    with Cast(tell=lambda _: None) as cast:
        troupe = Troupe(cast, tmp_path, Job(("ada",), 1), clocks=True)
        troupe.open()
        begun = []
        for number, hours in enumerate((5, -5)):
            Jump(Who.SERVER, 0.0).inflict(troupe, random.Random(number))
            assert troupe.clock(SERVER).read_text() in {"0.0", "-0.0"}
            troupe.clock(SERVER).write_text(repr(3600.0 * hours))
            begun.append((troupe.submit(f"{hours}"), hours))
        created = {run["run"]: run["created"] for run in troupe.insist("run", "list")}
    for run, hours in begun:
        assert created[run] - time.time() == pytest.approx(3600 * hours, abs=600)


class Mixed:
    """Every other kind of fault, one after the other."""

    def __init__(self, *troubles: Trouble) -> None:
        self._turns = itertools.cycle(troubles)

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        return next(self._turns).inflict(troupe, chance)


@pytest.mark.timeout(600)
def test_frozen_cut_off_and_out_of_room(tmp_path: Path) -> None:
    with Cast(tell=lambda _: None) as cast:
        troupe = Troupe(cast, tmp_path, Job(("ada", "ben", "cyd"), 6))
        troupe.open()
        with storm(troupe, (Break.FLIP, Break.RESET, Break.PARTITION), 1.0) as network:
            trouble = Mixed(network, Pause(Who.BOTH, 1.0), Disk(Who.SERVER, longest=0.5))
            tally = Campaign(troupe, trouble, 6, random.Random(5)).play()
    assert tally.sound, tally
    assert (tally.faults, sum(tally.kinds.values()), tally.rounds) == (6, 6, 6 * tally.runs)
    assert len(tally.kinds) >= 3


@pytest.mark.timeout(600)
def test_what_was_found_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A reference that no run comes to stands for a fault in all of them.
    monkeypatch.setattr("fedscale_simulations.chaos.campaign.uninterrupted", lambda troupe: "0" * 64)
    done = fedscale("chaos", "kill", "--kills", 1, "--who", "node", "--out", tmp_path / "kept", *SMALL)
    assert (done.code, done.error["type"], done.error["what"]) == (1, "RunFailed", "chaos kill has found a fault")
    assert done.error["where"] == str(tmp_path / "kept")
    data = json.loads(done.out)["data"]
    assert {name: data[name] for name in NOTHING} == {**NOTHING, "identical": False}
    assert {path.name for path in (tmp_path / "kept").iterdir()} >= {"coordinator", "sites", "logs", "job"}
