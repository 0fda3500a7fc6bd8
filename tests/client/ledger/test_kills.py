"""A ledger that dies at any moment has counted everything that may have left.

Most deaths are planted in this process, before and after each write that makes something durable; some are real SIGKILLs of
another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlmodel import Session

from fedscale import files
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from tests.client.ledger.samples import claim, home_at, parcel

PARTS, HOMES, LIVES = 10, 10, 10
MOST_WRITES = 14


class Death(BaseException):
    """The process ends here."""


@dataclass
class Fuse:
    """Lets a process live for so many durable steps."""

    left: int
    burnt: list[str] = field(default_factory=list)

    def burn(self, where: str) -> None:
        if self.left == 0:
            self.burnt.append(where)
            raise Death(where)
        self.left -= 1

    def around(self, name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def burning(*arguments: Any, **options: Any) -> Any:
            self.burn(f"before {name}")
            done = write(*arguments, **options)
            self.burn(f"after {name}")
            return done

        return burning


@contextmanager
def burning(fuse: Fuse) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)  # the machine goes on living
        patch.setattr("fedscale_client.ledger.book.PRAGMAS", ("busy_timeout=60000", "journal_mode=WAL", "synchronous=OFF"))
        patch.setattr(Session, "commit", fuse.around("entry", Session.commit))
        patch.setattr("fedscale_client.ledger.head.files.write", fuse.around("head", files.write))
        yield


@dataclass
class Truth:
    """What the world outside of the ledger knows."""

    asked: int = 0
    owed: set[int] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    room: set[str] = field(default_factory=set)
    let_go: set[str] = field(default_factory=set)

    def live(self, site: NodeHome, random: Random) -> None:
        """Tasks, one after the other, until death: an answer leaves as soon as ``release`` returns."""
        ledger = Ledger.open(site)
        while True:
            self.asked += 1
            run = f"run-{self.asked}"
            reservation = ledger.reserve(claim(self.asked, run=run, answers=3, until="9999-01-01T00:00:00+00:00"), None)
            self.owed.add(reservation)
            self.room.add(run)
            if random.random() < 0.25:
                self.room.discard(run)
                ledger.free(run, "the run is over")
                self.let_go.add(run)
            if random.random() < 0.25:
                self.owed.discard(reservation)
                ledger.refund(reservation, "nothing left")
                continue
            ledger.release(reservation, parcel(f"{self.asked:x}"))
            self.left.add(parcel(f"{self.asked:x}").digest)
            if random.random() < 0.75:
                ledger.commit(reservation, "accepted")

    def check(self, site: NodeHome) -> None:
        ledger = Ledger.open(site)
        assert ledger.verify() == ""
        items = ledger.items()
        counted = {item.seq for item in items if item.refund is None}
        assert self.owed <= counted
        assert len(items) <= self.asked
        assert self.left <= {item.release["digest"] for item in items if item.release}
        kept = {hold.run for hold in ledger.holds()}
        assert self.room <= kept
        assert not self.let_go & kept


@pytest.mark.parametrize("part", range(PARTS))
def test_a_thousand_deaths_never_undercount(tmp_path: Path, part: int) -> None:
    random, places = Random(part), list[str]()
    for number in range(HOMES):
        site, truth = home_at(tmp_path / str(number)), Truth()
        for _ in range(LIVES):
            fuse = Fuse(random.randrange(MOST_WRITES))
            with burning(fuse), pytest.raises(Death):
                truth.live(site, random)
            places += fuse.burnt
        truth.check(site)
    assert len(places) == HOMES * LIVES
    assert {place: places.count(place) > 5 for place in set(places)} == {
        f"{side} {what}": True for side in ("before", "after") for what in ("entry", "head")
    }


@pytest.mark.parametrize("left", range(MOST_WRITES))
def test_after_each_death_the_books_are_right_and_go_on(site: NodeHome, left: int) -> None:
    random, truth = Random(left), Truth()
    with burning(Fuse(left)), pytest.raises(Death):
        truth.live(site, random)
    truth.check(site)
    truth.asked += 1
    truth.owed.add(Ledger.open(site).reserve(claim(99), None))
    truth.check(site)


# A child reports each step once it has returned; its parent kills it after a random number of reports.
KILLER = """
import json, os, signal, sys
from pathlib import Path
from random import Random
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from tests.client.ledger.samples import claim, parcel

site, random, told = NodeHome(Path(sys.argv[1])), Random(7), []
for life in range(int(sys.argv[2])):
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        ledger = Ledger.open(site)
        for number in range(1_000_000):  # the pipe holds it up before it is through, should nobody come to kill it
            reservation = ledger.reserve(claim(1_000_000 * life + number), None)
            os.write(sending, b"reserved %d\\n" % reservation)
            ledger.release(reservation, parcel(f"{1_000_000 * life + number:x}"))
            os.write(sending, b"released %d\\n" % reservation)
            ledger.commit(reservation, "accepted")
            os.write(sending, b"committed %d\\n" % reservation)
        os._exit(9)
    os.close(sending)
    heard, most = b"", random.randrange(12)
    with os.fdopen(receiving, "rb", buffering=0) as reports:
        while heard.count(b"\\n") < most and (more := reports.read(64)):
            heard += more
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        while more := reports.read(4096):
            heard += more
    told += heard.decode().splitlines()
print(json.dumps(told))
"""


def test_real_kills_never_undercount(site: NodeHome, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLER, str(site.path), "20"], cwd=root, capture_output=True, text=True, check=True, timeout=100)
    told = [(step, int(number)) for step, number in (line.split() for line in json.loads(done.stdout))]
    ledger = Ledger.open(site)
    assert ledger.verify() == ""
    standing = {item.seq: item.standing for item in ledger.items()}
    assert {number for _, number in told} <= set(standing)
    assert {standing[number] for step, number in told if step == "released"} <= {"released", "committed"}
    assert {standing[number] for step, number in told if step == "committed"} == {"committed"}
    assert "refunded" not in standing.values()
