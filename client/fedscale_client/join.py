"""Joining a federation: one ticket becomes a key, a certificate and a home.

The key is made here and never leaves. Before the ticket's secret is sent, the server must prove that it holds a
certificate of the very authority whose hash is in the ticket: its certificate is fetched, pinned as the only one the
channel trusts, and checked against the authority's.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509

from fedscale import files
from fedscale.errors import AccessDenied, ConfigError, Conflict, FedscaleError, TicketError, Unreachable
from fedscale.identity import (
    CLIENT_AUTH,
    PrivateKey,
    Ticket,
    identity_of,
    key_pem,
    load_certificate,
    load_key,
    new_key,
    new_request,
    valid_name,
    verify_issued,
)
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.proto.v1 import node_pb2_grpc
from fedscale.wire.limits import CHANNEL_OPTIONS
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings, parse, write_toml
from fedscale_client.keys import identity_key
from fedscale_client.rpc import REACH, error_of
from fedscale_client.standing import refusal

TIMEOUT = 30.0
ASK_SECONDS = 5.0
UNNAMED = "node"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXIES = ("no_grpc_proxy", "no_proxy")
T = TypeVar("T")


def join(ticket_text: str, home: Path, name: str | None = None, timeout: float = TIMEOUT) -> NodeHome:
    """Trade a ticket for a certificate and make the node's home.

    Args:
        ticket_text: the ticket as it was received.
        home: the folder to make; one whose certificate has expired, or was revoked, is given a new one and keeps its datasets and its ledger.
        name: what the node wishes to be called; by default what the ticket was made out for.
        timeout: seconds for everything together.

    Raises:
        TicketError: the ticket is malformed, unknown, used, expired, or the server is not the one it was made for.
        Conflict: there is a node in this home already.
        Unreachable: the server cannot be reached or does not answer in time; the same ticket is good for another attempt.
    """
    ticket, folder = Ticket.parse(ticket_text), NodeHome(home)
    wish = valid_name(name) if name else ""
    kept = _former(folder)
    _prepare(folder)
    places = ticket.places()
    for place in places[:-1]:
        # Any of several coordinators may lead; one that does not says so, and the ticket is as good as before.
        with contextlib.suppress(Unreachable):
            return _join(place, folder, wish, kept, timeout / len(places))
    return _join(places[-1], folder, wish, kept, timeout / len(places))


def _join(ticket: Ticket, folder: NodeHome, wish: str, kept: dict[str, object], timeout: float) -> NodeHome:
    """Trade a ticket at the one address it has."""
    ends = time.monotonic() + timeout
    leaf = _leaf(ticket, timeout)
    override = _other_name(leaf, ticket.endpoint[0])
    options = (*CHANNEL_OPTIONS, *((("grpc.ssl_target_name_override", override),) if override else ()))
    try:
        with grpc.secure_channel(ticket.address, grpc.ssl_channel_credentials(leaf), options) as channel:
            stub = node_pb2_grpc.EnrolmentStub(channel)
            authority = stub.Authority(pb.AuthorityRequest(), timeout=_left(ends)).certificate
            ticket.verify_server(leaf, authority, datetime.now(UTC))
            key = _key(folder)
            request = pb.JoinRequest(ticket=ticket.id, secret=ticket.secret, name=wish, request=new_request(key, wish or UNNAMED))
            reply = stub.Join(request, timeout=_left(ends))
    except grpc.RpcError as error:
        raise _explained(error_of(error, ticket.address)) from None
    credentials = Credentials(key_pem(key), reply.certificate, authority)
    federation = _checked(credentials, key)
    _write(folder, credentials, _settings(kept, reply, federation, leaf))
    folder.remember(reply.addresses)
    return folder


def _prepare(home: NodeHome) -> None:
    """Make the folder before the ticket is spent.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        files.private_folder(home.path)
    except OSError as error:
        raise ConfigError("the node's home cannot be made", where=str(home.path), why=error.strerror or "", hint="choose another --home") from None


def _key(home: NodeHome) -> PrivateKey:
    """A new key, or that of an attempt whose reply may have been lost: then the ticket is good for it alone."""
    with contextlib.suppress(OSError, ConfigError):
        return load_key(home.joining_file.read_bytes())
    key = new_key()
    files.write(home.joining_file, key_pem(key))
    return key


def _former(home: NodeHome) -> dict[str, object]:
    """The settings of a home whose certificate is of no use any more; nothing for a new one.

    Raises:
        Conflict: the node can still be used; a home is joined once.
    """
    if not home.settings_file.exists():
        return {}
    settings = home.settings()
    try:
        Credentials.of(home).check(datetime.now(UTC))
    except FedscaleError:
        return settings.model_dump()
    if isinstance(refusal(home, ASK_SECONDS), AccessDenied):
        return settings.model_dump()
    raise Conflict(f"node '{settings.name}' has joined already", where=str(home.path), hint="start it: fedscale node start, or use another --home")


def _leaf(ticket: Ticket, timeout: float) -> bytes:
    """The certificate the server shows, in PEM, unchecked. The thread bounds what sockets cannot: the look-up of the name."""
    host, port = ticket.endpoint
    try:
        return _within(lambda: _shown(host, port, timeout), timeout)
    except TimeoutError:
        why = "no answer in time"
    except socket.gaierror:
        why = "the host name is not known"
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
    raise Unreachable("the server cannot be reached", where=ticket.address, why=why, hint=REACH)


def _shown(host: str, port: int, timeout: float) -> bytes:
    """The certificate a server shows to a caller who trusts nobody, through the proxy that gRPC would take, if any."""
    proxy = next((os.environ[name] for name in PROXIES if os.environ.get(name)), "")
    if not proxy or any(urllib.request.proxy_bypass(host, {"no": os.environ.get(name, "")}) for name in NO_PROXIES):
        return ssl.get_server_certificate((host, port), timeout=timeout).encode()
    at = urllib.parse.urlsplit(proxy)
    tunnel = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=timeout)
    tunnel.set_tunnel(host, port)
    with contextlib.closing(tunnel):
        tunnel.connect()
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with unverified.wrap_socket(tunnel.sock, server_hostname=host) as secure:
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"").encode()


def _within(work: Callable[[], T], timeout: float) -> T:
    """The result of blocking work, or TimeoutError while it goes on in a thread nobody waits for."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result(timeout)
    finally:
        pool.shutdown(wait=False)


def _other_name(leaf: bytes, host: str) -> str:
    """A name in the server's certificate to expect in place of ``host``; empty when ``host`` is one of them.

    The name says nothing about trust here: the certificate is pinned, or issued by an authority that serves one federation.
    """
    try:
        names = load_certificate(leaf, TicketError).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    except (x509.ExtensionNotFound, ValueError):
        known = []
    if not known:
        raise TicketError("the server's certificate names no host", hint="check that the address is that of a coordinator")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        host = host.lower()
    return "" if host in known else known[0]


def _left(ends: float) -> float:
    """Seconds left; a little more than nothing, so that the call itself reports the end."""
    return max(ends - time.monotonic(), 0.001)


def _explained(error: FedscaleError) -> FedscaleError:
    """A refusal of the enrolment port always is about the ticket."""
    return TicketError(error.what, where=error.where, why=error.why, hint=error.hint) if isinstance(error, AccessDenied) else error


def _checked(credentials: Credentials, key: PrivateKey) -> str:
    """The federation of a certificate, once it is sure that it was issued for our key by the authority that was checked.

    Raises:
        TicketError: it was not.
    """
    verify_issued(credentials.certificate, credentials.authority, datetime.now(UTC), CLIENT_AUTH)
    if load_certificate(credentials.certificate, TicketError).public_key() != key.public_key():
        raise TicketError("the certificate the server issued is for another key")
    return identity_of(credentials.certificate).federation


def _settings(kept: dict[str, object], reply: pb.JoinReply, federation: str, leaf: bytes) -> NodeSettings:
    """What ``node.toml`` says: the site's own choices of before, everything else anew."""
    host = reply.address.rpartition(":")[0].strip("[]")
    given = {"name": reply.name, "federation": federation, "project": reply.project, "address": reply.address, "server_name": _other_name(leaf, host)}
    return parse(NodeSettings, {**kept, **given}, "the server's reply")


def _write(home: NodeHome, credentials: Credentials, settings: NodeSettings) -> None:
    """Make the home; ``node.toml`` comes last, so that a crash leaves a home that can join again."""
    files.write(home.key_file, credentials.key)
    files.write(home.certificate_file, credentials.certificate)
    files.write(home.authority_file, credentials.authority)
    identity_key(home)
    write_toml(home.settings_file, settings.model_dump())
    home.joining_file.unlink(missing_ok=True)
