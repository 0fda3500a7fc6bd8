"""The server's certificate is renewed while it serves: old connections go on, new ones see the new certificate."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedscale.clock import ManualClock
from fedscale.errors import ConfigError
from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server import certificates as certificates_module
from fedscale_server import home as home_module
from fedscale_server.certificates import Certificates
from fedscale_server.home import SERVER_DAYS, Home
from fedscale_server.settings import Settings
from tests.server.running import Running, soon, until


def shown(address: str) -> int:
    """The serial number of the certificate a server greets with."""
    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


def serial(home: Path) -> int:
    """The same of the one in the server's home."""
    return x509.load_pem_x509_certificate((home / "server" / "cert.pem").read_bytes()).serial_number


async def test_a_certificate_is_renewed_without_a_restart(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates_module, "LOOK_SECONDS", 0.05)
    await server.restart()
    node = await server.node("ada")
    first = await soon(asyncio.to_thread(shown, server.ready.enrolment))
    with monkeypatch.context() as due:
        due.setattr(home_module, "_due", lambda *_: True)
        await until(lambda: serial(server.path) != first)
    # Looking goes on; the certificate is young again and stays.
    await until(lambda: serial(server.path) == shown(server.ready.enrolment))
    assert serial(server.path) != first
    async with node.credentials.channel(server.ready.address) as channel:
        await soon(channel.channel_ready())
    assert node.connected
    assert (await server.admin.control.Status(pb.StatusRequest())).federation == "fedscale"


async def test_a_home_that_cannot_be_written_leaves_the_server_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    settings = Settings(port=0, enrolment_port=0)
    certificates = Certificates(Home.create(tmp_path / "server", settings, now))
    former, tries = certificates._pair, 0

    def refused(*_: object) -> bool:
        nonlocal tries
        tries += 1
        raise ConfigError("the server's home cannot be written") if tries == 1 else OSError("no space")

    monkeypatch.setattr(Home, "refresh", refused)
    monkeypatch.setattr(certificates_module, "LOOK_SECONDS", 0.0)
    keeping = asyncio.create_task(certificates.keep(settings, ManualClock(now)))
    await until(lambda: tries >= 3)
    assert not keeping.done()
    assert certificates._pair is former
    keeping.cancel()


def test_a_certificate_that_is_young_is_kept(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    settings = Settings(port=0, enrolment_port=0)
    certificates = Certificates(Home.create(tmp_path / "server", settings, now))
    former = certificates._pair
    certificates.renew(settings, ManualClock(now + timedelta(days=1)))
    assert certificates._pair is former
    certificates.renew(settings, ManualClock(now + timedelta(days=SERVER_DAYS * 0.8)))
    assert certificates._pair != former
    assert certificates._pair[0] == former[0]
