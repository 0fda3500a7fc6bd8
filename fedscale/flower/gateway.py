"""A gateway for a stock ``flower-supernode``: where a node's dataset would be, a line to a site that still runs Flower.

A node whose loader returns a ``Gateway`` has its work done by the supernode that connects there, over gRPC up to flwr 1.39 and
over HTTP from 1.40 on. Nothing listens unless somebody makes one. Beyond this machine it wants TLS and the supernode's key.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import grpc
from flwr.app import Message

from fedscale.errors import AccessDenied, ConfigError, FedscaleError
from fedscale.flower import fab, signatures
from fedscale.flower.directory import Directory, Scalar
from fedscale.flower.fleet import CALLS, Errand, Fleet

SERVICE, PREFIX, MEDIA = "flwr.proto.Fleet", "/v1/fleet/", "application/protobuf"
MOST_BODY = 64 << 20
THREADS, GRACE = 8, 1.0
# So many calls or connections at a time; a supernode sends eight parts of a reply at once, and a sign of life.
MOST_CALLS = 64
# From one answer to the head of the next request; from there to the answer, and for all calls of a connection over gRPC.
SILENT_SECONDS, BODY_SECONDS = 60.0, 300.0


class Gateway:
    """Listens for one supernode.

    Attributes:
        exclusive: that no second process can have it, by which a node lets runs that use it take turns.

    Args:
        http: ``host:port`` for supernodes from flwr 1.40 on; port 0 takes a free one. Empty for none.
        rpc: ``host:port`` for supernodes up to flwr 1.39. Empty for none.
        tls: files of the private key and of the certificate, in PEM.
        keys: files of public keys in PEM or OpenSSH's form; with them no other supernode is let in.
        seconds: how long an answer may take.

    Raises:
        ConfigError: an address beyond this machine without ``tls`` and ``keys``, or one that is taken.
    """

    exclusive: Final = True

    def __init__(
        self,
        http: str = "127.0.0.1:0",
        rpc: str = "127.0.0.1:0",
        *,
        tls: tuple[str, str] | None = None,
        keys: Iterable[str] = (),
        seconds: float = 600.0,
    ) -> None:
        self._fleet, self._seconds = Fleet(), seconds
        known = frozenset(signatures.read(Path(key)) for key in keys)
        for address in filter(None, (http, rpc)):
            _require_safe(address, safe=bool(tls and known))
        self._check = signatures.Check(known)
        self._web = self._listen(http, tls) if http else None
        self._grpc: grpc.Server | None = None
        port = 0
        if rpc:
            self._grpc, port = self._serve(rpc, tls)
        self.http = f"{_host(http)}:{self._web.server_address[1]}" if self._web else ""
        self.rpc = f"{_host(rpc)}:{port}" if rpc else ""

    def close(self) -> None:
        """Listen no more."""
        if self._web is not None:
            self._web.shutdown()
            self._web.server_close()
        if self._grpc is not None:
            self._grpc.stop(GRACE).wait()

    def ask(self, message: Message, directory: Directory, config: Mapping[str, Scalar], run: int) -> Message:
        """The supernode's reply, an error of its ClientApp among them.

        Raises:
            Unreachable: there is none in time.
            ConfigError: a supernode would not take the app.
        """
        return self._fleet.ask(message, Errand(run, _packed(directory.path), config), self._seconds)

    def sender(self, signed: Mapping[str, bytes]) -> bytes:
        """The public key of who calls, by whichever door; nothing else of a call is read before.

        Raises:
            AccessDenied: it is not signed by a supernode that may come.
        """
        return self._check(signed)

    def answer(self, call: str, body: bytes, key: bytes) -> bytes:
        """What to say to a call.

        Args:
            call: its name.
            body: the request, in protobuf.
            key: whose call it is.

        Raises:
            AccessDenied: another supernode is connected.
            ProtocolError: it makes no sense.
        """
        return self._fleet.answer(call, body, key)

    def _listen(self, address: str, tls: tuple[str, str] | None) -> ThreadingHTTPServer:
        """The door for HTTP."""
        host, port = _split(address)
        try:
            server = _Web((host, port), self)
        except OSError as error:
            raise ConfigError(f"the gateway cannot listen on {address}", why=error.strerror or type(error).__name__) from None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(tls[1], tls[0])
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, name="flower-gateway", daemon=True).start()
        return server

    def _serve(self, address: str, tls: tuple[str, str] | None) -> tuple[grpc.Server, int]:
        """The door for gRPC."""
        options = [
            ("grpc.max_receive_message_length", MOST_BODY),
            ("grpc.so_reuseport", 0),
            # A call that does not end goes with its connection; a supernode connects again.
            ("grpc.max_connection_age_ms", int(BODY_SECONDS * 1000)),
            ("grpc.max_connection_age_grace_ms", int(BODY_SECONDS * 1000)),
        ]
        server = grpc.server(ThreadPoolExecutor(THREADS, "flower-gateway"), options=options, maximum_concurrent_rpcs=MOST_CALLS)
        server.add_generic_rpc_handlers((_Calls(self),))
        try:
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                pair = (Path(tls[0]).read_bytes(), Path(tls[1]).read_bytes())
                port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise ConfigError(f"the gateway cannot listen on {address}", why=str(error)) from None
        server.start()
        return server, port


class _Calls(grpc.GenericRpcHandler):
    """The methods of the door for gRPC. Who calls is seen before a thread waits for what is sent."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """What answers one call; none for a method that there is not."""
        service, _, call = handler_call_details.method.strip("/").rpartition("/")
        if service != SERVICE or call not in CALLS:
            return None
        try:
            key = self._gateway.sender(signatures.of_metadata(handler_call_details.invocation_metadata))
        except AccessDenied as error:
            return grpc.stream_unary_rpc_method_handler(partial(_refuse, error))
        return grpc.unary_unary_rpc_method_handler(partial(self._answer, call, key))

    def _answer(self, call: str, key: bytes, body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._gateway.answer(call, body, key)
        except FedscaleError as error:
            return _refuse(error, None, context)


def _refuse(error: FedscaleError, _: object, context: grpc.ServicerContext) -> bytes:
    """End a call without having read what is sent: to gRPC, as of a stream that nobody looks at."""
    context.abort(grpc.StatusCode.UNAUTHENTICATED if isinstance(error, AccessDenied) else grpc.StatusCode.INVALID_ARGUMENT, str(error))


class _Web(ThreadingHTTPServer):
    """The server of the door for HTTP, which lets each connection have its time."""

    daemon_threads = True

    def __init__(self, place: tuple[str, int], gateway: Gateway) -> None:
        super().__init__(place, _Visit)
        self.gateway = gateway
        self._ends: dict[Any, float] = {}

    def allow(self, visit: Any, seconds: float) -> None:
        """Let a connection last so long from now."""
        self._ends[visit] = time.monotonic() + seconds

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, unless too many have one."""
        if len(self._ends) >= MOST_CALLS:
            self.shutdown_request(request)
            return
        self.allow(request, SILENT_SECONDS)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        self._ends.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections whose time is over, whatever their threads wait for; called twice a second."""
        for visit in [visit for visit, ends in list(self._ends.items()) if time.monotonic() > ends]:
            with suppress(OSError):
                socket.socket.shutdown(visit, socket.SHUT_RDWR)


class _Visit(BaseHTTPRequestHandler):
    """One connection of a supernode."""

    protocol_version = "HTTP/1.1"
    timeout = SILENT_SECONDS
    server: _Web

    def handle(self) -> None:
        """All its calls; who is gone in the middle of one is no news."""
        with suppress(OSError):
            super().handle()

    def do_POST(self) -> None:
        """A call: ``/v1/fleet/pull-messages``."""
        size = self.headers.get("content-length", "")
        if not size.isdecimal() or int(size) > MOST_BODY:
            self._say(413, b"a request has a length that is not too large")
            return
        call = "".join(part.capitalize() for part in self.path.removeprefix(PREFIX).split("-")) if self.path.startswith(PREFIX) else ""
        try:
            key = self.server.gateway.sender(signatures.of_headers(self.headers))
            self.server.allow(self.connection, BODY_SECONDS)
            body = self.rfile.read(int(size))
            if len(body) < int(size):
                self.close_connection = True
                return
            self._say(200, self.server.gateway.answer(call, body, key))
            self.server.allow(self.connection, SILENT_SECONDS)
        except FedscaleError as error:
            self._say(401 if isinstance(error, AccessDenied) else 404 if call not in CALLS else 400, str(error).encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", MEDIA)
        self.send_header("content-length", str(len(body)))
        if status != 200:
            # What follows the head of a request that is refused may not have been read.
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A supernode that looks for work every three seconds is no news."""


@lru_cache(maxsize=8)
def _packed(folder: Path) -> fab.Parcel:
    return fab.pack(folder)


def _split(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"'{address}' is no host:port")
    return host.strip("[]"), int(port)


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _require_safe(address: str, *, safe: bool) -> None:
    """Refuse to listen in the clear where others can hear.

    Raises:
        ConfigError: the address is one.
    """
    host, _ = _split(address)
    try:
        found = {ipaddress.ip_address(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, ValueError) as error:
        raise ConfigError(f"there is no host '{host}'", why=type(error).__name__) from None
    if not safe and not all(place.is_loopback for place in found):
        raise ConfigError(f"the gateway would listen on {address} in the clear", hint="give tls= and keys=, or listen on 127.0.0.1 only")
