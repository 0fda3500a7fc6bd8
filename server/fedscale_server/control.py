"""The coordinator's and researcher's side of the Control service: plain values in and out, errors rebuilt as the server raised them."""

from __future__ import annotations

import functools
import inspect
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import grpc

from fedscale.errors import FedscaleError, ProtocolError, Unreachable
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import control_pb2_grpc
from fedscale.wire.limits import CHANNEL_OPTIONS
from fedscale_server.answers import Detail, Event, Invitation, Project, RunInfo, Site, Status
from fedscale_server.profile import Profile
from fedscale_server.reasons import explained

if TYPE_CHECKING:
    from fedscale.letters import Letter

T = TypeVar("T")
P = ParamSpec("P")

TIMEOUT, PATIENCE = 15.0, 60.0
RECORD = 120.0  # what a long run leaves takes its time
ELECTION = 30.0  # within which one of several coordinators leads
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
OVER = ("completed", "failed", "stopped")
RUN = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")


def _calls(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method of ``Control`` ask as ``Control.ask`` does."""

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        control: Any = args[0]
        answer: T = control.ask(lambda: method(*args, **kwargs))
        return answer

    return called


class Control:
    """A connection to a coordinator; close it, or use it in a ``with`` statement.

    Every method raises what the coordinator raised; ``Unreachable`` when there is no answer within ``timeout`` seconds, or two minutes
    where a whole record is asked for.

    Args:
        profile: who calls and whom.
        timeout: seconds that one call may take.
    """

    def __init__(self, profile: Profile, timeout: float = TIMEOUT) -> None:
        self.profile, self._timeout = profile, timeout
        self.addresses = (profile.address, *profile.others)
        self._open()

    def _open(self) -> None:
        credentials = grpc.ssl_channel_credentials(self.profile.authority, self.profile.key, self.profile.certificate)
        target, options = self.addresses[0], list[tuple[str, str | int]](CHANNEL_OPTIONS)
        if target == self.profile.address and self.profile.nearby:
            # Dialled within the machine, it must still prove the name it is known by.
            options.append(("grpc.ssl_target_name_override", target.rpartition(":")[0].strip("[]")))
            target = self.profile.nearby
        self.channel = grpc.secure_channel(target, credentials, options)
        self._stub = control_pb2_grpc.ControlStub(self.channel)

    def ask(self, call: Callable[[], T]) -> T:
        """What a call returns, with errors of ours for what gRPC raises; where others may lead, all of them are asked until one does."""
        ends = time.monotonic() + ELECTION
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                problem = explained(error, self.addresses[0], self.profile)
                if not isinstance(problem, Unreachable) or len(self.addresses) == 1 or time.monotonic() > ends:
                    raise problem from None
            self.turn()
            time.sleep(FIRST_PAUSE)

    def turn(self) -> None:
        """Ask the next coordinator from now on."""
        self.channel.close()
        self.addresses = (*self.addresses[1:], self.addresses[0])
        self._open()

    def __enter__(self) -> Self:
        """The connection itself; the first call opens it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self.channel.close()

    @_calls
    def status(self) -> Status:
        """The coordinator as it is."""
        reply = self._stub.Status(pb.StatusRequest(), timeout=self._timeout)
        runs = tuple(_info(r) for r in reply.runs)
        return _read(Status, reply, nodes=tuple(map(_site, reply.nodes)), runs=runs, replicas=tuple(reply.replicas))

    @_calls
    def create_project(self, name: str) -> Project:
        """A new project."""
        return _read(Project, self._stub.CreateProject(pb.CreateProjectRequest(name=name), timeout=self._timeout))

    @_calls
    def projects(self) -> list[Project]:
        """All projects."""
        return [_read(Project, p) for p in self._stub.ListProjects(pb.ListProjectsRequest(), timeout=self._timeout).projects]

    @_calls
    def invite(self, project: str, name: str, ttl_seconds: float, role: str) -> Invitation:
        """A ticket for one site, or for a colleague with another role."""
        request = pb.InviteRequest(project=project, name=name, ttl_seconds=ttl_seconds, role=role)
        return _read(Invitation, self._stub.Invite(request, timeout=self._timeout))

    @_calls
    def nodes(self, project: str) -> list[Site]:
        """The sites of a project, connected or not."""
        return [_site(n) for n in self._stub.ListNodes(pb.ListNodesRequest(project=project), timeout=self._timeout).nodes]

    @_calls
    def revoke(self, name: str) -> None:
        """Shut a site out at once."""
        self._stub.Revoke(pb.RevokeRequest(name=name), timeout=self._timeout)

    @_calls
    def submit(self, project: str, plan: str, bundle: str, key: str) -> RunInfo:
        """Start a run of a stored bundle; the same key never starts a second one."""
        request = pb.SubmitRunRequest(project=project, plan=plan, bundle=bundle, key=key)
        return _info(self._stub.SubmitRun(request, timeout=self._timeout))

    @_calls
    def runs(self, project: str = "") -> list[RunInfo]:
        """The runs of a project, or of all."""
        return [_info(r) for r in self._stub.ListRuns(pb.ListRunsRequest(project=project), timeout=self._timeout).runs]

    @_calls
    def run(self, run: str) -> Detail:
        """One run."""
        first, *rest = self._stub.GetRun(pb.GetRunRequest(run=run), timeout=max(self._timeout, RECORD))
        return _read(Detail, first, info=_info(first.info), record="".join(part.record for part in (first, *rest)))

    @_calls
    def steer(self, run: str, action: str, reason: str = "") -> RunInfo:
        """Stop, pause or resume a run."""
        return _info(self._stub.SteerRun(pb.SteerRunRequest(run=run, action=action, reason=reason), timeout=self._timeout))

    def post(self, run: str, letters: Sequence[Letter]) -> tuple[str, ...]:
        """Post letters of a run's leader; returns the contents that must be stored first, and nothing was posted then."""
        request = pb.PostRequest(run=run, letters=[pb.Letter(**asdict(letter)) for letter in letters])
        return tuple(self.ask(lambda: self._stub.Post(request, timeout=self._timeout)).missing)

    def conclude(self, run: str, reason: str, metrics: Sequence[tuple[str, int, Mapping[str, float]]], model: str = "") -> RunInfo:
        """Say that the leader of a run has come to its end, well or why not, and which model it keeps, by its SHA-256."""
        request = pb.ConcludeRequest(run=run, reason=reason, metrics=json.dumps(list(metrics)), model=model)
        return _info(self.ask(lambda: self._stub.Conclude(request, timeout=self._timeout)))

    def collect(self, run: str, after: int = 0) -> Iterator[pb.Reply]:
        """Who takes part in a led run, then all parts of all replies from behind a line on; ends with the run, or with the connection.

        Raises:
            FedscaleError: what the coordinator raised; ``Unreachable`` where the connection broke.
        """
        try:
            yield from self._stub.Collect(pb.CollectRequest(run=run, after=after))
        except grpc.RpcError as error:
            raise explained(error, self.addresses[0], self.profile) from None

    def watch(self, run: str, after: int = 0, *, patience: float = PATIENCE, wait: Callable[[float], None] = time.sleep) -> Iterator[Event]:
        """What happens to a run, from the event behind ``after`` on until it ends; a broken connection is taken up again where it broke.

        Args:
            run: its id.
            after: sequence number of the last event already seen.
            patience: seconds to try again for before it counts as unreachable.
            wait: sleeps.
        """
        pause, tried = FIRST_PAUSE, 0.0
        while True:
            try:
                for message in self._stub.WatchRun(pb.WatchRunRequest(run=run, after=after)):
                    pause, tried, after = FIRST_PAUSE, 0.0, max(after, message.sequence)
                    yield _event(message)
                # A stream also ends when the coordinator goes down, or cuts off a watcher that does not keep up.
                if self.run(run).info.status in OVER:
                    return
                problem: FedscaleError = Unreachable("the coordinator ends the stream of events", where=self.addresses[0])
            except grpc.RpcError as error:
                problem = explained(error, self.addresses[0], self.profile)
            except Unreachable as error:
                problem = error
            if not isinstance(problem, Unreachable) or tried >= patience:
                raise problem
            if len(self.addresses) > 1:
                self.turn()
            wait(pause)
            pause, tried = min(2 * pause, LONGEST_PAUSE), tried + pause


def _read(kind: Callable[P, T], message: Any, **given: Any) -> T:
    """A message as the value whose fields have the same names; ``given`` are those that need more than a copy."""
    names = inspect.signature(kind).parameters
    return kind(**{name: given[name] if name in given else getattr(message, name) for name in names})  # type: ignore[call-arg]


def _info(message: pb.RunInfo) -> RunInfo:
    """A run; folders are named after it, so its id must not lead out of where they are.

    Raises:
        ProtocolError: it is no name.
    """
    if not RUN.fullmatch(message.run):
        raise ProtocolError("the coordinator sent a run whose id is no name")
    return _read(RunInfo, message)


def _site(message: pb.NodeInfo) -> Site:
    """A site with its datasets as a tuple."""
    return _read(Site, message, datasets=tuple(message.datasets))


def _event(message: pb.RunEvent) -> Event:
    """An event with its detail decoded."""
    try:
        detail = json.loads(message.detail or "{}")
    except ValueError:
        raise ProtocolError("the coordinator sent an event that cannot be read", where=f"event {message.sequence}") from None
    return _read(Event, message, detail=detail)
