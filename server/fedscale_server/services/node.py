"""The node service: one control stream per node, pushed to by the server, read for progress and failures."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator

import structlog

import fedscale
from fedscale.errors import Conflict, ProtocolError
from fedscale.learner import Phase
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.proto.v1 import node_pb2_grpc
from fedscale.secagg.authority import claimed
from fedscale.tables import NAME
from fedscale.wire.convert import failure_from_proto, key_from_proto
from fedscale.wire.limits import HEARTBEAT_SECONDS, SILENCE_SECONDS
from fedscale_server.arrivals import Arrivals
from fedscale_server.driver import Driver
from fedscale_server.engine import Engine
from fedscale_server.leadership import Leadership
from fedscale_server.registry import Registry
from fedscale_server.services.guard import Context, caller
from fedscale_server.sessions import TICKS, Session, Watch
from fedscale_server.store.admission import Arrival

log = structlog.get_logger()
MAX_DATASETS = 256
TWICE = "stop one of them, a second machine joins by a ticket of its own; where it was a stranger: fedscale project revoke NAME"


class NodeService(node_pb2_grpc.NodeServicer):
    """Control streams and certificate renewal."""

    def __init__(self, engine: Engine, registry: Registry, leadership: Leadership) -> None:
        self._engine, self._registry, self._leadership = engine, registry, leadership
        self._arrivals = Arrivals(registry)

    async def Connect(self, request_iterator: AsyncIterator[pb.NodeMessage], context: Context) -> AsyncIterator[pb.ServerMessage]:  # noqa: ARG002, N802 - gRPC's names
        """The life of a connected node."""
        name = caller().name
        first = await _first(request_iterator)
        if first is None or first.WhichOneof("message") != "hello":
            raise ProtocolError("a control stream must begin with Hello", where=f"node {name}")
        identity = claimed(name, first.hello.identity) if first.hello.identity else ""
        member = await self._arrivals.take(Arrival(name, _offered(first.hello), first.hello.version[:64], identity))
        session = Session(name, member.project, frozenset(member.datasets), member.version, identity, first.hello.proposals)
        watch = Watch(SILENCE_SECONDS, session.close)
        reader = asyncio.create_task(self._listen(request_iterator, session, watch))
        log.info("node connected", node=name, datasets=len(session.datasets))
        try:
            self._engine.connected(session)
            yield pb.ServerMessage(welcome=self._welcome(member.ledger or ""))
            await self._engine.tell_ends(session, first.hello.runs)
            while not reader.done():
                message = await _within(session.outbox)
                if message is None:
                    break
                yield message
            _require_alone(session)
            if reader.done():
                reader.result()
        finally:
            watch.stop()
            reader.cancel()
            self._engine.disconnected(session)
            log.info("node disconnected", node=name)

    def _welcome(self, ledger: str) -> pb.Welcome:
        """The answer to a greeting."""
        addresses = [place.address for place in self._leadership.places]
        return pb.Welcome(version=fedscale.__version__, heartbeat_seconds=HEARTBEAT_SECONDS, addresses=addresses, ledger=ledger)

    async def _listen(self, messages: AsyncIterator[pb.NodeMessage], session: Session, watch: Watch) -> None:
        """Read what the node says until it leaves."""
        async for message in messages:
            with watch.heard():
                await self._take(message, session)
        session.close()

    async def _take(self, message: pb.NodeMessage, session: Session) -> None:
        """Pass on what a node says of a task."""
        kind = message.WhichOneof("message")
        if kind == "failed":
            key = key_from_proto(message.failed.key)
            driver = self._engine.driver(key[0])
            if driver is not None:
                await driver.failed(key, session.node, failure_from_proto(message.failed))
        elif kind == "spoken":
            key = key_from_proto(message.spoken.key)
            driver = self._engine.driver(key[0])
            if isinstance(driver, Driver):
                await driver.spoken(key, session.node, message.spoken.step, message.spoken.data)
        elif kind == "stance":
            key = key_from_proto(message.stance.key)
            driver = self._engine.driver(key[0])
            if isinstance(driver, Driver):
                refused = {key_from_proto(each.key)[1]: failure_from_proto(each) for each in message.stance.refused[: len(Phase)]}
                await driver.proposed(session.node, key[2], refused)
        elif kind in ("progress", "accepted"):
            body = message.progress if kind == "progress" else message.accepted
            key = key_from_proto(body.key)
            driver = self._engine.driver(key[0])
            if driver is not None:
                detail = {"fraction": _fraction(message.progress.fraction)} if kind == "progress" else {}
                driver.passing(kind, key, session.node, detail)
            if isinstance(driver, Driver):
                driver.begun(key, session.node, message.progress.stage)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:  # noqa: ARG002, N802 - gRPC's names
        """A fresh certificate for the same identity."""
        return pb.RenewReply(certificate=await asyncio.to_thread(self._registry.renew, caller(), request.request))


def _require_alone(session: Session) -> None:
    """Tell a node why its stream ends where another has taken its place.

    A node that had lost its connection is not there to hear it; whoever is shares its name with another process.

    Raises:
        Conflict: it was replaced.
    """
    if session.replaced:
        log.warning("two processes may have connected as one node", node=session.node)
        raise Conflict(f"another process has connected as node '{session.node}'", why="each needs a home of its own", hint=TWICE)


def _offered(hello: pb.Hello) -> tuple[str, ...]:
    """The datasets a node offers; what no plan could ask for is left out."""
    return tuple(name for name in hello.datasets[:MAX_DATASETS] if re.fullmatch(NAME, name))


def _fraction(told: float) -> float:
    """How far a node says it is, in [0, 1]."""
    return round(min(max(told, 0.0), 1.0), 4) if math.isfinite(told) else 0.0


async def _first(messages: AsyncIterator[pb.NodeMessage]) -> pb.NodeMessage | None:
    """The first message, or ``None`` when the node left or said nothing for too long; as of a ``Watch``, a server that was held up waits on."""
    coming = asyncio.ensure_future(anext(messages, None))
    try:
        for _ in range(TICKS):
            if (await asyncio.wait({coming}, timeout=SILENCE_SECONDS / TICKS))[0]:
                return coming.result()
        return None
    finally:
        coming.cancel()
        await asyncio.wait({coming})


async def _within(outbox: asyncio.Queue[pb.ServerMessage | None]) -> pb.ServerMessage | None:
    """The next message to send; a heartbeat when there is none for a while."""
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            return await outbox.get()
    except TimeoutError:
        return pb.ServerMessage(heartbeat=pb.Heartbeat())
