"""Who leads: alone for ever, among several by turns, and nobody who does not know it any more."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from fedscale.clock import ManualClock
from fedscale.errors import ConfigError, Unreachable
from fedscale_server.leadership import Leadership, Place
from fedscale_server.store.store import Store
from tests.server.running import until
from tests.server.samples import NOW

SECONDS = 0.6  # the lease's time is the clock's, which stands still; only how often it is looked at is real
RED, BLUE = Place("red:1", "red:2"), Place("blue:1", "blue:2")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


class Server:
    """A coordinator that does nothing but lead."""

    def __init__(self, store: Store, clock: ManualClock, place: Place, seconds: float = SECONDS) -> None:
        self.store, self.place = store, place
        self.happened: list[str] = []
        self.told: list[list[str]] = []
        self.leadership = Leadership(store, clock, place.address, seconds, lambda addresses: self.told.append(list(addresses)))

    async def begin(self, rise: Callable[[], Awaitable[None]] | None = None) -> None:
        await self.leadership.begin(self.place, rise or self.note("rise"), self.note("fall"))

    def note(self, what: str) -> Callable[[], Awaitable[None]]:
        async def noted() -> None:
            self.happened.append(f"{what} {self.store.epoch}")

        return noted

    async def leads(self) -> None:
        await until(lambda: self.leadership.leads)

    async def die(self) -> None:
        """End without letting go of the lease."""
        keeping = self.leadership._keeping
        assert keeping is not None
        keeping.cancel()
        await asyncio.wait({keeping})


@pytest.fixture
async def make(sqlite_at_head: Path, tmp_path: Path, clock: ManualClock, opened: Callable[[str], Store]) -> AsyncIterator[Callable[..., Server]]:
    """Coordinators on one database."""
    shutil.copy(sqlite_at_head, tmp_path / "server.db")
    made: list[Server] = []

    def server(place: Place, seconds: float = SECONDS) -> Server:
        made.append(Server(opened(f"sqlite:///{tmp_path / 'server.db'}"), clock, place, seconds))
        return made[-1]

    yield server
    for each in made:
        await each.leadership.end()


async def test_one_alone_leads_at_once_and_for_ever(make: Callable[..., Server], clock: ManualClock) -> None:
    red = make(RED, float("inf"))
    assert not red.leadership.leads
    await red.begin()
    assert red.happened == ["rise 1"]
    clock.advance(1e9)
    red.leadership.check()
    assert red.leadership.places == ()


async def test_a_database_of_another_one_is_left_alone(make: Callable[..., Server]) -> None:
    await make(RED, float("inf")).begin()
    blue = make(BLUE, float("inf"))
    with pytest.raises(ConfigError, match=r"the database is another coordinator's \(red:1 leads\); set 'replicas = true'"):
        await blue.begin()
    assert blue.happened == []
    assert blue.store.stands_by


async def test_one_alone_comes_back_at_once_after_a_crash(make: Callable[..., Server]) -> None:
    await make(RED, float("inf")).begin()
    again = make(RED, float("inf"))
    await again.begin()
    assert again.happened == ["rise 2"]


async def test_one_of_several_leads_and_the_others_stand_by(make: Callable[..., Server]) -> None:
    red, blue = make(RED), make(BLUE)
    await red.begin()
    await red.leads()
    await blue.begin()
    await until(lambda: blue.leadership._leader)
    assert red.happened == ["rise 1"]
    assert blue.happened == []
    with pytest.raises(Unreachable, match=r"blue:1: this coordinator stands by \(red:1 leads\); call another one"):
        blue.leadership.check()


async def test_before_the_first_leader_nobody_leads(make: Callable[..., Server]) -> None:
    with pytest.raises(Unreachable, match="nobody leads at the moment"):
        make(RED).leadership.check()


async def test_the_next_one_takes_over_when_the_lease_has_ended(make: Callable[..., Server], clock: ManualClock) -> None:
    red, blue = make(RED), make(BLUE)
    await red.begin()
    await red.leads()
    await blue.begin()
    await red.die()
    clock.advance(SECONDS)
    await blue.leads()
    assert red.happened == ["rise 1", "fall 0"]
    assert blue.happened == ["rise 2"]
    assert blue.store.epoch == 2


async def test_whoever_goes_down_lets_the_next_one_lead_at_once(make: Callable[..., Server]) -> None:
    red, blue = make(RED), make(BLUE)
    await red.begin()
    await red.leads()
    await blue.begin()
    await red.leadership.end()
    await blue.leads()
    assert blue.happened == ["rise 2"]


async def test_whoever_slept_through_its_lease_serves_nobody_and_steps_down(make: Callable[..., Server], clock: ManualClock) -> None:
    red, blue = make(RED), make(BLUE)
    await red.begin()
    await red.leads()
    clock.advance(SECONDS)
    assert not red.leadership.leads, "before it has looked at anything"
    assert blue.store.leases.take("blue:1", "blue:1", clock, SECONDS) == 2
    await until(lambda: "fall 0" in red.happened)
    assert red.store.stands_by
    await until(lambda: red.leadership._leader == "blue:1")
    clock.advance(SECONDS)
    await red.leads()
    assert red.happened == ["rise 1", "fall 0", "rise 3"]


async def test_a_lease_is_renewed(make: Callable[..., Server], clock: ManualClock) -> None:
    red = make(RED)
    await red.begin()
    await red.leads()
    first, known = red.leadership.held(), red.leadership._until
    clock.advance(SECONDS / 2)
    await until(lambda: (held := red.leadership.held()) and first and held.lease_until > first.lease_until)
    await until(lambda: red.leadership._until > known)
    clock.advance(SECONDS * 0.9)
    assert red.leadership.leads
    assert red.happened == ["rise 1"]


async def test_a_database_that_is_away_for_a_moment_costs_nothing(make: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    red = make(RED)
    await red.begin()
    await red.leads()
    refused: list[int] = []
    renew = red.store.leases.renew

    def refuse(*given: object) -> bool:
        refused.append(1)
        if len(refused) < 3:
            raise OperationalError("renew", {}, Exception("away"))
        return renew(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(red.store.leases, "renew", refuse)
    await until(lambda: len(refused) > 3)
    assert red.happened == ["rise 1"]
    assert red.leadership.leads


async def test_a_database_that_stays_away_ends_a_lead(make: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    red = make(RED)
    await red.begin()
    await red.leads()

    def refuse(*_: object, **__: object) -> bool:
        raise OperationalError("renew", {}, Exception("away"))

    for name in ("renew", "take"):
        monkeypatch.setattr(red.store.leases, name, refuse)
    await until(lambda: "fall 0" in red.happened)
    assert not red.leadership.leads
    monkeypatch.undo()
    red.store.leases.free("red:1", ManualClock(NOW))
    await red.leads()
    assert red.happened == ["rise 1", "fall 0", "rise 2"]


async def test_a_beginning_that_fails_is_tried_again(make: Callable[..., Server], clock: ManualClock) -> None:
    red = make(RED)

    async def rise() -> None:
        red.happened.append(f"rise {red.store.epoch}")
        if red.store.epoch == 1:
            raise OSError("the disk is full")

    await red.begin(rise)
    await until(lambda: "fall 0" in red.happened)
    assert not red.leadership.leads
    clock.advance(SECONDS)
    await red.leads()
    assert red.happened == ["rise 1", "fall 0", "rise 2"]


async def test_what_should_not_happen_ends_the_server(make: Callable[..., Server]) -> None:
    red = make(RED)

    async def rise() -> None:
        raise ZeroDivisionError

    await red.begin(rise)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(red.leadership.failed(), 30)


async def test_whoever_waits_for_the_end_does_not_bring_it_about(make: Callable[..., Server]) -> None:
    red = make(RED)
    await red.begin()
    await red.leads()
    waiting = asyncio.create_task(red.leadership.failed())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert red.leadership.leads
    assert red.happened == ["rise 1"]


async def test_coordinators_tell_of_each_other(make: Callable[..., Server]) -> None:
    red, blue = make(RED), make(BLUE)
    await red.begin()
    await blue.begin()
    await until(lambda: len(red.leadership.places) == len(blue.leadership.places) == 2)
    assert (red.leadership.places, blue.leadership.places) == ((RED, BLUE), (BLUE, RED))
    await until(lambda: red.told == [["red:1", "blue:1"]] and blue.told == [["blue:1", "red:1"]])
