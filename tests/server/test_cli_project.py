"""``fedscale project`` and ``server status`` against a coordinator with canned answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedscale import cli
from fedscale.errors import AccessDenied, Conflict, NotFound
from fedscale.proto.v1 import control_pb2 as pb
from tests.command import Done, Terminal, caught, fedscale
from tests.server.fake_coordinator import Coordinator, serving

HEART = pb.Project(name="heart", nodes=2, runs=1)
NORTH = pb.NodeInfo(name="north", project="heart", connected=True, datasets=["default"], last_seen=1.7e9, version="0.1.0")
SOUTH = pb.NodeInfo(name="south", project="heart")
WEST = pb.NodeInfo(name="west", project="heart", revoked=True)
RUN = pb.RunInfo(run="risk-1", project="heart", name="risk", status="running", phase="train", number=3, rounds=8)


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    fake = Coordinator(
        answers={
            "ListProjects": pb.ListProjectsReply(projects=[HEART]),
            "ListNodes": pb.ListNodesReply(nodes=[NORTH, SOUTH, WEST]),
            "CreateProject": pb.Project(name="lung"),
            "Invite": pb.InviteReply(ticket="fs1.abc", expires_at=1.8e9),
            "Revoke": pb.RevokeReply(),
            "Status": pb.StatusReply(version="0.1.0", federation="testers", address="a:1", enrolment="a:2", nodes=[NORTH], runs=[RUN]),
        }
    )
    with serving(fake, tmp_path) as folder:
        monkeypatch.setenv("FEDSCALE_PROFILE", str(folder))
        yield fake


def asked(coordinator: Coordinator) -> list[str]:
    return [method for method, _ in coordinator.asked]


def row(done: Done, first: str) -> list[str]:
    return next(line.split() for line in done.out.splitlines() if line.split()[:1] == [first])


def test_create(coordinator: Coordinator) -> None:
    done = fedscale("project", "create", "lung")
    assert (done.code, done.out) == (0, "made project lung\n")
    assert "fedscale project invite lung" in done.err
    assert coordinator.last("CreateProject").name == "lung"
    assert fedscale("project", "create", "lung", "--json").data == {"name": "lung", "nodes": 0, "runs": 0}


def test_create_dry_run(coordinator: Coordinator) -> None:
    assert fedscale("project", "create", "lung", "--dry-run").out == "would make project lung\n"
    assert fedscale("project", "create", "heart", "--dry-run").code == 6
    assert set(asked(coordinator)) == {"ListProjects"}


def test_create_refused(coordinator: Coordinator) -> None:
    coordinator.answers["CreateProject"] = Conflict("project 'lung' exists already", hint="choose another name")
    done = fedscale("project", "create", "lung")
    assert (done.code, done.err) == (6, "error: project 'lung' exists already\n  next  choose another name\n")


def test_list(coordinator: Coordinator) -> None:
    assert row(fedscale("project", "list"), "heart") == ["heart", "2", "1"]
    assert fedscale("project", "list", "--json").data == [{"name": "heart", "nodes": 2, "runs": 1}]
    coordinator.answers["ListProjects"] = pb.ListProjectsReply()
    assert "fedscale project create" in fedscale("project", "list").out


def test_invite_prints_the_ticket_and_nothing_else(coordinator: Coordinator) -> None:
    done = fedscale("project", "invite", "heart", "--name", "east", "--days", "2")
    assert (done.code, done.out) == (0, "fs1.abc\n")
    assert "fedscale node join" in done.err
    assert "fs1.abc" not in done.err
    assert coordinator.last("Invite") == pb.InviteRequest(project="heart", name="east", ttl_seconds=2 * 86_400.0, role="node")


def test_a_ticket_is_one_word_on_the_narrowest_terminal(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    coordinator.answers["Invite"] = pb.InviteReply(ticket="fs1." + "x" * 200, expires_at=1.8e9)
    with caught(Terminal(), Terminal()) as (out, _):
        assert cli.main(["project", "invite", "heart"]) == 0
    assert out.getvalue() == "fs1." + "x" * 200 + "\n"


def test_times_are_told_in_utc(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is given a ticket may sit in another zone than whoever made it."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert "until 2027-01-15 08:00:00 UTC;" in fedscale("project", "invite", "heart").err
        assert "2023-11-14 22:13:20 UTC" in fedscale("project", "nodes").out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_invite_as_data(coordinator: Coordinator) -> None:
    data = fedscale("project", "invite", "heart", "--role", "auditor", "--json").data
    assert data == {"ticket": "fs1.abc", "expires_at": 1.8e9, "project": "heart", "name": "", "role": "auditor"}


def test_invite_dry_run_makes_no_ticket(coordinator: Coordinator) -> None:
    assert "a site that chooses its name" in fedscale("project", "invite", "heart", "--dry-run").out
    error = fedscale("project", "invite", "hart", "--dry-run", "--json").error
    assert (error["type"], error["hint"]) == ("NotFound", "did you mean 'heart'?")
    assert set(asked(coordinator)) == {"ListProjects"}


@pytest.mark.parametrize("words", [["--role", "king"], ["--days", "0"], ["--days", "31"]])
def test_invite_misused(coordinator: Coordinator, words: list[str]) -> None:
    assert fedscale("project", "invite", "heart", *words).code == 2
    assert asked(coordinator) == []


def test_nodes(coordinator: Coordinator) -> None:
    done = fedscale("project", "nodes", "heart")
    assert row(done, "north")[:4] == ["north", "heart", "connected", "default"]
    assert row(done, "south")[2:5] == ["away", "none", "never"]
    assert row(done, "west")[2] == "revoked"
    assert [site["name"] for site in fedscale("project", "nodes", "--json").data] == ["north", "south", "west"]
    assert coordinator.last("ListNodes").project == ""
    coordinator.answers["ListNodes"] = pb.ListNodesReply()
    assert "fedscale project invite" in fedscale("project", "nodes").out


def test_revoke(coordinator: Coordinator) -> None:
    assert fedscale("project", "revoke", "north").out == "north is shut out\n"
    assert coordinator.last("Revoke").name == "north"
    coordinator.answers["Revoke"] = NotFound("no member 'east'")
    assert fedscale("project", "revoke", "east").code == 6


def test_revoke_dry_run(coordinator: Coordinator) -> None:
    assert fedscale("project", "revoke", "north", "--dry-run").out == "would shut out north\n"
    assert fedscale("project", "revoke", "nort", "--dry-run", "--json").error["hint"] == "did you mean 'north'?"
    assert fedscale("project", "revoke", "west", "--dry-run").code == 6
    assert "Revoke" not in asked(coordinator)


def test_server_status(coordinator: Coordinator) -> None:
    done = fedscale("server", "status")
    assert row(done, "coordinator") == ["coordinator", "a:1"]
    assert row(done, "north")[2] == "connected"
    assert row(done, "risk-1") == ["risk-1", "heart", "running", "train", "3/8"]
    data = fedscale("server", "status", "--json").data
    assert (data["federation"], data["nodes"][0]["datasets"], data["runs"][0]["number"]) == ("testers", ["default"], 3)


def test_server_status_of_an_empty_coordinator_names_the_next_step(coordinator: Coordinator) -> None:
    coordinator.answers["Status"] = pb.StatusReply(version="0.1.0", federation="testers", address="a:1", enrolment="a:2")
    assert "fedscale project invite" in fedscale("server", "status").out


def test_whoever_may_not_is_told_so(coordinator: Coordinator) -> None:
    coordinator.answers["Status"] = AccessDenied("role 'auditor' may not call Status")
    done = fedscale("server", "status", "--json")
    assert (done.code, done.error["type"]) == (4, "AccessDenied")


def test_without_a_profile_the_next_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDSCALE_PROFILE", raising=False)
    done = fedscale("project", "list")
    assert done.code == 2
    assert "--profile" in done.err
    assert fedscale("project", "list", "--profile", tmp_path / "none").code == 2
