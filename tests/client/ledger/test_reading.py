"""Whoever only reads the ledger sees what its owner wrote, changes nothing, and loads no database library for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fedscale.errors import ConfigError
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.head import Head
from tests.client.ledger.samples import claim, finish, parcel


def test_a_reader_sees_what_the_owner_sees(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    ledger.release(ledger.reserve(claim(2), None), parcel("b"))
    ledger.refund(ledger.reserve(claim(3), None), "nothing left")
    before = (site.ledger / "ledger.db").read_bytes()
    assert reading.items(site) == ledger.items()
    assert [asdict(line) for line in reading.lines(site)] == [entry.model_dump() for entry in ledger.entries()]
    assert reading.verify(site) == ("", ledger.head())
    assert (site.ledger / "ledger.db").read_bytes() == before


def test_before_there_is_a_ledger_nothing_is_read_and_none_is_made(site: NodeHome) -> None:
    assert (reading.items(site), reading.lines(site)) == ((), ())
    assert reading.verify(site)[0] == ""
    assert not site.ledger.exists()


def test_a_ledger_without_an_entry_is_fine_however_far_its_making_came(site: NodeHome, ledger: Ledger) -> None:
    assert reading.verify(site) == ("", ledger.head())
    database = site.ledger / "ledger.db"
    database.write_bytes(b"")
    assert reading.items(site) == ()
    database.unlink()
    assert reading.items(site) == ()


def test_an_end_noted_elsewhere_must_be_there(site: NodeHome, ledger: Ledger) -> None:
    finish(ledger, 1)
    end = ledger.head()
    assert reading.verify(site, end)[0] == ledger.lacks(end) == ""
    assert reading.verify(site, Head(0, ledger._signer.origin))[0] == ""
    for known, problem in (
        (Head(9, end.digest), "the ledger ends before entry 9, which it had: it was cut or rolled back"),
        (Head(3, "0" * 64), "entry 3 is not the one it was"),
        (Head(0, "0" * 64), "the head is that of another ledger"),
    ):
        assert reading.verify(site, known)[0] == ledger.lacks(known) == problem


def test_an_end_reads_as_it_is_told() -> None:
    end = Head(17, "ab" * 32)
    assert Head.parsed(str(end)) == end
    for text in ("", "17", f"x:{'ab' * 32}", f"17:{'AB' * 32}", f"17:{'ab' * 31}", f"-1:{'ab' * 32}"):
        with pytest.raises(ConfigError, match="NUMBER:HASH") as raised:
            Head.parsed(text, "--head")
        assert raised.value.where == "--head"


def test_reading_loads_no_database_library(site: NodeHome, ledger: Ledger, root: Path) -> None:
    finish(ledger, 1)
    code = (
        "import sys; from pathlib import Path; from fedscale_client import spending; from fedscale_client.home import NodeHome\n"
        "unwanted = ('sqlalchemy', 'sqlmodel', 'alembic', 'grpc', 'torch')\n"
        f"print(len(spending.items(NodeHome(Path({str(site.path)!r})))), [name for name in unwanted if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "1 []"
