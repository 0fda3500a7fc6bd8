"""The client of the Control service against a coordinator with canned answers on the real wire."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedscale import errors, identity
from fedscale.errors import AccessDenied, BundleError, ConfigError, Conflict, FedscaleError, NotFound, PlanError, ProtocolError, Unreachable
from fedscale.proto.v1 import bulk_pb2
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale.wire.faults import ERROR_KEY, unpacked
from fedscale_server import parcels
from fedscale_server.answers import Detail, Event, Invitation, Project, RunInfo, Site, Status
from fedscale_server.control import Control
from fedscale_server.profile import Profile
from fedscale_server.services import guard
from tests.server.fake_coordinator import Coordinator, serving, write_profile

RUN = pb.RunInfo(run="r1", project="heart", name="risk", status="running", phase="train", number=3, rounds=8, created=5.0)
NODE = pb.NodeInfo(name="north", project="heart", connected=True, datasets=["default", "old"], last_seen=7.0, version="0.1.0")


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(answers={"GetRun": DONE})


@pytest.fixture
def profile(coordinator: Coordinator, tmp_path: Path) -> Iterator[Profile]:
    with serving(coordinator, tmp_path) as folder:
        yield Profile.load(folder)


@pytest.fixture
def control(profile: Profile) -> Iterator[Control]:
    with Control(profile) as opened:
        yield opened


@pytest.mark.parametrize(
    ("settings", "nearby"),
    [
        ('host = "0.0.0.0"', "127.0.0.1:8470"),
        ('host = "::"', "[::1]:8470"),
        ('host = "10.0.0.5"', "10.0.0.5:8470"),
        ("", "127.0.0.1:8470"),
        ("no toml", ""),
        (None, ""),
    ],
)
def test_a_coordinator_is_dialled_within_its_machine_as_long_as_the_profile_lies_there(tmp_path: Path, settings: str | None, nearby: str) -> None:
    folder = write_profile(tmp_path / "admin", identity.new_authority("testers", datetime.now(UTC)), "hub.example.org:8470")
    if settings is not None:
        (tmp_path / "server.toml").write_text(settings)
    assert Profile.load(folder).nearby == nearby


@pytest.mark.parametrize(("host", "error"), [("hub.example.org", None), ("elsewhere.example.org", "its certificate is for another host")])
def test_what_is_dialled_nearby_proves_the_name_it_is_known_by(profile: Profile, coordinator: Coordinator, host: str, error: str | None) -> None:
    coordinator.answers["Status"] = pb.StatusReply(address="there")
    known = replace(profile, address=f"{host}:{profile.address.rpartition(':')[2]}", nearby=profile.address)
    with Control(known) as control:
        if error is None:
            assert control.status().address == "there"
        else:
            assert refused(control).why == error


def test_a_name_that_nobody_knows_is_told(profile: Profile) -> None:
    with Control(replace(profile, address="nowhere.invalid:1")) as control:
        problem = refused(control)
    assert (problem.why, problem.hint) == ("the host name is not known on this machine", "correct the name, or let this machine know it")


DONE = pb.RunDetail(info=pb.RunInfo(run="r1", status="completed"))


def event(sequence: int, kind: str = "progress", **values: Any) -> pb.RunEvent:
    return pb.RunEvent(sequence=sequence, at=100.0 + sequence, kind=kind, **values)


def refused(control: Control) -> FedscaleError:
    with pytest.raises(FedscaleError) as caught:
        control.status()
    return caught.value


def test_a_profile_is_read_and_hides_its_key(tmp_path: Path) -> None:
    folder = write_profile(tmp_path / "admin", identity.new_authority("testers", datetime.now(UTC)), "example.org:8470")
    profile = Profile.load(folder)
    assert profile.address == "example.org:8470"
    assert b"PRIVATE KEY" in profile.key
    assert "PRIVATE" not in repr(profile)


def test_a_profile_is_looked_for_here_and_then_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = identity.new_authority("testers", datetime.now(UTC))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_profile(tmp_path / "home/.fedscale/admin", authority, "home:1")
    assert Profile.load().address == "home:1"
    write_profile(tmp_path / "fedscale-server/admin", authority, "here:1")
    assert Profile.load().address == "here:1"


def test_a_profile_may_know_several_coordinators(profile: Profile) -> None:
    (profile.folder / "address").write_text("127.0.0.1:9\n" + (profile.folder / "address").read_text())
    known = Profile.load(profile.folder)
    assert (known.address, known.others) == ("127.0.0.1:9", (profile.address,))
    with Control(known) as control:
        assert control.run("r1").info.status == "completed"
        assert control.addresses == (profile.address, "127.0.0.1:9")


def test_a_federation_that_nobody_leads_is_not_waited_for_without_end(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale_server.control.ELECTION", 0.5)
    with Control(replace(profile, address="127.0.0.1:9", others=("127.0.0.1:19",))) as control, pytest.raises(Unreachable, match="cannot be reached"):
        control.status()


@pytest.mark.parametrize("missing", ["key.pem", "cert.pem", "ca.pem", "address"])
def test_an_incomplete_profile_is_refused(tmp_path: Path, missing: str) -> None:
    folder = write_profile(tmp_path / "admin", identity.new_authority("testers", datetime.now(UTC)), "x:1")
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match="no profile") as caught:
        Profile.load(folder)
    assert caught.value.where == str(folder / missing)
    assert "fedscale server init" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Site, pb.NodeInfo),
        (Project, pb.Project),
        (RunInfo, pb.RunInfo),
        (Detail, pb.RunDetail),
        (Status, pb.StatusReply),
        (Invitation, pb.InviteReply),
        (Event, pb.RunEvent),
    ],
)
def test_a_value_has_every_field_of_its_message(value: type, message: Any) -> None:
    assert [field.name for field in fields(value)] == [field.name for field in message.DESCRIPTOR.fields]


def test_every_call_of_the_service_has_its_method() -> None:
    called = {"Status": "status", "ListNodes": "nodes", "ListRuns": "runs", "ListProjects": "projects", "GetRun": "run", "SubmitRun": "submit"}
    called |= {"SteerRun": "steer", "WatchRun": "watch", "CreateProject": "create_project", "Invite": "invite", "Revoke": "revoke"}
    called |= {"Post": "post", "Collect": "collect", "Conclude": "conclude"}
    assert {method.name for method in pb.DESCRIPTOR.services_by_name["Control"].methods} == set(called)
    assert [name for name in called.values() if not callable(getattr(Control, name, None))] == []


@pytest.mark.parametrize("error", [NotFound("no run 'x'", hint="did you mean 'y'?"), PlanError("no", where="plan:3", why="é"), ConfigError("")])
async def test_what_the_servers_guard_sends_is_what_arrives(error: FedscaleError) -> None:
    class Context:
        sent: Any = None

        async def abort(self, code: grpc.StatusCode, details: str, metadata: Any) -> None:
            self.sent = dict(metadata)

    context: Any = Context()
    await guard.abort(context, error)
    arrived = unpacked(context.sent[ERROR_KEY])
    assert arrived is not None
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


def test_status_becomes_plain_values(coordinator: Coordinator, control: Control) -> None:
    reply = pb.StatusReply(version="0.1.0", federation="testers", address="a:1", enrolment="a:2", nodes=[NODE], runs=[RUN])
    coordinator.answers["Status"] = reply
    status = control.status()
    assert (status.version, status.federation, status.address, status.enrolment) == ("0.1.0", "testers", "a:1", "a:2")
    assert status.nodes == (Site("north", "heart", True, ("default", "old"), 7.0, "0.1.0", False),)
    assert status.runs == (RunInfo("r1", "heart", "risk", "running", "", "train", 3, 8, 5.0, 0.0),)


def test_projects_and_invitations(coordinator: Coordinator, control: Control) -> None:
    coordinator.answers |= {
        "CreateProject": pb.Project(name="heart"),
        "ListProjects": pb.ListProjectsReply(projects=[pb.Project(name="heart", nodes=2, runs=1)]),
        "Invite": pb.InviteReply(ticket="fs1.x", expires_at=9.0),
        "ListNodes": pb.ListNodesReply(nodes=[NODE]),
        "Revoke": pb.RevokeReply(),
    }
    assert control.create_project("heart") == Project("heart", 0, 0)
    assert control.projects() == [Project("heart", 2, 1)]
    assert control.invite("heart", "north", 60.0, "node") == Invitation("fs1.x", 9.0)
    assert coordinator.last("Invite") == pb.InviteRequest(project="heart", name="north", ttl_seconds=60.0, role="node")
    assert [site.name for site in control.nodes("heart")] == ["north"]
    control.revoke("north")
    assert coordinator.last("Revoke").name == "north"


def test_runs_are_submitted_read_and_steered(coordinator: Coordinator, control: Control) -> None:
    coordinator.answers |= {
        "SubmitRun": RUN,
        "ListRuns": pb.ListRunsReply(runs=[RUN]),
        "GetRun": pb.RunDetail(info=RUN, record="{}", model="m", schema="s"),
        "SteerRun": RUN,
    }
    assert control.submit("heart", "[job]", "b", "k").run == "r1"
    assert coordinator.last("SubmitRun") == pb.SubmitRunRequest(project="heart", plan="[job]", bundle="b", key="k")
    assert [info.number for info in control.runs("heart")] == [3]
    detail = control.run("r1")
    assert (detail.info.name, detail.record, detail.model, detail.schema) == ("risk", "{}", "m", "s")
    control.steer("r1", "stop", "enough")
    assert coordinator.last("SteerRun") == pb.SteerRunRequest(run="r1", action="stop", reason="enough")


@pytest.mark.parametrize("run", ["", "..", "../else", "/etc/else", "a/b", "-r1", "r1\n"])
def test_a_run_that_would_lead_out_of_its_folder_is_none(coordinator: Coordinator, control: Control, run: str) -> None:
    coordinator.answers["GetRun"] = pb.RunDetail(info=pb.RunInfo(run=run))
    with pytest.raises(ProtocolError, match="id is no name"):
        control.run("r1")


ERRORS = [
    getattr(errors, name) for name in dir(errors) if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), FedscaleError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_arrives_as_it_was_raised(coordinator: Coordinator, control: Control, kind: type[FedscaleError]) -> None:
    coordinator.answers["Status"] = kind("it broke", where="run r1", why="because", hint="mend it")
    error = refused(control)
    assert type(error) is kind
    assert (error.what, error.where, error.why, error.hint) == ("it broke", "run r1", "because", "mend it")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, AccessDenied),
        (grpc.StatusCode.UNAUTHENTICATED, AccessDenied),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, Conflict),
        (grpc.StatusCode.ABORTED, Conflict),
        (grpc.StatusCode.INVALID_ARGUMENT, ConfigError),
        (grpc.StatusCode.UNAVAILABLE, Unreachable),
        (grpc.StatusCode.INTERNAL, ProtocolError),
        (grpc.StatusCode.UNIMPLEMENTED, ProtocolError),
    ],
)
def test_a_bare_status_becomes_an_error(coordinator: Coordinator, control: Control, code: grpc.StatusCode, kind: type[FedscaleError]) -> None:
    coordinator.answers["Status"] = code
    error = refused(control)
    assert type(error) is kind
    assert error.where == control.profile.address


def test_a_request_of_another_release_is_told_as_such(coordinator: Coordinator, control: Control) -> None:
    coordinator.answers["Status"] = grpc.StatusCode.UNIMPLEMENTED
    error = refused(control)
    assert (type(error), error.why, error.hint) == (ProtocolError, "it runs another release", "update the one of both that is older")


def test_nobody_there(profile: Profile, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        authority = identity.new_authority("testers", datetime.now(UTC))
        folder = write_profile(tmp_path / "other", authority, f"127.0.0.1:{unused.getsockname()[1]}")
        with Control(Profile.load(folder)) as control:
            error = refused(control)
    assert type(error) is Unreachable
    assert error.hint == "is it running? fedscale server start"


def test_a_coordinator_of_another_authority_is_not_talked_to(profile: Profile, coordinator: Coordinator, tmp_path: Path) -> None:
    stranger = write_profile(tmp_path / "stranger", identity.new_authority("testers", datetime.now(UTC)), profile.address)
    with Control(Profile.load(stranger)) as control:
        assert type(refused(control)) is Unreachable
    assert coordinator.asked == []


def test_an_expired_certificate_is_named(profile: Profile, tmp_path: Path) -> None:
    expired = write_profile(tmp_path / "old", identity.new_authority("testers", datetime.now(UTC)), profile.address, hours=-48)
    with Control(Profile.load(expired)) as control:
        error = refused(control)
    assert type(error) is AccessDenied
    assert "expired" in error.what
    assert error.where == str(expired)


def test_a_silent_coordinator_is_given_up(coordinator: Coordinator, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator.answers["Status"] = grpc.StatusCode.DEADLINE_EXCEEDED
    with Control(profile) as control:
        error = refused(control)
    assert type(error) is Unreachable
    assert "in time" in error.what


def test_watching_yields_events_with_their_detail(coordinator: Coordinator, control: Control) -> None:
    coordinator.streams = [[event(4, node="north", phase="train", number=2, detail='{"fraction": 0.5}'), event(5, "finished")]]
    first, last = control.watch("r1", after=3)
    assert first == Event(4, 104.0, "progress", "north", "train", 2, {"fraction": 0.5})
    assert (last.kind, last.detail) == ("finished", {})
    assert coordinator.last("WatchRun") == pb.WatchRunRequest(run="r1", after=3)


def test_watching_goes_on_where_the_connection_broke(coordinator: Coordinator, control: Control) -> None:
    broken = grpc.StatusCode.UNAVAILABLE
    coordinator.streams = [[event(1), event(2), broken], [broken], [event(3), broken], [event(4, "finished")]]
    pauses: list[float] = []
    assert [e.sequence for e in control.watch("r1", wait=pauses.append)] == [1, 2, 3, 4]
    assert [request.after for method, request in coordinator.asked if method == "WatchRun"] == [0, 2, 2, 3]
    assert pauses == [0.1, 0.2, 0.1]


def test_a_stream_that_ends_early_is_taken_up_again(coordinator: Coordinator, control: Control) -> None:
    statuses = iter(["running", "paused", "stopped"])
    coordinator.streams = [[event(1)], [event(2)], []]
    coordinator.answers["GetRun"] = lambda: pb.RunDetail(info=pb.RunInfo(run="r1", status=next(statuses)))
    assert [e.sequence for e in control.watch("r1", wait=lambda _: None)] == [1, 2]
    assert [request.after for method, request in coordinator.asked if method == "WatchRun"] == [0, 1, 2]


def test_a_coordinator_that_goes_down_while_one_watches_is_waited_for(coordinator: Coordinator, control: Control) -> None:
    details = iter([grpc.StatusCode.UNAVAILABLE, DONE])
    coordinator.streams = [[event(1)], [event(2, "finished")]]
    coordinator.answers["GetRun"] = lambda: next(details)
    pauses: list[float] = []
    assert [e.sequence for e in control.watch("r1", wait=pauses.append)] == [1, 2]
    assert pauses == [0.1]


def test_a_coordinator_that_shows_nothing_is_given_up(coordinator: Coordinator, control: Control) -> None:
    coordinator.streams = [[] for _ in range(100)]
    coordinator.answers["GetRun"] = pb.RunDetail(info=pb.RunInfo(run="r1", status="running"))
    with pytest.raises(Unreachable, match="ends the stream"):
        list(control.watch("r1", patience=8.0, wait=lambda _: None))


def test_watching_gives_up_after_a_while(coordinator: Coordinator, control: Control) -> None:
    coordinator.streams = [[grpc.StatusCode.UNAVAILABLE]] * 100
    pauses: list[float] = []
    with pytest.raises(Unreachable):
        list(control.watch("r1", patience=8.0, wait=pauses.append))
    assert 8.0 <= sum(pauses) <= 13.0


def test_watching_what_does_not_exist_is_no_reason_to_wait(coordinator: Coordinator, control: Control) -> None:
    coordinator.streams = [[NotFound("no run 'r9'")]]
    with pytest.raises(NotFound, match="no run 'r9'"):
        list(control.watch("r9", wait=lambda _: pytest.fail("waited")))


def test_an_unreadable_event_is_the_peers_mistake(coordinator: Coordinator, control: Control) -> None:
    coordinator.streams = [[event(1, detail="{")]]
    with pytest.raises(ProtocolError, match="event that cannot be read"):
        list(control.watch("r1"))


@pytest.mark.parametrize("size", [1, 1 << 20, (5 << 20) + 3])
def test_a_bundle_travels_in_frames(coordinator: Coordinator, control: Control, size: int) -> None:
    bundle, told = bytes(range(251)) * (size // 251 + 1), list[float]()
    digest = parcels.put(control, bundle, told.append)
    assert coordinator.blobs == {digest: bundle}
    assert coordinator.last("Put") == {"fedscale-digest": digest, "fedscale-size": str(len(bundle))}
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_bundle_that_is_there_already_is_fine(coordinator: Coordinator, control: Control) -> None:
    coordinator.verdict = bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.DUPLICATE)
    assert parcels.put(control, b"bundle") == digest_of(b"bundle")


def test_a_rejected_bundle_says_why(coordinator: Coordinator, control: Control) -> None:
    coordinator.verdict = bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.REJECTED, reason="its digest differs")
    with pytest.raises(BundleError, match="does not accept") as caught:
        parcels.put(control, b"bundle")
    assert caught.value.why == "its digest differs"


def test_a_model_is_fetched_and_checked(coordinator: Coordinator, control: Control) -> None:
    model = b"\x01" * (3 << 20)
    coordinator.blobs[digest_of(model)] = model
    assert parcels.fetch(control, digest_of(model), len(model)) == model
    with pytest.raises(NotFound):
        parcels.fetch(control, digest_of(b"other"), 4)


@pytest.mark.parametrize("sent", [b"mode", b"modell", b"medol", b"model" * (1 << 20)])
def test_another_content_is_not_taken_for_a_model(coordinator: Coordinator, control: Control, sent: bytes) -> None:
    coordinator.blobs[digest_of(b"model")] = sent
    with pytest.raises(ProtocolError, match="another content"):
        parcels.fetch(control, digest_of(b"model"), 5)
