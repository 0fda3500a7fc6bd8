"""Machines whose clocks are wrong: TLS fails, and whoever reads of it is told to look at the clocks, not at the firewall."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from fedscale import identity
from fedscale.errors import Unreachable
from fedscale.identity import Authority, Identity, Role
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.proto.v1 import control_pb2_grpc
from fedscale.wire.faults import CLOCK
from fedscale_client import rpc
from fedscale_server import reasons
from fedscale_server.control import Control
from fedscale_server.profile import Profile

DAY = timedelta(days=1)


def server_of(authority: Authority, made: datetime) -> tuple[grpc.Server, str]:
    """A coordinator whose certificate was made at a time, and its address."""
    key = identity.new_key()
    leaf = identity.certificate_pem(authority.issue_server(key.public_key(), ["127.0.0.1"], made, 90))
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(identity.key_pem(key), leaf)], authority.to_pems()[1], require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, f"127.0.0.1:{port}"


def profile_of(folder: Path, authority: Authority, address: str, made: datetime) -> Profile:
    """Somebody whose certificate was made at a time, for a year."""
    folder.mkdir()
    key = identity.new_key()
    leaf = authority.issue(identity.new_request(key, "admin"), Identity("testers", Role.COORDINATOR, "admin"), made, 365 * 24)
    for name, content in (("key.pem", identity.key_pem(key)), ("cert.pem", identity.certificate_pem(leaf)), ("ca.pem", authority.to_pems()[1])):
        (folder / name).write_bytes(content)
    (folder / "address").write_text(f"{address}\n")
    return Profile.load(folder)


@pytest.mark.parametrize(
    ("server_made", "caller_made", "words", "seen"),
    [
        (DAY, -DAY, reasons.EARLY, "by this machine's clock the server's certificate is not valid yet"),
        (-100 * DAY, -DAY, reasons.LATE, "by this machine's clock the server's certificate has expired"),
        (-DAY, DAY, reasons.CLOSED, rpc.REASONS["Socket closed"]),
    ],
    ids=["the caller is behind", "the caller is ahead", "the server is behind"],
)
def test_a_wrong_clock_is_named(tmp_path: Path, server_made: timedelta, caller_made: timedelta, words: str, seen: str) -> None:
    now = datetime.now(UTC)
    authority = identity.new_authority("testers", now - 400 * DAY)
    server, address = server_of(authority, now + server_made)
    profile = profile_of(tmp_path / "profile", authority, address, now + caller_made)
    try:
        with Control(profile) as called, pytest.raises(Unreachable) as raised:
            called.status()
        assert (raised.value.why, raised.value.hint) == (words, CLOCK)
        secure = grpc.ssl_channel_credentials(profile.authority, profile.key, profile.certificate)
        with grpc.secure_channel(address, secure) as channel, pytest.raises(grpc.RpcError) as failed:
            control_pb2_grpc.ControlStub(channel).Status(pb.StatusRequest(), timeout=30)
        told = rpc.error_of(failed.value, address)
        assert (type(told), told.why, told.hint) == (Unreachable, seen, CLOCK)
    finally:
        server.stop(None).wait()
