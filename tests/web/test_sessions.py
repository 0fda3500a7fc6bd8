"""Logging in and out: passwords, links, guesses, planted tokens."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher

from fedscale import files
from fedscale.clock import ManualClock
from fedscale.errors import AccessDenied, ConfigError, Conflict, TicketError
from fedscale.identity import Role, secret_hash
from fedscale.web.links import LINK_SECONDS, Links, link, mint, withdraw
from fedscale.web.visitors import Visitor
from fedscale_server.web import accounts
from fedscale_server.web.accounts import Doorkeeper, new_account
from fedscale_server.web.gate import COOKIE
from fedscale_server.web.throttle import FORGET_SECONDS, FREE_MISSES, LONGEST_SECONDS, MOST_KEYS, Throttle
from tests.web.conftest import PASSWORD, Front, Guest

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


# ------------------------------------------------------------------------------------------------------------ passwords


async def test_the_right_password_logs_in_and_the_wrong_one_does_not_say_why(front: Front) -> None:
    front.account("grace")
    guest = front.guest()
    wrong = [await guest.login(*pair) for pair in (("grace", "wrong"), ("nobody", PASSWORD), ("", ""), ("grace\0", PASSWORD))]
    assert {(answer.status_code, answer.text) for answer in wrong} == {(403, wrong[0].text)}
    assert wrong[0].json()["error"]["what"] == "the name or the password is wrong"
    answer = await guest.login("grace")
    assert (answer.status_code, answer.json()) == (200, {"name": "grace", "role": "auditor"})
    assert (await guest.http.get("/api/session")).json() == {"name": "grace", "role": "auditor"}


async def test_the_cookie_is_out_of_reach_and_the_database_holds_no_token(front: Front) -> None:
    front.account("grace")
    guest = front.guest()
    answer = await guest.login("grace")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={guest.token};")
    for part in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert part in cookie
    assert "Domain" not in cookie
    assert front.store.login(guest.token, datetime.now(UTC)) is None
    stored = front.store.login(secret_hash(guest.token), datetime.now(UTC))
    assert stored is not None
    assert timedelta(hours=11) < stored.expires_at - datetime.now(UTC) <= timedelta(hours=12)
    account = front.store.account("grace")
    assert account is not None
    assert account.password.startswith("$argon2id$")
    assert PASSWORD not in account.password


async def test_a_login_takes_another_token_so_that_a_planted_one_is_worth_nothing(front: Front) -> None:
    front.account("grace")
    victim = front.guest("planted")
    await victim.open()
    assert victim.token == "planted"
    await victim.login("grace")
    first = victim.token
    assert first != "planted"
    assert (await front.guest("planted").http.get("/api/session")).status_code == 401
    await victim.login("grace")
    assert victim.token != first, "and so does a second login"


async def test_logging_out_ends_this_login_and_no_other(front: Front) -> None:
    front.account("grace")
    here, there = front.guest(), front.guest()
    for guest in (here, there):
        await guest.login("grace")
    taken = here.token
    assert (await here.ask("DELETE", "/api/session")).status_code == 204
    assert (await front.guest(taken).http.get("/api/session")).status_code == 401
    assert (await there.http.get("/api/session")).status_code == 200


async def guess(guest: Guest, count: int, name: str = "grace") -> list[int]:
    return [(await guest.login(name, f"guess number {at}")).status_code for at in range(count)]


@pytest.fixture
def standing(front: Front, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the server's clock, which go on when a test says so: a slow machine gives nobody time for another guess."""
    now = [front.running.engine.clock.monotonic()]
    monkeypatch.setattr(front.running.engine.clock, "monotonic", lambda: now[0])
    return now


async def test_guessing_is_slowed_even_for_who_then_knows_the_password(front: Front, standing: list[float]) -> None:
    front.account("grace")
    guest = front.guest()
    assert await guess(guest, FREE_MISSES) == [403] * FREE_MISSES
    answer = await guest.login("grace")
    assert (answer.status_code, answer.json()["error"]["what"]) == (429, "too many wrong passwords")
    assert int(answer.headers["retry-after"]) >= 1
    (began,) = standing
    standing[0] = began + 0.9
    assert (await guest.login("grace")).status_code == 429
    standing[0] = began + 1.0
    assert (await guest.login("grace")).status_code == 200


@pytest.mark.usefixtures("standing")
async def test_guesses_at_the_same_time_count_as_many(front: Front) -> None:
    front.account("grace")
    guests = [front.guest() for _ in range(3 * FREE_MISSES)]
    answers = await asyncio.gather(*(guest.login("grace", "a guess") for guest in guests))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [403] * FREE_MISSES + [429] * 2 * FREE_MISSES


def test_each_further_miss_doubles_the_wait() -> None:
    throttle, waits = Throttle(), []
    now = 0.0
    for _ in range(FREE_MISSES + 9):
        waits.append(throttle.wait("grace", now))
        now += waits[-1]
        throttle.miss("grace", now)
    assert waits == [0.0] * FREE_MISSES + [1, 2, 4, 8, 16, 32, LONGEST_SECONDS, LONGEST_SECONDS, LONGEST_SECONDS]
    assert throttle.wait("somebody else", now) == 0
    assert throttle.wait("grace", now + FORGET_SECONDS) == 0
    throttle.miss("grace", now + FORGET_SECONDS)
    assert throttle.wait("grace", now + FORGET_SECONDS) == 0, "after a quiet time the count begins anew"
    throttle.hit("grace")
    assert throttle.wait("grace", now + FORGET_SECONDS) == 0


def test_a_flood_of_names_does_not_fill_the_memory_nor_forget_who_is_slowed() -> None:
    throttle = Throttle()
    for at in range(2 * MOST_KEYS):
        throttle.miss(f"name {at}", at / MOST_KEYS)
    for _ in range(FREE_MISSES):
        throttle.miss("grace", 3.0)
    assert len(throttle._misses) <= MOST_KEYS
    assert throttle.wait("grace", 3.0) == 1.0


@pytest.mark.parametrize(
    ("name", "password", "error"),
    [("admin", PASSWORD, Conflict), ("No Name", PASSWORD, ConfigError), ("grace", "too short", AccessDenied), ("", PASSWORD, ConfigError)],
)
def test_accounts_that_are_refused(name: str, password: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        new_account(name, "auditor", password, NOW)


def test_nobodys_hash_is_checked_as_slowly_as_anybodys() -> None:
    assert PasswordHasher().check_needs_rehash(accounts.NOBODY) is False
    assert accounts._matches(accounts.NOBODY, PASSWORD) is False
    assert accounts._matches("no hash at all", PASSWORD) is False


# ---------------------------------------------------------------------------------------------------------------- links


async def test_a_link_opens_the_dashboard_once_for_the_operator(front: Front) -> None:
    address = link(front.running.path, time.time())
    page, _, token = address.partition("#")
    assert page == f"{front.address}/login"
    guest, second = front.guest(), front.guest()
    assert (await guest.enter(token)).json() == {"name": "admin", "role": "coordinator"}
    answer = await second.enter(token)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "TicketError")
    assert (await second.http.get("/api/session")).status_code == 401


def test_a_link_ends_after_two_minutes_and_with_its_server() -> None:
    links = Links("key")
    links.redeem(mint("key", 0.0), LINK_SECONDS - 1)
    for token, when in ((mint("key", 0.0), LINK_SECONDS), (mint("other key", 0.0), 1.0), ("", 1.0), ("1.2.3", 1.0), ("no dots", 1.0)):
        with pytest.raises(TicketError):
            links.redeem(token, when)


def test_every_part_of_a_link_is_signed() -> None:
    until, nonce, signature = mint("key", 0.0).split(".")
    for changed in (f"{until}0.{nonce}.{signature}", f"{until}.x{nonce}.{signature}", f"{until}.{nonce}.{signature[:-1]}0x"):
        with pytest.raises(TicketError, match="not of this server"):
            Links("key").redeem(changed, 1.0)


def test_used_links_are_remembered_only_as_long_as_they_could_be_used() -> None:
    links = Links("key")
    for at in range(10):
        links.redeem(mint("key", 100.0 * at), 100.0 * at)
    assert len(links._used) <= 2


def test_what_a_server_leaves_is_private_and_gone_when_it_stops(tmp_path: Any) -> None:
    folder = files.private_folder(tmp_path / "web")
    token = Links("key").leave(folder, "http://127.0.0.1:1", files.write)
    assert Links("another").leave(folder, "http://127.0.0.1:2", files.write) == token, "Prometheus keeps its token"
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "web", *(tmp_path / "web").iterdir())}
    assert modes == {"web": "0o700", "key": "0o600", "address": "0o600", "scrape": "0o600"}
    assert link(tmp_path, 0.0).startswith("http://127.0.0.1:2/login#120.")
    withdraw(tmp_path)
    with pytest.raises(ConfigError, match="no dashboard runs here"):
        link(tmp_path, 0.0)


# --------------------------------------------------------------------------------------------------------------- expiry


async def test_a_login_lasts_twelve_hours(front: Front) -> None:
    clock = ManualClock(NOW)
    door = Doorkeeper(front.store, Links("key"), clock)
    entered = await door.enter(mint("key", NOW.timestamp()))
    clock.advance(12 * 3600 - 1)
    assert await door.visitor(entered.token) == entered
    clock.advance(1)
    assert await door.visitor(entered.token) == Visitor(entered.token)
    await door.enter(mint("key", clock.now().timestamp()))
    assert front.store.login(secret_hash(entered.token), NOW) is None, "the next login clears what has expired"


def test_the_proof_tells_nothing_of_the_token_and_belongs_to_it_alone() -> None:
    one, other = Visitor("a" * 43), Visitor("b" * 43)
    assert one.proof == Visitor("a" * 43, "grace", Role.AUDITOR).proof
    assert one.proof != other.proof
    assert one.proof != secret_hash(one.token)
