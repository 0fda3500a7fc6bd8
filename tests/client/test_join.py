"""Joining with a ticket: what must be proved before the secret is sent, and what is left behind."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fedscale import identity
from fedscale.errors import AccessDenied, ConfigError, Conflict, FedscaleError, NotFound, TicketError, Unreachable
from fedscale_client import declarations
from fedscale_client.credentials import Credentials
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome, write_toml
from fedscale_client.join import join
from tests.client.conftest import Start, write_csv
from tests.client.coordinator import FEDERATION, Coordinator


async def joined(ticket: str, home: Path, name: str | None = None, timeout: float = 20.0) -> NodeHome:
    return await asyncio.to_thread(join, ticket, home, name, timeout)


async def refused(ticket: str, home: Path, kind: type[FedscaleError], timeout: float = 20.0) -> str:
    """The words of a refusal that left nothing behind."""
    with pytest.raises(kind) as caught:
        await joined(ticket, home, timeout=timeout)
    assert not NodeHome(home).settings_file.exists()
    assert not NodeHome(home).key_file.exists()
    return str(caught.value)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


async def test_a_ticket_becomes_a_home(coordinator: Coordinator, tmp_path: Path) -> None:
    home = await joined(coordinator.ticket("st-mary"), tmp_path / "new/node")
    settings, credentials = home.settings(), Credentials.of(home)
    assert (settings.name, settings.project, settings.address) == ("st-mary", "p", coordinator.address)
    assert (settings.federation, settings.server_name) == (FEDERATION, "")
    assert identity.identity_of(credentials.certificate).uri == f"fedscale://{FEDERATION}/node/st-mary"
    credentials.check(datetime.now(UTC))
    assert mode(home.path) == "0o700"
    assert {mode(path) for path in home.path.iterdir()} == {"0o600"}
    assert sorted(path.name for path in home.path.iterdir()) == ["ca.pem", "cert.pem", "identity.pem", "key.pem", "node.toml"]


async def test_a_ticket_is_traded_with_whichever_coordinator_leads(coordinator: Coordinator, tmp_path: Path) -> None:
    """One is down and one stands by; the third is told of in the home, for the day when it leads."""
    other = Coordinator()
    other.follow(coordinator)
    other.refuse = Unreachable("this coordinator stands by")
    coordinator.told = [coordinator.address, "one:1", "nonsense"]
    async with other:
        places = ",".join(f"127.0.0.1:{port}" for port in (9, other.enrolment_port, coordinator.enrolment_port))
        home = await joined(coordinator.ticket("st-mary", places), tmp_path / "node")
    assert home.settings().address == coordinator.address
    assert [server.address for server in home.servers()] == [coordinator.address, "one:1"]


async def test_where_nobody_leads_a_ticket_stays_as_it_was(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.refuse = Unreachable("this coordinator stands by")
    places = ",".join(f"127.0.0.1:{port}" for port in (coordinator.enrolment_port, 9))
    await refused(coordinator.ticket("st-mary", places), tmp_path / "node", Unreachable)
    assert [ticket.used for ticket in coordinator.tickets.values()] == [""]


async def test_a_node_that_joined_can_start(coordinator: Coordinator, tmp_path: Path, start: Start) -> None:
    home = await joined(coordinator.ticket(), tmp_path / "st-mary", "st-mary")
    async with start(home):
        assert (await coordinator.connected()).node == "st-mary"


async def test_the_key_never_leaves(coordinator: Coordinator, tmp_path: Path) -> None:
    home = await joined(coordinator.ticket(), tmp_path / "node", "a")
    key = identity.load_key(home.key_file.read_bytes())
    assert key.public_key() == identity.load_certificate(home.certificate_file.read_bytes()).public_key()


@pytest.mark.parametrize("forged", ["shown", "serving"])
async def test_the_secret_is_not_sent_to_somebody_in_between(tmp_path: Path, forged: str) -> None:
    """One shows an authority of its own; the other shows the true one but cannot have a certificate of it."""
    coordinator = Coordinator()
    other = identity.new_authority(FEDERATION, datetime.now(UTC))
    setattr(coordinator, forged, other)
    words = "not the one this ticket was made for" if forged == "shown" else "not signed by the authority"
    async with coordinator:
        assert re.search(words, await refused(coordinator.ticket(), tmp_path / "node", TicketError))
    assert [ticket.used for ticket in coordinator.tickets.values()] == [""]


async def test_a_members_certificate_cannot_serve(coordinator: Coordinator, tmp_path: Path) -> None:
    """A node of the federation holds a certificate of the true authority, but not one to serve with."""
    key = identity.new_key()
    leaf = coordinator.issue(identity.new_request(key, "evil"), "evil", 24)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(identity.key_pem(key), leaf)]))
    await server.start()
    assert re.search("names no host", await refused(coordinator.ticket(address=f"127.0.0.1:{port}"), tmp_path / "node", TicketError))
    await server.stop(0)


async def test_a_ticket_works_once(coordinator: Coordinator, tmp_path: Path) -> None:
    ticket = coordinator.ticket()
    await joined(ticket, tmp_path / "one", "one")
    assert re.search("used already.*ask for another", await refused(ticket, tmp_path / "two", TicketError))


async def test_a_wrong_secret(coordinator: Coordinator, tmp_path: Path) -> None:
    true = identity.Ticket.parse(coordinator.ticket())
    forged = identity.Ticket(true.address, true.id, "guessed", true.ca_hash)
    assert re.search("unknown", await refused(str(forged), tmp_path / "node", TicketError))
    assert not coordinator.tickets[true.id].used


@pytest.mark.parametrize(("text", "words"), [("hello", "not a ticket"), ("", "not a ticket"), ("fs9.abc", "version 9")])
async def test_not_a_ticket(tmp_path: Path, text: str, words: str) -> None:
    assert re.search(words, await refused(text, tmp_path / "node", TicketError))
    assert not (tmp_path / "node").exists()


async def test_a_cut_ticket(coordinator: Coordinator, tmp_path: Path) -> None:
    assert re.search("cut short", await refused(coordinator.ticket()[:-3], tmp_path / "node", TicketError))


async def test_a_bad_name(coordinator: Coordinator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a valid name"):
        await joined(coordinator.ticket(), tmp_path / "node", "St. Mary's")


async def test_a_second_join_is_refused(coordinator: Coordinator, tmp_path: Path) -> None:
    home = await joined(coordinator.ticket(), tmp_path / "node", "one")
    key, ticket = home.key_file.read_bytes(), coordinator.ticket()
    with pytest.raises(Conflict, match="node 'one' has joined already"):
        await joined(ticket, tmp_path / "node", "two")
    assert home.key_file.read_bytes() == key
    assert [bool(ticket.used) for ticket in coordinator.tickets.values()] == [True, False]


async def test_an_expired_node_joins_again_and_keeps_what_is_its_own(coordinator: Coordinator, tmp_path: Path) -> None:
    home = coordinator.home(tmp_path / "node", "mercy", hours=1 / 36_000)
    declarations.add(home, "heart", Declaration(kind="csv", path=str(write_csv(tmp_path / "h.csv")), label="y"))
    write_toml(home.settings_file, {**home.settings().model_dump(), "workers": 7})
    ends = Credentials.of(home).expires()
    async with asyncio.timeout(10):
        while datetime.now(UTC) < ends:
            await asyncio.sleep(0.02)
    again = await joined(coordinator.ticket("mercy"), home.path)
    Credentials.of(again).check(datetime.now(UTC))
    assert again.settings().workers == 7
    assert list(declarations.listed(again)) == ["heart"]


async def test_a_revoked_node_joins_again_and_keeps_what_is_its_own(coordinator: Coordinator, tmp_path: Path) -> None:
    home = coordinator.home(tmp_path / "node", "mercy")
    declarations.add(home, "heart", Declaration(kind="csv", path=str(write_csv(tmp_path / "h.csv")), label="y"))
    key, ticket = home.key_file.read_bytes(), coordinator.ticket("mercy")
    with pytest.raises(Conflict, match="has joined already"):
        await joined(ticket, home.path)
    coordinator.refuse_bulk = AccessDenied("'mercy' was revoked", hint="ask the coordinator")
    again = await joined(ticket, home.path)
    assert again.key_file.read_bytes() != key
    assert list(declarations.listed(again)) == ["heart"]


@pytest.mark.parametrize("problem", [None, Unreachable("another coordinator leads"), NotFound("no such answer")])
async def test_a_node_that_is_not_refused_keeps_its_place(coordinator: Coordinator, tmp_path: Path, problem: FedscaleError | None) -> None:
    home, coordinator.refuse_bulk = coordinator.home(tmp_path / "node", "mercy"), problem
    with pytest.raises(Conflict, match="has joined already"):
        await joined(coordinator.ticket("mercy"), home.path)


async def test_a_home_whose_key_was_lost_joins_again(coordinator: Coordinator, tmp_path: Path) -> None:
    home = coordinator.home(tmp_path / "node")
    home.key_file.unlink()
    again = await joined(coordinator.ticket("mercy"), home.path)
    Credentials.of(again).check(datetime.now(UTC))
    assert again.settings().name == "mercy"


async def test_a_home_that_cannot_be_made_costs_no_ticket(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="home cannot be made"):
        await joined(coordinator.ticket(), tmp_path / "file/node", "one")
    assert [ticket.used for ticket in coordinator.tickets.values()] == [""]


async def test_a_crash_while_writing_leaves_a_home_that_has_not_joined(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, tree: dict[str, object]) -> None:
        raise OSError(28, "No space left on device")

    ticket = coordinator.ticket()
    monkeypatch.setattr("fedscale_client.join.write_toml", crash)
    with pytest.raises(OSError, match="No space"):
        await joined(ticket, tmp_path / "node", "one")
    with pytest.raises(ConfigError, match="has not joined"):
        NodeHome(tmp_path / "node").settings()
    monkeypatch.undo()
    assert (await joined(ticket, tmp_path / "node", "one")).settings().name == "one"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_reply_that_is_lost_costs_no_ticket(coordinator: Coordinator, tmp_path: Path, times: int) -> None:
    """The key that the ticket was used for is kept until its certificate is here."""
    ticket, coordinator.lose_replies = coordinator.ticket("mercy"), times
    for _ in range(times):
        await refused(ticket, tmp_path / "node", Unreachable)
        assert mode(NodeHome(tmp_path / "node").joining_file) == "0o600"
    home = await joined(ticket, tmp_path / "node")
    Credentials.of(home).check(datetime.now(UTC))
    assert not home.joining_file.exists()
    await refused(ticket, tmp_path / "other", TicketError)


async def test_a_kept_key_that_is_damaged_is_made_anew(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    NodeHome(tmp_path / "node").joining_file.write_bytes(b"-----BEGIN")
    home = await joined(coordinator.ticket("mercy"), tmp_path / "node")
    Credentials.of(home).check(datetime.now(UTC))
    assert not home.joining_file.exists()


async def test_a_crash_while_joining_again_leaves_a_home_that_can_join_once_more(coordinator: Coordinator, tmp_path: Path) -> None:
    home = coordinator.home(tmp_path / "node")
    write_toml(home.settings_file, {**home.settings().model_dump(), "workers": 7})
    home.key_file.write_bytes(identity.key_pem(identity.new_key()))
    again = await joined(coordinator.ticket("mercy"), home.path)
    Credentials.of(again).check(datetime.now(UTC))
    assert again.settings().workers == 7


async def test_nothing_listens(coordinator: Coordinator, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert re.search(f"{address}.*refused.*check the address", await refused(coordinator.ticket(address=address), tmp_path / "node", Unreachable))


async def test_something_silent_listens(coordinator: Coordinator, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        assert re.search(
            "no answer in time|timed out", await refused(coordinator.ticket(address=address), tmp_path / "node", Unreachable, timeout=0.5)
        )


async def test_something_else_listens(coordinator: Coordinator, tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as other:
        address = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
        assert re.search("cannot be reached", await refused(coordinator.ticket(address=address), tmp_path / "node", Unreachable))


async def test_an_unknown_host(coordinator: Coordinator, tmp_path: Path) -> None:
    assert re.search("host name is not known", await refused(coordinator.ticket(address="no-such-host.invalid:8471"), tmp_path / "node", Unreachable))


async def test_a_server_that_stalls_after_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = asyncio.Event()

    async def never(self: Coordinator, request: object, context: object) -> None:
        stalled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Coordinator, "Authority", never)
    async with Coordinator() as deaf:
        assert re.search("no answer in time", await refused(deaf.ticket(), tmp_path / "node", Unreachable, timeout=4.0))
    assert stalled.is_set()


async def test_a_server_behind_another_name(tmp_path: Path, start: Start) -> None:
    """Behind address translation the address is in no certificate; that it is the right one is sure all the same."""
    coordinator = Coordinator(hosts=("fl.example.org",))
    async with coordinator:
        home = await joined(coordinator.ticket(), tmp_path / "far", "far")
        assert home.settings().server_name == "fl.example.org"
        async with start(home):
            assert (await coordinator.connected()).node == "far"


@pytest.mark.parametrize("fault", ["another key", "another authority", "nonsense"])
async def test_a_certificate_that_is_not_ours(coordinator: Coordinator, tmp_path: Path, fault: str) -> None:
    if fault == "another authority":
        coordinator.issuing = identity.new_authority(FEDERATION, datetime.now(UTC))
    else:
        other = coordinator.issue(identity.new_request(identity.new_key(), "x"), "x", 24)
        coordinator.spoil = lambda _: other if fault == "another key" else b"-----BEGIN CERTIFICATE-----\n"
    assert re.search("for another key|not signed|cannot be read", await refused(coordinator.ticket(), tmp_path / "node", TicketError))


@asynccontextmanager
async def proxy(seen: list[str], answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> AsyncIterator[str]:
    """An HTTP proxy that only knows CONNECT."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(request.split()[1])
        writer.write(answer)
        if b" 200 " in answer:
            host, port = seen[-1].rsplit(":", 1)
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


async def test_through_a_proxy(coordinator: Coordinator, tmp_path: Path, no_proxies: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    async with proxy(seen) as url:
        no_proxies.setenv("https_proxy", url)
        await joined(coordinator.ticket(), tmp_path / "node", "inside")
    assert seen == [f"127.0.0.1:{coordinator.enrolment_port}"] * 2


async def test_a_proxy_that_is_not_for_this_host(coordinator: Coordinator, tmp_path: Path, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("https_proxy", "http://127.0.0.1:9")
    no_proxies.setenv("no_proxy", "127.0.0.1")
    assert (await joined(coordinator.ticket(), tmp_path / "node", "inside")).settings().name == "inside"


async def test_a_proxy_that_says_no(coordinator: Coordinator, tmp_path: Path, no_proxies: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    async with proxy(seen, b"HTTP/1.1 403 Forbidden\r\n\r\n") as url:
        no_proxies.setenv("https_proxy", url)
        assert re.search("cannot be reached", await refused(coordinator.ticket(), tmp_path / "node", Unreachable))
    assert seen
