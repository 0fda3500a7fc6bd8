"""Real handshakes over loopback: what gRPC and OpenSSL make of the certificates that the authority issues."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import grpc
import pytest

from fedscale import identity
from fedscale.errors import TicketError
from fedscale.identity import Authority, Identity, Role, Ticket

NOW = datetime.now(UTC)
DEADLINE = 60
ANNA = Identity("heart", Role.NODE, "anna")
Pair = tuple[bytes, bytes]
Method = Callable[[bytes, grpc.ServicerContext], bytes]


@dataclass
class Server:
    """A gRPC server on loopback; ``calls`` are the requests that passed the handshake and reached a method."""

    methods: dict[str, Method]
    port: int = 0
    calls: list[bytes] = field(default_factory=list)

    def handler(self, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append(request)
            return method(request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


def who(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """The URI of the caller, from nothing but its certificate."""
    (pem,) = cast("list[bytes]", context.auth_context()["x509_pem_cert"])
    return identity.identity_of(pem).uri.encode()


@contextmanager
def serving(pair: Pair, clients: bytes | None = None, **methods: Method) -> Iterator[Server]:
    """Serve ``methods`` with a key and a certificate; with ``clients``, only callers with a certificate of that authority."""
    server = Server(methods)
    pool = futures.ThreadPoolExecutor(2)
    grpc_server = grpc.server(pool)
    handlers = {name: server.handler(method) for name, method in methods.items()}
    grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    credentials = grpc.ssl_server_credentials([pair], root_certificates=clients, require_client_auth=clients is not None)
    server.port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    grpc_server.start()
    try:
        yield server
    finally:
        grpc_server.stop(None).wait(DEADLINE)
        pool.shutdown()


def call(port: int, root: bytes, method: str, request: bytes = b"", client: Pair = (b"", b"")) -> bytes:
    """One call over TLS that trusts ``root``; ``client`` is the caller's key and certificate."""
    key, chain = client
    credentials = grpc.ssl_channel_credentials(root, key or None, chain or None)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=[("grpc.enable_http_proxy", 0)]) as channel:
        remote = channel.unary_unary(f"/test/{method}", request_serializer=bytes, response_deserializer=bytes)
        return remote(request, timeout=DEADLINE)


def refused(port: int, root: bytes, method: str = "who", request: bytes = b"", client: Pair = (b"", b"")) -> bool:
    """Whether the handshake fails, which gRPC reports as unavailable."""
    with pytest.raises(grpc.RpcError) as error:
        call(port, root, method, request, client)
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    return True


@pytest.fixture(scope="module")
def authority() -> Authority:
    return identity.new_authority("heart", NOW)


@pytest.fixture(scope="module")
def impostor() -> Authority:
    """Another authority under the same names."""
    return identity.new_authority("heart", NOW)


def ca_of(authority: Authority) -> bytes:
    return authority.to_pems()[1]


def server_pair(authority: Authority, *hosts: str) -> Pair:
    key = identity.new_key()
    return identity.key_pem(key), identity.certificate_pem(authority.issue_server(key.public_key(), hosts or ("127.0.0.1",), NOW))


def member_pair(authority: Authority, member: Identity = ANNA, now: datetime = NOW) -> Pair:
    key = identity.new_key()
    return identity.key_pem(key), identity.certificate_pem(authority.issue(identity.new_request(key, member.name), member, now))


# ----------------------------------------------------------------------------------------------------------- mutual TLS


@pytest.mark.parametrize("role", Role)
def test_a_member_is_known_by_its_certificate(authority: Authority, role: Role) -> None:
    member = Identity("heart", role, "st-anna.2")
    with serving(server_pair(authority), ca_of(authority), who=who) as server:
        assert call(server.port, ca_of(authority), "who", client=member_pair(authority, member)) == member.uri.encode()


def test_a_server_of_the_authority_is_accepted_without_a_client_certificate(authority: Authority) -> None:
    with serving(server_pair(authority, "localhost", "127.0.0.1"), echo=lambda request, _: request) as server:
        assert call(server.port, ca_of(authority), "echo", b"hello") == b"hello"


STRANGERS: dict[str, Callable[[Authority, Authority], Pair]] = {
    "no certificate": lambda _, __: (b"", b""),
    "another authority's": lambda _, impostor: member_pair(impostor),
    "expired": lambda authority, _: member_pair(authority, now=NOW - timedelta(hours=25)),
    "not valid yet": lambda authority, _: member_pair(authority, now=NOW + timedelta(days=30)),  # long after the last test
    "a server's": lambda authority, _: server_pair(authority),
    "signed by a member": lambda authority, _: member_pair(
        Authority(identity.load_key((pair := member_pair(authority))[0]), identity.load_certificate(pair[1])),
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_reaches_no_method(authority: Authority, impostor: Authority, stranger: Callable[[Authority, Authority], Pair]) -> None:
    with serving(server_pair(authority), ca_of(authority), who=who) as server:
        assert refused(server.port, ca_of(authority), client=stranger(authority, impostor))
        assert server.calls == []


WRONG_SERVERS: dict[str, Callable[[Authority, Authority], Pair]] = {
    "another authority's": lambda _, impostor: server_pair(impostor),
    "another host's": lambda authority, _: server_pair(authority, "10.0.0.1", "fl.example.org"),
    "a member's": lambda authority, _: member_pair(authority),
}


@pytest.mark.parametrize("wrong", WRONG_SERVERS.values(), ids=WRONG_SERVERS)
def test_a_client_sends_nothing_to_a_wrong_server(authority: Authority, impostor: Authority, wrong: Callable[[Authority, Authority], Pair]) -> None:
    with serving(wrong(authority, impostor), who=who) as server:
        assert refused(server.port, ca_of(authority), request=b"secret")
        assert server.calls == []


def test_openssl_accepts_the_chain_at_its_strictest(authority: Authority) -> None:
    context = ssl.create_default_context(cadata=ca_of(authority).decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    with (
        serving(server_pair(authority), who=who) as server,
        socket.create_connection(("127.0.0.1", server.port), DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        names = secure.getpeercert()
    assert names is not None
    assert names["subjectAltName"] == (("IP Address", "127.0.0.1"),)


# ------------------------------------------------------------------------------------------------------------ enrolment


@dataclass
class Coordinator:
    """What enrolment needs of a coordinator: its authority and the hashes of the tickets that nobody has used yet."""

    authority: Authority
    unused: dict[str, str] = field(default_factory=dict)

    def invite(self, port: int) -> str:
        ticket = identity.new_ticket(f"127.0.0.1:{port}", identity.spki_hash(self.authority.certificate.public_key()))
        self.unused[ticket.id] = identity.secret_hash(ticket.secret)
        return str(ticket)

    def root(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        return ca_of(self.authority)

    def enrol(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        ticket_id, secret, csr = request.split(b"\n", 2)
        if identity.secret_hash(secret.decode()) != self.unused.pop(ticket_id.decode(), ""):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "unknown ticket")
        return identity.certificate_pem(self.authority.issue(csr, ANNA, NOW))


def join(token: str) -> tuple[Pair, bytes]:
    """What a node does with a ticket: meet a leaf, ask that very leaf for its authority, check both, and only then send the secret."""
    ticket = Ticket.parse(token)
    leaf = ssl.get_server_certificate(ticket.endpoint, timeout=DEADLINE).encode()
    ca = call(ticket.endpoint[1], leaf, "root")
    ticket.verify_server(leaf, ca, NOW)
    key = identity.new_key()
    request = b"\n".join([ticket.id.encode(), ticket.secret.encode(), identity.new_request(key, "anna")])
    return (identity.key_pem(key), call(ticket.endpoint[1], ca, "enrol", request)), ca


def test_a_node_joins_with_a_ticket_alone_and_only_once(authority: Authority) -> None:
    coordinator = Coordinator(authority)
    with serving(server_pair(authority), root=coordinator.root, enrol=coordinator.enrol) as enrolment:
        token = coordinator.invite(enrolment.port)
        client, ca = join(token)
        with pytest.raises(grpc.RpcError, match="unknown ticket"):
            join(token)
    assert ca == ca_of(authority)
    assert identity.spki_hash(identity.load_certificate(ca).public_key()) == Ticket.parse(token).ca_hash
    identity.verify_issued(client[1], ca, NOW, identity.CLIENT_AUTH)
    with serving(server_pair(authority), ca, who=who) as server:
        assert call(server.port, ca, "who", client=client) == ANNA.uri.encode()


def test_a_leaf_as_trust_root_means_that_leaf_and_no_other(authority: Authority) -> None:
    with serving(server_pair(authority), who=who) as other, serving(server_pair(authority), echo=lambda request, _: request) as server:
        leaf = ssl.get_server_certificate(("127.0.0.1", server.port), timeout=DEADLINE).encode()
        identity.verify_issued(leaf, ca_of(authority), NOW)
        assert call(server.port, leaf, "echo", b"hello") == b"hello"
        assert refused(other.port, leaf)
        assert other.calls == []


IMPOSTOR_SHOWS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "its own authority": lambda _, own: own,
    "the true authority": lambda true, _: true,
    "both": lambda true, own: true + own,
    "both, the other way round": lambda true, own: own + true,
    "the true one and its own in disguise": lambda true, own: true + own.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-"),
    "nothing": lambda _, __: b"",
}


@pytest.mark.parametrize("shows", IMPOSTOR_SHOWS.values(), ids=IMPOSTOR_SHOWS)
def test_an_impostor_never_sees_the_secret(authority: Authority, impostor: Authority, shows: Callable[[bytes, bytes], bytes]) -> None:
    shown = shows(ca_of(authority), ca_of(impostor))
    with serving(server_pair(impostor), root=lambda _, __: shown, enrol=lambda _, __: b"") as server:
        token = Coordinator(authority).invite(server.port)
        with pytest.raises(TicketError):
            join(token)
        assert server.calls == [b""]


@pytest.mark.parametrize("pair", [member_pair, lambda authority: server_pair(authority, "fl.example.org")], ids=["member", "another host"])
def test_a_certificate_of_the_federation_is_not_enough_to_pose_as_its_server(authority: Authority, pair: Callable[[Authority], Pair]) -> None:
    coordinator = Coordinator(authority)
    with serving(pair(authority), root=coordinator.root, enrol=coordinator.enrol) as server:
        with pytest.raises(grpc.RpcError):
            join(coordinator.invite(server.port))
        assert server.calls == []
