"""A coordinator with canned answers behind the real wire: mTLS on loopback, generated services, raw bulk frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from fedscale import identity
from fedscale.errors import FedscaleError
from fedscale.proto.v1 import bulk_pb2
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import FETCH, PUT, digest_of, frames, sealed, unsealed


@dataclass
class Coordinator:
    """What it answers, and what it was asked.

    Args:
        answers: method to the message to answer with, or to the error to refuse with, or to a gRPC status, or to a function that makes one.
        streams: one for each call of WatchRun: messages, and at the end perhaps a status to break with.
        blobs: by digest.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    streams: list[list[Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    verdict: bulk_pb2.Receipt = field(default_factory=lambda: bulk_pb2.Receipt(verdict=bulk_pb2.Receipt.ACCEPTED))

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append((method, request))
        return self.told(self.answers[method], context)

    def told(self, answer: Any, context: grpc.ServicerContext) -> Any:
        answer = answer() if callable(answer) else answer
        if isinstance(answer, FedscaleError):
            body = {"type": type(answer).__name__, "what": answer.what, "where": answer.where, "why": answer.why, "hint": answer.hint}
            answer = json.dumps(body).encode()
        if isinstance(answer, bytes):
            context.set_trailing_metadata((("fedscale-error-bin", answer),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "no details")
        return answer

    def parts(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> Iterator[pb.RunDetail]:
        yield self.answer("GetRun", request, context)

    def watch(self, request: pb.WatchRunRequest, context: grpc.ServicerContext) -> Iterator[pb.RunEvent]:
        self.asked.append(("WatchRun", request))
        for message in self.streams.pop(0):
            yield self.told(message, context)

    def put(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> bulk_pb2.Receipt:
        self.asked.append(("Put", {key: value for key, value in context.invocation_metadata() if key.startswith("fedscale")}))
        data = b"".join(parts)
        self.blobs[digest_of(data)] = data
        return self.verdict

    def fetch(self, request: bulk_pb2.FetchRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.asked.append(("Fetch", request))
        if request.digest not in self.blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        yield from frames(self.blobs[request.digest], request.offset)

    def last(self, method: str) -> Any:
        """What it was asked last by this method."""
        return next(request for name, request in reversed(self.asked) if name == method)


def control_handler(coordinator: Coordinator) -> grpc.GenericRpcHandler:
    """All methods of the Control service, whatever the service has."""
    made = {}
    for method in pb.DESCRIPTOR.services_by_name["Control"].methods:
        reads, writes = getattr(pb, method.input_type.name).FromString, getattr(pb, method.output_type.name).SerializeToString
        if method.name == "GetRun":
            made[method.name] = grpc.unary_stream_rpc_method_handler(coordinator.parts, reads, writes)
        elif method.server_streaming:
            made[method.name] = grpc.unary_stream_rpc_method_handler(coordinator.watch, reads, writes)
        else:
            made[method.name] = grpc.unary_unary_rpc_method_handler(partial(coordinator.answer, method.name), reads, writes)
    return grpc.method_handlers_generic_handler("fedscale.v1.Control", made)


def bulk_handler(coordinator: Coordinator) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        FETCH: grpc.unary_stream_rpc_method_handler(coordinator.fetch, bulk_pb2.FetchRequest.FromString, sealed),
        PUT: grpc.stream_unary_rpc_method_handler(coordinator.put, unsealed, bulk_pb2.Receipt.SerializeToString),
    }
    return grpc.method_handlers_generic_handler("fedscale.v1.Frames", {path.rpartition("/")[2]: method for path, method in methods.items()})


def write_profile(folder: Path, authority: identity.Authority, address: str, *, hours: float = 1, name: str = "admin") -> Path:
    """A profile of a coordinator as ``server init`` leaves it; expired long ago with negative ``hours``."""
    key, now = identity.new_key(), datetime.now(UTC)
    who = identity.Identity(authority.federation, identity.Role.COORDINATOR, name)
    issued = now if hours > 0 else now + timedelta(hours=2 * hours)
    certificate = authority.issue(identity.new_request(key, name), who, issued, abs(hours))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.pem").write_bytes(identity.key_pem(key))
    (folder / "cert.pem").write_bytes(identity.certificate_pem(certificate))
    (folder / "ca.pem").write_bytes(authority.to_pems()[1])
    (folder / "address").write_text(f"{address}\n")
    return folder


@contextmanager
def serving(coordinator: Coordinator, folder: Path) -> Iterator[Path]:
    """Serve it on loopback with mutual TLS; yields the profile's folder."""
    now = datetime.now(UTC)
    authority = identity.new_authority("testers", now)
    key = identity.new_key()
    chain = identity.certificate_pem(authority.issue_server(key.public_key(), ["localhost", "127.0.0.1", "hub.example.org"], now))
    credentials = grpc.ssl_server_credentials([(identity.key_pem(key), chain)], authority.to_pems()[1], require_client_auth=True)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((control_handler(coordinator), bulk_handler(coordinator)))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield write_profile(folder / "admin", authority, f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
