"""Certificates are short-lived; a node asks for a new one at half of their life, over the connection the old one opened."""

from __future__ import annotations

import asyncio
from datetime import datetime

import grpc.aio

from fedscale import files
from fedscale.errors import FedscaleError, ProtocolError
from fedscale.identity import CLIENT_AUTH, identity_of, load_certificate, load_key, new_request, verify_issued
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.proto.v1 import node_pb2_grpc
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome, NodeSettings
from fedscale_client.rpc import error_of, open_channel

CALL_SECONDS = 20.0
LEAST_PAUSE = 60.0
MOST_PAUSE = 3600.0


async def renew(home: NodeHome, now: datetime, server: NodeSettings | None = None) -> Credentials:
    """Ask for a new certificate for the same key and name, and keep it.

    Args:
        home: of the node.
        now: the time.
        server: the settings for the server to ask; by default those of ``node.toml``.

    Raises:
        Unreachable: the server does not answer.
        AccessDenied: the node was revoked.
        ProtocolError: the server sent something else than a certificate for this node.
    """
    settings, old = server or home.settings(), Credentials.of(home)
    request = pb.RenewRequest(request=new_request(load_key(old.key), settings.name))
    async with open_channel(settings, old, name="renewal") as channel:
        try:
            reply = await node_pb2_grpc.NodeStub(channel).Renew(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, settings.address) from None
    new = Credentials(old.key, reply.certificate, old.authority)
    _check(new, old, now)
    await asyncio.to_thread(files.write, home.certificate_file, new.certificate)
    return new


def pause(credentials: Credentials, now: datetime) -> float:
    """Seconds until the next look at the certificate; short enough for machines that sleep in between."""
    return min(max((credentials.renewable() - now).total_seconds(), LEAST_PAUSE), MOST_PAUSE)


def is_due(credentials: Credentials, now: datetime) -> bool:
    """Whether half of the certificate's life has passed."""
    return credentials.renewable() <= now


def _check(new: Credentials, old: Credentials, now: datetime) -> None:
    try:
        verify_issued(new.certificate, new.authority, now, CLIENT_AUTH)
        same_name = identity_of(new.certificate) == identity_of(old.certificate)
        same_key = load_certificate(new.certificate).public_key() == load_certificate(old.certificate).public_key()
    except FedscaleError as error:
        raise ProtocolError("the server sent a certificate that cannot be used", why=error.what) from None
    if not (same_name and same_key):
        raise ProtocolError("the server sent a certificate that cannot be used", why="it is for another name or key")
