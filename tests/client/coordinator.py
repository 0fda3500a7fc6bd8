"""A small coordinator for tests: the real protocol over mTLS, and a script of everything that may go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np

from fedscale import bundle, files, identity
from fedscale.errors import FedscaleError, TicketError, Unreachable
from fedscale.identity import Authority, Identity, Role
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.proto.v1 import bulk_pb2, node_pb2, node_pb2_grpc
from fedscale.ring import WORD, Words
from fedscale.task import Task, layout_for
from fedscale.update import Layout
from fedscale.vector import Schema, Vector
from fedscale.wire.codec import (
    DIGEST_KEY,
    FETCH,
    LEDGER_KEY,
    OFFSET,
    OFFSET_KEY,
    SCHEMA_KEY,
    SIZE_KEY,
    SUBMIT,
    TASK_KEY,
    sealed,
    unsealed,
)
from fedscale.wire.convert import Key, assignment_to_proto, failure_from_proto, key_from_proto, key_from_text, key_to_proto
from fedscale.wire.limits import FRAME, SERVER_OPTIONS
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from tests.server.ports import own_port

PATIENCE = 60.0
FEDERATION = "testland"
SCHEMA = Schema.of({"w": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)})
MODEL = np.arange(4, dtype="<f4")


async def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until something is so, and return it."""
    async with asyncio.timeout(patience):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value


def plan_text(app: str = "app:app", data: str = "heart", **sections: Any) -> str:
    return Plan.model_validate({"job": {"name": "test", "app": app, "data": data, "seed": 7}, **sections}).to_toml()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Ticket:
    secret_hash: str
    name: str | None
    used: str = ""


@dataclass(eq=False)
class Session:
    """One control stream."""

    node: str
    hello: node_pb2.Hello
    outbox: asyncio.Queue[node_pb2.ServerMessage | None] = field(default_factory=asyncio.Queue)
    heard: list[node_pb2.NodeMessage] = field(default_factory=list)
    open: bool = True

    def kinds(self) -> list[str]:
        return [str(message.WhichOneof("message")) for message in self.heard]


class Coordinator(node_pb2_grpc.EnrolmentServicer, node_pb2_grpc.NodeServicer):
    """The server's side of everything a node does."""

    def __init__(self, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> None:
        self.authority = identity.new_authority(FEDERATION, datetime.now(UTC))
        self.shown = self.serving = self.issuing = self.authority
        self.hosts = hosts
        self.key = identity.new_key()
        self.tickets: dict[str, Ticket] = {}
        self.sessions: list[Session] = []
        self.silent = False
        self.ledger = ""
        self.heads: list[str] = []
        self.refuse: FedscaleError | None = None
        self.lose_replies = 0
        self.told: list[str] = []
        self.refuse_bulk: FedscaleError | None = None
        self.renewed: list[str] = []
        self.issue_hours = 24.0
        self.spoil: Callable[[bytes], bytes] = lambda certificate: certificate
        self.blobs: dict[str, bytes] = {}
        self.fetches: list[tuple[str, int]] = []
        self.break_fetch_after: deque[int] = deque()
        self.break_submit_after: deque[int] = deque()
        self.arrived: dict[str, bytes] = {}
        self.offsets: list[int] = []
        self.verdicts: deque[grpc.StatusCode | bulk_pb2.Receipt] = deque()
        self.answers: list[tuple[Key, bytes, str]] = []
        self.attempts = 0
        self.port, self.enrolment_port = own_port(), own_port()
        self._server: grpc.aio.Server | None = None

    # ------------------------------------------------------------------------------------------------------ its life

    async def start(self) -> None:
        leaf = identity.certificate_pem(self.serving.issue_server(self.key.public_key(), self.hosts, datetime.now(UTC)))
        pair = [(identity.key_pem(self.key), leaf)]
        root = identity.certificate_pem(self.authority.certificate)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        node_pb2_grpc.add_EnrolmentServicer_to_server(self, self._server)
        node_pb2_grpc.add_NodeServicer_to_server(self, self._server)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            FETCH: grpc.unary_stream_rpc_method_handler(self.fetch, bulk_pb2.FetchRequest.FromString, sealed),
            OFFSET: grpc.unary_unary_rpc_method_handler(self.offset, bulk_pb2.OffsetRequest.FromString, bulk_pb2.OffsetReply.SerializeToString),
            SUBMIT: grpc.stream_unary_rpc_method_handler(self.submit, unsealed, bulk_pb2.Receipt.SerializeToString),
        }
        handlers = {name.rpartition("/")[2]: method for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fedscale.v1.Frames", handlers),))
        mutual = grpc.ssl_server_credentials(pair, root, require_client_auth=True)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", mutual)
        self.enrolment_port = self._server.add_secure_port(f"127.0.0.1:{self.enrolment_port}", grpc.ssl_server_credentials(pair))
        await self._server.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Vanish, as after a crash; ``start`` comes back on the same ports."""
        for session in self.sessions:
            session.outbox.put_nowait(None)
        if self._server:
            await self._server.stop(0)
            self._server = None

    def follow(self, other: Coordinator) -> None:
        """Be another coordinator of the same federation."""
        self.authority = self.shown = self.serving = self.issuing = other.authority
        self.tickets = other.tickets

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ticket(self, name: str | None = None, address: str = "") -> str:
        ca_hash = identity.spki_hash(self.authority.certificate.public_key())
        made = identity.new_ticket(address or f"127.0.0.1:{self.enrolment_port}", ca_hash)
        self.tickets[made.id] = Ticket(identity.secret_hash(made.secret), name)
        return str(made)

    def home(self, folder: Path, name: str = "mercy", hours: float = 24.0) -> NodeHome:
        """A home that has joined, without the joining."""
        home, key = NodeHome(files.private_folder(folder)), identity.new_key()
        certificate = self.issue(identity.new_request(key, name), name, hours)
        credentials = Credentials(identity.key_pem(key), certificate, identity.certificate_pem(self.authority.certificate))
        files.write(home.key_file, credentials.key)
        files.write(home.certificate_file, credentials.certificate)
        files.write(home.authority_file, credentials.authority)
        write_toml(home.settings_file, NodeSettings(name=name, federation=FEDERATION, project="p", address=self.address).model_dump())
        return home

    def issue(self, request: bytes, name: str, hours: float, authority: Authority | None = None) -> bytes:
        who = Identity(FEDERATION, Role.NODE, name)
        return identity.certificate_pem((authority or self.issuing).issue(request, who, datetime.now(UTC), hours))

    # ------------------------------------------------------------------------------------------------------ enrolment

    async def Authority(self, request: Any, context: Any) -> node_pb2.AuthorityReply:
        return node_pb2.AuthorityReply(certificate=identity.certificate_pem(self.shown.certificate))

    async def Join(self, request: node_pb2.JoinRequest, context: Any) -> node_pb2.JoinReply:
        if isinstance(self.refuse, Unreachable):
            await abort(context, self.refuse, grpc.StatusCode.UNAVAILABLE)
        ticket = self.tickets.get(request.ticket)
        key = identity.spki_hash(identity.requested_key(request.request))
        name = request.name or (ticket.name if ticket else None) or "unnamed"
        if ticket is None or identity.secret_hash(request.secret) != ticket.secret_hash:
            await abort(context, TicketError("the ticket is unknown"), grpc.StatusCode.UNAUTHENTICATED)
        elif ticket.used not in ("", key):
            await abort(context, TicketError("the ticket was used already", hint="ask for another"), grpc.StatusCode.UNAUTHENTICATED)
        else:
            ticket.used = key
        if self.lose_replies:
            self.lose_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        certificate = self.spoil(self.issue(request.request, name, self.issue_hours))
        authority = identity.certificate_pem(self.authority.certificate)
        return node_pb2.JoinReply(
            certificate=certificate, authority=authority, address=self.address, name=name, project="p", role="node", addresses=self.told
        )

    async def Renew(self, request: node_pb2.RenewRequest, context: Any) -> node_pb2.RenewReply:
        await self._guard(context)
        name = _caller(context)
        self.renewed.append(name)
        return node_pb2.RenewReply(certificate=self.spoil(self.issue(request.request, name, self.issue_hours)))

    # --------------------------------------------------------------------------------------------------------- control

    async def Connect(self, request_iterator: AsyncIterator[node_pb2.NodeMessage], context: Any) -> AsyncIterator[node_pb2.ServerMessage]:
        await self._guard(context)
        first = await anext(aiter(request_iterator))
        session = Session(_caller(context), first.hello)
        self.sessions.append(session)
        reader = asyncio.create_task(self._listen(request_iterator, session))
        try:
            yield node_pb2.ServerMessage(welcome=node_pb2.Welcome(version="test", heartbeat_seconds=1.0, ledger=self.ledger, addresses=self.told))
            while True:
                try:
                    message = await asyncio.wait_for(session.outbox.get(), 0.1)
                except TimeoutError:
                    message = None if self.silent else node_pb2.ServerMessage(heartbeat=node_pb2.Heartbeat())
                    if message is None:
                        continue
                if message is None:
                    return
                yield message
        finally:
            session.open = False
            reader.cancel()

    async def _listen(self, messages: AsyncIterator[node_pb2.NodeMessage], session: Session) -> None:
        async for message in messages:
            session.heard.append(message)

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    async def connected(self, number: int = 1) -> Session:
        """Wait for the n-th session."""
        await until(lambda: len(self.sessions) >= number)
        return self.session

    def heard(self, kind: str) -> list[Any]:
        """All messages of a kind, of all sessions."""
        return [getattr(message, kind) for session in self.sessions for message in session.heard if message.WhichOneof("message") == kind]

    # ----------------------------------------------------------------------------------------------------------- tasks

    def put(self, data: bytes) -> str:
        self.blobs[digest(data)] = data
        return digest(data)

    def put_app(self, folder: Path, **files: str) -> str:
        """A bundle of modules by name."""
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        return self.put(bundle.pack(folder))

    def assign(
        self,
        app: str,
        phase: Phase = Phase.TRAIN,
        number: int = 1,
        *,
        run: str = "run-1",
        plan: str = "",
        deadline: float = 60.0,
        model: Vector = MODEL,
    ) -> tuple[Key, Layout]:
        """Ask the connected node for a task."""
        text = plan or plan_text()
        first = phase is Phase.INIT
        layout = layout_for(Plan.from_toml(text), phase, 0 if first else SCHEMA.size, 2)
        task = Task(self.session.node, phase, number, layout, None if first else SCHEMA, "" if first else self.put(model.tobytes()))
        message = assignment_to_proto(run, task, text, app, deadline)
        self.session.outbox.put_nowait(node_pb2.ServerMessage(assignment=message))
        return (run, phase, number), layout

    def release(self, key: Key) -> None:
        self.session.outbox.put_nowait(node_pb2.ServerMessage(release=node_pb2.Release(key=key_to_proto(key))))

    async def answer(self, key: Key) -> bytes:
        """Wait for the answer to a task."""
        found = await until(lambda: [body for other, body, _ in self.answers if other == key] or self._failed(key))
        assert isinstance(found[0], bytes), f"the task failed: {found[0]}"
        return found[0]

    async def words(self, key: Key, layout: Layout) -> Words:
        answer = await self.answer(key)
        assert len(answer) == WORD.itemsize * layout.length
        return np.frombuffer(answer, WORD)

    async def failure(self, key: Key) -> Any:
        """Wait for the failure of a task."""
        found = await until(lambda: self._failed(key) or [other for other, _, _ in self.answers if other == key])
        assert not isinstance(found[0], tuple), "the task was answered"
        return found[0]

    def _failed(self, key: Key) -> list[Any]:
        return [failure_from_proto(message) for message in self.heard("failed") if key_from_proto(message.key) == key]

    # ------------------------------------------------------------------------------------------------------------ bulk

    async def fetch(self, request: bulk_pb2.FetchRequest, context: Any) -> AsyncIterator[bytes]:
        await self._guard(context, self.refuse_bulk)
        self.fetches.append((request.digest, request.offset))
        data = self.blobs.get(request.digest)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
            return
        end = request.offset + self.break_fetch_after.popleft() if self.break_fetch_after else len(data)
        for at in range(request.offset, min(end, len(data)), FRAME):
            yield data[at : min(at + FRAME, end)]
        if end < len(data):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "broken by the test")

    async def offset(self, request: bulk_pb2.OffsetRequest, context: Any) -> bulk_pb2.OffsetReply:
        await self._guard(context, self.refuse_bulk)
        return bulk_pb2.OffsetReply(offset=len(self.arrived.get(request.digest, b"")))

    async def submit(self, frames: AsyncIterator[bytes], context: Any) -> bulk_pb2.Receipt:
        self.attempts += 1
        await self._guard(context, self.refuse_bulk)
        facts = dict(context.invocation_metadata())
        verdict = self.verdicts.popleft() if self.verdicts else bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.ACCEPTED)
        if isinstance(verdict, grpc.StatusCode):
            await context.abort(verdict, "scripted", (("retry-after-ms", "20"),))
            raise AssertionError
        if verdict.verdict == bulk_pb2.Receipt.CLOSED:
            return verdict
        self.offsets.append(int(facts[OFFSET_KEY]))
        body = self.arrived.pop(facts[DIGEST_KEY], b"")[: self.offsets[-1]]
        most = len(body) + self.break_submit_after.popleft() if self.break_submit_after else None
        async for frame in frames:
            body += frame
            if most is not None and len(body) >= most:
                self.arrived[facts[DIGEST_KEY]] = body
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken by the test")
        self.heads.append(facts.get(LEDGER_KEY, ""))
        assert (digest(body), str(len(body))) == (facts[DIGEST_KEY], facts[SIZE_KEY])
        self.answers.append((key_from_text(facts[TASK_KEY]), body, facts.get(SCHEMA_KEY, b"").decode()))
        return verdict

    async def _guard(self, context: Any, error: FedscaleError | None = None) -> None:
        if refusal := error or self.refuse:
            code = grpc.StatusCode.UNAVAILABLE if isinstance(refusal, Unreachable) else grpc.StatusCode.PERMISSION_DENIED
            await abort(context, refusal, code)


async def abort(context: Any, error: FedscaleError, code: grpc.StatusCode) -> None:
    """End a call as the server does."""
    body = {"type": type(error).__name__, "what": error.what, "where": error.where, "why": error.why, "hint": error.hint}
    await context.abort(code, str(error), (("fedscale-error-bin", json.dumps(body).encode()),))


def _caller(context: Any) -> str:
    return identity.identity_of(context.auth_context()["x509_pem_cert"][0]).name
