"""The control stream: opened from inside the site, held for ever, opened again whenever it breaks.

Heartbeats go both ways; a server that is silent for too long is taken for gone. Where there are several, of which one leads,
they are asked in turn. Only one answer ends it: that this node is not accepted any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc.aio

import fedscale
from fedscale.clock import Clock
from fedscale.errors import AccessDenied, Cause, Failure, FedscaleError, PlanError, ProtocolError, Unreachable
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.proto.v1 import node_pb2_grpc
from fedscale.task import Task
from fedscale.wire.convert import Key, Parts, assignment_from_proto, failure_to_proto, key_from_proto, key_to_proto
from fedscale.wire.limits import HEARTBEAT_SECONDS, SILENCE_SECONDS
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings
from fedscale_client.rpc import error_of, open_channel, pause
from fedscale_client.standing import REJOIN

OPENING_SECONDS = 20.0
SETTLED_SECONDS = 5.0
OUTBOX = 256
RELEASES = "the coordinator and this node may run different releases"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task as it arrived.

    Args:
        key: run, phase and round.
        plan: the run's plan.
        plan_toml: the same as it was sent.
        task: what to do.
        terms: most answers in the sum.
        bundle: SHA-256 of the app's bundle.
        seconds: how long the server will wait.
        roster: the signed roster of secure aggregation, and the statement of whoever signed it.
        envelope: of a message of a led run; empty for any other task.
        size: bytes of such a message's content, whose name stands in the place of the model's.
    """

    key: Key
    plan: Plan
    plan_toml: str
    task: Task
    terms: int
    bundle: str
    seconds: float
    roster: tuple[bytes, bytes] = (b"", b"")
    envelope: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A step of a run that is about to begin; nothing is asked for yet.

    Args:
        key: run, phase and round.
        plan: the run's plan.
        plan_toml: the same as it was sent.
        bundle: SHA-256 of the app's bundle.
        nodes: how many would be asked.
    """

    key: Key
    plan: Plan
    plan_toml: str
    bundle: str
    nodes: int


class Receiver(Protocol):
    """Who does what the server says."""

    def offer(self) -> tuple[str, ...]:
        """The datasets of this site."""

    async def waiting(self) -> tuple[str, ...]:
        """The runs of whose end this site has yet to hear."""

    async def anchored(self, head: str) -> None:
        """The server tells the end of this site's ledger as it last came with an answer."""

    async def opened(self, credentials: Credentials) -> None:
        """The server is there."""

    def closed(self, error: FedscaleError, seconds: float) -> None:
        """The server is gone; it is tried again after so many seconds."""

    def assigned(self, assignment: Assignment) -> None:
        """The server asks for a task."""

    def proposed(self, proposal: Proposal) -> None:
        """The server would ask for something."""

    def identity(self) -> bytes:
        """What proves this node's identity key."""

    def told(self, key: Key, step: str, data: bytes) -> None:
        """The server has a message of secure aggregation."""

    def released(self, key: Key) -> None:
        """The server does not wait for a task any more."""


class Connection:
    """The control stream of one node.

    Args:
        home: who the node is.
        receiver: who does what the server says.
        clock: for the certificate's life.
    """

    def __init__(self, home: NodeHome, receiver: Receiver, clock: Clock) -> None:
        self._home, self._receiver, self._clock = home, receiver, clock
        self._servers, self._turn = home.servers(), 0
        self._outbox: asyncio.Queue[pb.NodeMessage] | None = None

    @property
    def settings(self) -> NodeSettings:
        """The node's settings for the server that is connected, or tried next."""
        return self._servers[self._turn % len(self._servers)]

    async def run(self) -> None:
        """Hold the stream until cancelled.

        Raises:
            AccessDenied: the certificate has expired, or the server does not accept it.
            ConfigError: the home cannot be read.
        """
        attempt = 0
        while True:
            credentials = Credentials.of(self._home)
            credentials.check(self._clock.now())
            began = asyncio.get_running_loop().time()
            error = await self._life(credentials)
            if isinstance(error, AccessDenied):
                raise AccessDenied("the server does not accept this node", where=self.settings.address, why=error.what, hint=REJOIN)
            attempt = 0 if asyncio.get_running_loop().time() - began > SETTLED_SECONDS else attempt + 1
            # Only when all have been asked is there a reason to wait for longer.
            seconds = pause(attempt // len(self._servers))
            self._servers, self._turn = self._home.servers(), self._turn + 1
            self._receiver.closed(error, seconds)
            await asyncio.sleep(seconds)

    def accept(self, key: Key) -> None:
        """Say that a task is being worked on."""
        self._say(pb.NodeMessage(accepted=pb.Accepted(key=key_to_proto(key))))

    def progress(self, key: Key, fraction: float, stage: str = "") -> None:
        """Say how far a task is, or what ``stage`` of it begins."""
        self._say(pb.NodeMessage(progress=pb.Progress(key=key_to_proto(key), fraction=fraction, stage=stage)))

    def speak(self, key: Key, step: str, data: bytes) -> None:
        """Answer a message of secure aggregation."""
        self._say(pb.NodeMessage(spoken=pb.Spoken(key=key_to_proto(key), step=step, data=data)))

    def fail(self, key: Key, failure: Failure) -> None:
        """Say why a task will not be answered."""
        self._say(pb.NodeMessage(failed=failure_to_proto(key, failure)))

    def stand(self, key: Key, refused: Mapping[Phase, Failure]) -> None:
        """Say what of a proposal would be refused."""
        told = [failure_to_proto((key[0], phase, key[2]), failure) for phase, failure in refused.items()]
        self._say(pb.NodeMessage(stance=pb.Stance(key=key_to_proto(key), refused=told)))

    def _say(self, message: pb.NodeMessage) -> None:
        """Queue a message. Without a stream it is dropped: when there is one again, the server asks again."""
        if self._outbox is not None and not self._outbox.full():
            self._outbox.put_nowait(message)

    async def _life(self, credentials: Credentials) -> FedscaleError:
        """One stream from its opening to its end, and why it ended."""
        try:
            async with open_channel(self.settings, credentials, name="control") as channel:
                return await self._stream(channel, credentials)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            return error_of(error, self.settings.address)
        except FedscaleError as error:
            return error
        finally:
            self._outbox = None

    async def _stream(self, channel: grpc.aio.Channel, credentials: Credentials) -> FedscaleError:
        """Greet, then read and write until one of both ends."""
        offered, runs = self._receiver.offer(), await self._receiver.waiting()
        hello = pb.Hello(version=fedscale.__version__, datasets=offered, identity=self._receiver.identity(), runs=runs, proposals=True)
        stream = node_pb2_grpc.NodeStub(channel).Connect()
        with suppress(asyncio.InvalidStateError):  # the call has ended already: reading says why
            await _within(OPENING_SECONDS, stream.write(pb.NodeMessage(hello=hello)))
        welcome = await _within(OPENING_SECONDS, stream.read())
        if not isinstance(welcome, pb.ServerMessage) or welcome.WhichOneof("message") != "welcome":
            raise ProtocolError("the server did not greet", where=self.settings.address)
        with suppress(OSError):  # another coordinator's address is worth having, not worth the stream
            self._home.remember(welcome.welcome.addresses)
        self._outbox = asyncio.Queue(OUTBOX)
        if welcome.welcome.ledger:
            await self._receiver.anchored(welcome.welcome.ledger)
        await self._receiver.opened(credentials)
        reading, writing = asyncio.create_task(self._read(stream)), asyncio.create_task(self._write(stream, self._outbox, offered))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            # Writing to a stream that has ended says nothing; reading from it says why it ended.
            if reading.done() or isinstance(writing.exception(), grpc.aio.AioRpcError | asyncio.InvalidStateError):
                return await reading
            return writing.result()
        finally:
            for half in (reading, writing):
                half.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            stream.cancel()

    async def _read(self, stream: Any) -> FedscaleError:
        """Hand on what the server says."""
        parts = Parts()
        while isinstance(message := await _within(SILENCE_SECONDS, stream.read()), pb.ServerMessage):
            kind = message.WhichOneof("message")
            if kind == "assignment":
                self._assigned(message.assignment)
            elif kind == "proposal":
                self._proposed(message.proposal)
            elif kind == "told":
                if (data := parts.whole(message.told)) is not None:
                    self._receiver.told(key_from_proto(message.told.key), message.told.step, data)
            elif kind == "release":
                self._receiver.released(key_from_proto(message.release.key))
        return Unreachable("the server ended the connection", where=self.settings.address)

    async def _write(self, stream: Any, outbox: asyncio.Queue[pb.NodeMessage], offered: tuple[str, ...]) -> FedscaleError:
        """Send what is queued, and a heartbeat when nothing is; begin anew when the site offers other datasets."""
        while self._receiver.offer() == offered:
            try:
                message = await _within(HEARTBEAT_SECONDS, outbox.get())
            except TimeoutError:
                message = pb.NodeMessage(heartbeat=pb.Heartbeat())
            await _within(SILENCE_SECONDS, stream.write(message))
        return Unreachable("the datasets of this site have changed", hint="the server is told at once")

    def _proposed(self, message: pb.Proposal) -> None:
        """Read a proposal; one that makes no sense is refused, as its tasks would be."""
        key = key_from_proto(message.key)
        try:
            plan = Plan.from_toml(message.plan, file=f"plan of run {key[0]}")
        except PlanError as error:
            self.stand(key, {key[1]: Failure(Cause.REJECTED, str(error), hint=RELEASES)})
            return
        self._receiver.proposed(Proposal(key, plan, message.plan, message.bundle, message.nodes))

    def _assigned(self, message: pb.Assignment) -> None:
        """Read an assignment; one that makes no sense is answered with a failure."""
        key = key_from_proto(message.key)
        try:
            _, plan, task = assignment_from_proto(message, self.settings.name)
        except (ProtocolError, PlanError) as error:
            self.fail(key, Failure(Cause.REJECTED, str(error), hint=RELEASES))
            return
        seconds = message.deadline_seconds if message.deadline_seconds > 0 else plan.clients.deadline
        signed = (message.roster, message.authority)
        letter = (message.envelope, message.size)
        self._receiver.assigned(Assignment(key, plan, message.plan, task, message.terms, message.bundle, seconds, signed, *letter))


async def _within(seconds: float, step: Awaitable[T]) -> T:
    """One step.

    Raises:
        TimeoutError: it takes longer.
    """
    async with asyncio.timeout(seconds):
        return await step
