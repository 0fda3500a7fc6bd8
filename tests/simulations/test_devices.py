from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedscale.errors import DataError, PlanError
from fedscale_simulations.devices import Devices, devices_of, read_fleet, table_of

COUNT = 20_000


def test_synthetic_speeds_are_log_normal_around_their_median() -> None:
    fleet = Devices(speed=200, speed_spread=1.5, up=1e5, net_spread=0.5).fleet(COUNT, seed=1)
    logs = np.log(fleet.speed)
    assert np.median(fleet.speed) == pytest.approx(200, rel=0.05)
    assert logs.std() == pytest.approx(1.5, rel=0.05)
    assert np.median(fleet.up) == pytest.approx(1e5, rel=0.05)
    assert np.allclose(fleet.down / fleet.up, 4e6 / 1e5, rtol=1e-4)
    assert len(fleet) == COUNT


def test_the_same_seed_gives_the_same_devices() -> None:
    one, again, other = (Devices(hours=8).fleet(100, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.begins, again.begins)
    assert not np.array_equal(one.speed, other.speed)


def test_devices_are_there_by_night() -> None:
    fleet = Devices(hours=8, night=2).fleet(COUNT, seed=0)
    share = {hour: fleet.there(hour).size / COUNT for hour in (2, 8, 14, 26)}
    assert share[2] > 0.75 > share[8] > 0.1 > share[14]
    assert share[26] == share[2]
    assert np.mean([fleet.there(hour).size for hour in np.arange(0, 24, 0.25)]) / COUNT == pytest.approx(8 / 24, rel=0.1)


def test_devices_that_are_always_there_never_leave() -> None:
    fleet = Devices().fleet(5, seed=0)
    assert fleet.there(13.0).tolist() == [0, 1, 2, 3, 4]
    assert fleet.leave(np.arange(5), 13.0).tolist() == [math.inf] * 5


def test_who_is_there_leaves_when_its_hours_are_over(tmp_path: Path) -> None:
    fleet = written(tmp_path, "speed,up,down,begins,hours,dropout\n1,1,1,22,4,0\n1,1,1,1,3,0.5\n")
    assert fleet.there(23.0).tolist() == [0]
    assert fleet.there(1.5).tolist() == [0, 1]
    assert fleet.leave(np.array([0, 1]), 1.5).tolist() == [1800.0, 9000.0]
    assert fleet.there(26.5).tolist() == [1]


def written(folder: Path, text: str) -> Any:
    (folder / "trace.csv").write_text(text)
    return read_fleet(folder / "trace.csv")


def test_a_trace_is_gone_through_again_and_again(tmp_path: Path) -> None:
    written(tmp_path, "speed,down,up\n1,2,3\n4,5,6\n")
    fleet = Devices(file=str(tmp_path / "trace.csv")).fleet(5, seed=0)
    assert (fleet.speed.tolist(), fleet.up.tolist(), fleet.hours.tolist()) == ([1, 4, 1, 4, 1], [3, 6, 3, 6, 3], [24.0] * 5)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("speed,up\n1,2\n", "no column 'down'", "trace.csv:1"),
        ("", "no column 'speed'", "trace.csv:1"),
        ("speed,up,down\n", "has no line", "trace.csv"),
        ("speed,up,down,droput\n1,1,1,0.5\n", "unknown column 'droput'; did you mean 'dropout'\\?$", "trace.csv:1"),
        ("id,speed,up,down\n7,1,1,1\n", "unknown column 'id'; known: speed, up, down, begins, hours, dropout$", "trace.csv:1"),
        ("speed,up,down,up\n1,1,1,2\n", "the column 'up' twice", "trace.csv:1"),
        ("speed,up,down\n1,1,1\nfast,1,1\n", "column 'speed'", "trace.csv:3"),
        ("speed,up,down\n1,0,1\n", "column 'up'", "trace.csv:2"),
        ("speed,up,down\n1,inf,1\n", "column 'up'", "trace.csv:2"),
        ("speed,up,down,hours\n1,1,1,25\n", "column 'hours'", "trace.csv:2"),
        ("speed,up,down,dropout\n1,1,1,-1\n", "column 'dropout'", "trace.csv:2"),
        ("speed,up,down\n1,1\n", "column 'down'", "trace.csv:2"),
        ("speed,up,down\n1,1MB,1\n", "column 'up' .* give bytes a second, above 0, such as 125000$", "trace.csv:2"),
        ("speed,up,down\n1,1,1\n1,1,1,1\n", "more cells than the first", "trace.csv:3"),
    ],
)
def test_a_trace_with_a_fault_is_named(tmp_path: Path, text: str, what: str, where: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        written(tmp_path, text)
    assert caught.value.where.endswith(where)


def test_a_trace_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); devices\.file lies beside the job file$"):
        Devices(file="nowhere.csv").fleet(2, 0)


def test_devices_come_from_a_table_of_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nname = "a"\n')
    assert table_of(job) is None
    job.write_text('[job]\nname = "a"\n[devices]\nspeed = 5\nfile = "trace.csv"\n')
    assert table_of(job, ["devices.speed=7"]) == Devices(speed=7, file=str(tmp_path / "trace.csv"))


def test_a_fault_in_the_table_has_a_line(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nname = "a"\n[devices]\nspede = 5\n')
    with pytest.raises(PlanError, match=r"'devices.spede' is not a setting.*did you mean 'speed'") as caught:
        table_of(job)
    assert caught.value.where == f"{job}:4"


def test_devices_given_in_python_are_checked_alike() -> None:
    assert devices_of(None) is None
    assert devices_of({"dropout": 0.5}) == devices_of(Devices(dropout=0.5)) == Devices(dropout=0.5)
    with pytest.raises(PlanError, match=r"devices.dropout: input should be less than 1"):
        devices_of({"dropout": 1})
