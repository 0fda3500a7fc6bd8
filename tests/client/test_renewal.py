"""Certificates are renewed at half of their life, over the connection the old one opens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedscale import identity
from fedscale.clock import ManualClock
from fedscale.errors import AccessDenied, FedscaleError, ProtocolError, Unreachable
from fedscale_client import renewal
from fedscale_client.credentials import Credentials
from fedscale_client.home import NodeHome
from tests.client.conftest import Start
from tests.client.coordinator import FEDERATION, Coordinator, until


def serial(credentials: Credentials) -> int:
    return identity.load_certificate(credentials.certificate).serial_number


async def test_a_new_certificate_for_the_same_key(coordinator: Coordinator, home: NodeHome) -> None:
    old = Credentials.of(home)
    new = await renewal.renew(home, datetime.now(UTC))
    assert Credentials.of(home) == new
    assert (new.key, new.authority) == (old.key, old.authority)
    assert serial(new) != serial(old)
    assert coordinator.renewed == ["mercy"]


@pytest.mark.parametrize("fault", ["another name", "another key", "another authority", "nonsense"])
async def test_a_certificate_that_cannot_be_used_is_not_kept(coordinator: Coordinator, home: NodeHome, fault: str) -> None:
    old = Credentials.of(home)
    request, other = identity.new_request(identity.load_key(old.key), "mercy"), identity.new_authority(FEDERATION, datetime.now(UTC))
    spoilt = {
        "another name": coordinator.issue(request, "victim", 24),
        "another key": coordinator.issue(identity.new_request(identity.new_key(), "mercy"), "mercy", 24),
        "another authority": coordinator.issue(request, "mercy", 24, other),
        "nonsense": b"?",
    }
    coordinator.spoil = lambda _: spoilt[fault]
    with pytest.raises(ProtocolError, match="a certificate that cannot be used"):
        await renewal.renew(home, datetime.now(UTC))
    assert Credentials.of(home) == old


@pytest.mark.parametrize(("refusal", "kind"), [(AccessDenied("revoked"), AccessDenied), (None, Unreachable)])
async def test_a_server_that_does_not_renew(
    coordinator: Coordinator, home: NodeHome, refusal: AccessDenied | None, kind: type[FedscaleError]
) -> None:
    coordinator.refuse = refusal
    if refusal is None:
        await coordinator.stop()
    with pytest.raises(kind):
        await renewal.renew(home, datetime.now(UTC))


def test_when_it_is_due(coordinator: Coordinator, home: NodeHome) -> None:
    credentials = Credentials.of(home)
    half = credentials.renewable()
    assert not renewal.is_due(credentials, half - timedelta(seconds=1))
    assert renewal.is_due(credentials, half)
    assert renewal.pause(credentials, half - timedelta(minutes=10)) == 600
    assert renewal.pause(credentials, half - timedelta(days=1)) == renewal.MOST_PAUSE
    assert renewal.pause(credentials, half + timedelta(days=1)) == renewal.LEAST_PAUSE


async def test_a_running_node_renews_and_uses_the_new_one(coordinator: Coordinator, tmp_path: Path, start: Start) -> None:
    home = coordinator.home(tmp_path / "short", "short", hours=0.05)
    old = Credentials.of(home)
    async with start(home) as node:
        await until(lambda: node.events("renewed"))
        assert Credentials.of(home).expires() > old.expires() + timedelta(hours=23)
        await coordinator.connected()
        await coordinator.stop()
        await coordinator.start()
        await coordinator.connected(2)
        clock = ManualClock(old.expires() + timedelta(hours=1))
        Credentials.of(home).check(clock.now())
    assert coordinator.renewed == ["short"]


async def test_a_failed_renewal_is_told_and_tried_again(
    coordinator: Coordinator, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LEAST_PAUSE", 0.05)
    home = coordinator.home(tmp_path / "short", "short", hours=0.05)
    coordinator.spoil = lambda _: b"?"
    async with start(home) as node:
        await until(lambda: len(node.events("not renewed")) >= 2)
        assert "cannot be used" in node.events("not renewed")[0]["error"]
        coordinator.spoil = lambda certificate: certificate
        await until(lambda: node.events("renewed"))
        assert node.events("disconnected") == []
