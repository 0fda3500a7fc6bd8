"""Whatever is done to the ledger's files is noticed: by the next task, which is refused, and by ``verify``, which says what it was."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import ConfigError
from fedscale_client.home import NodeHome
from fedscale_client.keys import identity_key
from fedscale_client.ledger import reading
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.chain import Signer, digest_of, sealed
from fedscale_client.ledger.claims import canonical
from fedscale_client.ledger.head import Head
from fedscale_client.ledger.lines import Kind, Said
from fedscale_client.ledger.tables import Entry
from tests.client.ledger.samples import CLAIM, claim, finish, home_at, opened_database

TASKS = 4
COLUMNS = ("seq", "kind", "reservation", "facts", "at", "previous", "digest", "signature")


def statement(text: str) -> Callable[[NodeHome], None]:
    """A change made with SQL."""

    def change(home: NodeHome) -> None:
        with opened_database(home) as connection:
            assert connection.execute(text).rowcount

    return change


def copy(home: NodeHome, folder: Path) -> Path:
    return Path(shutil.copytree(home.path, folder))


def swap(home: NodeHome) -> None:
    """Two entries in each other's places."""
    with opened_database(home) as connection:
        for old, new in ((4, 99), (7, 4), (99, 7)):
            connection.execute("UPDATE entry SET seq = ? WHERE seq = ?", (new, old))


def rows(home: NodeHome) -> list[Entry]:
    with opened_database(home) as connection:
        return [Entry(**dict(zip(COLUMNS, row, strict=True))) for row in connection.execute("SELECT * FROM entry ORDER BY seq")]


def replace_rows(home: NodeHome, entries: Sequence[Said]) -> None:
    with opened_database(home) as connection:
        connection.execute("DELETE FROM entry")
        for entry in entries:
            connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [getattr(entry, name) for name in COLUMNS])


def cheapen(home: NodeHome) -> None:
    """A spend made smaller and the entry hashed anew, without the key."""
    entries = rows(home)
    entries[3].facts = entries[3].facts.replace('"noise_multiplier":4.0', '"noise_multiplier":400.0')
    entries[3].digest = digest_of(entries[3])
    replace_rows(home, entries)


def rewrite(home: NodeHome) -> None:
    """The whole chain made anew with another key."""
    forger, made = Signer(Ed25519PrivateKey.generate()), list[Said]()
    last = (0, forger.origin)
    for entry in rows(home)[:-3]:
        made.append(sealed(forger, last, Kind(entry.kind), entry.reservation, json.loads(entry.facts), entry.at))
        last = (made[-1].seq, made[-1].digest)
    replace_rows(home, made)


def add_forged(home: NodeHome) -> None:
    """A refund that this site never signed."""
    entries = rows(home)
    forger = Signer(Ed25519PrivateKey.generate())
    replace_rows(home, [*entries, sealed(forger, (entries[-1].seq, entries[-1].digest), Kind.REFUND, 1, {"reason": ""}, entries[-1].at)])


def add_impossible(home: NodeHome) -> None:
    """A refund of what has left, signed with the site's own key."""
    entries = rows(home)
    own = Signer(identity_key(home))
    replace_rows(home, [*entries, sealed(own, (entries[-1].seq, entries[-1].digest), Kind.REFUND, 1, {"reason": ""}, entries[-1].at)])


def add_senseless(home: NodeHome) -> None:
    """Facts that are no claim, signed with the site's own key."""
    entries = rows(home)
    own = Signer(identity_key(home))
    replace_rows(home, [*entries, sealed(own, (entries[-1].seq, entries[-1].digest), Kind.RESERVE, 0, {"spends": [1]}, entries[-1].at)])


def scribble(home: NodeHome) -> None:
    path = home.ledger / "ledger.db"
    data = bytearray(path.read_bytes())
    data[20:2000] = bytes(1980)
    path.write_bytes(data)


def change_head(home: NodeHome) -> None:
    tree = json.loads(home.ledger_head.read_bytes())
    home.ledger_head.write_text(json.dumps(tree | {"seq": tree["seq"] - 3}))


def new_key(home: NodeHome) -> None:
    home.identity_file.unlink()
    identity_key(home)


TAMPERING: dict[str, tuple[Callable[[NodeHome], object], str]] = {
    "edit": (statement("UPDATE entry SET facts = replace(facts, '4.0', '400.0') WHERE seq = 4"), "entry 4 was edited"),
    "edit the time": (statement("UPDATE entry SET at = '2020-01-01' WHERE seq = 4"), "entry 4 was edited"),
    "edit the kind": (statement("UPDATE entry SET kind = 'refund' WHERE seq = 2"), "entry 2 was edited"),
    "edit and hash anew": (cheapen, "entry 4 was not signed by this site"),
    "edit the signature": (
        statement("UPDATE entry SET signature = replace(signature, 'a', 'b') WHERE seq = 4"),
        "entry 4 was not signed by this site",
    ),
    "no signature": (statement("UPDATE entry SET signature = '' WHERE seq = 4"), "entry 4 was not signed by this site"),
    "delete from the middle": (statement("DELETE FROM entry WHERE seq = 5"), "entry 5 is missing"),
    "delete the first": (statement("DELETE FROM entry WHERE seq = 1"), "entry 1 is missing"),
    "delete and close the gap": (
        statement("DELETE FROM entry WHERE seq = 12 OR seq = 11"),
        "the ledger ends before entry 12, which it had: it was cut or rolled back",
    ),
    "cut": (statement("DELETE FROM entry WHERE seq > 3"), "the ledger ends before entry 12, which it had: it was cut or rolled back"),
    "empty": (statement("DELETE FROM entry"), "the ledger ends before entry 12, which it had: it was cut or rolled back"),
    "reorder": (swap, "entry 4 was edited"),
    "another site's chain": (rewrite, "entry 1 does not follow the one before it"),
    "a forged entry": (add_forged, "entry 13 was not signed by this site"),
    "an impossible entry": (add_impossible, "entry 13: no refund of what is committed"),
    "a senseless entry": (add_senseless, "entry 13 makes no sense"),
    "bytes of the file": (scribble, "file is not a database"),
    "remove the database": (lambda home: (home.ledger / "ledger.db").unlink(), "unable to open database file"),
    "remove the head": (lambda home: home.ledger_head.unlink(), "the head is gone or was changed"),
    "change the head": (change_head, "the head is gone or was changed"),
    "an empty head": (lambda home: home.ledger_head.write_bytes(b""), "the head is gone or was changed"),
    "another key": (new_key, "entry 1 does not follow the one before it"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> NodeHome:
    """A site that has answered four tasks."""
    home = home_at(tmp_path_factory.mktemp("template"))
    ledger = Ledger.open(home)
    for number in range(TASKS):
        finish(ledger, number)
    return home


@pytest.fixture
def busy(template: NodeHome, tmp_path: Path) -> NodeHome:
    """A copy of it."""
    return NodeHome(copy(template, tmp_path / "site"))


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_noticed(busy: NodeHome, name: str) -> None:
    tamper, finding = TAMPERING[name]
    tamper(busy)
    ledger = Ledger.open(busy)
    assert ledger.verify() == finding
    assert reading.verify(busy)[0] == finding, "whoever only reads finds the same"
    with pytest.raises(ConfigError, match="the privacy ledger of this site cannot be used") as raised:
        ledger.reserve(CLAIM, None)
    assert raised.value.why == finding


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_noticed_by_whoever_verifies_meanwhile(busy: NodeHome, name: str) -> None:
    ledger = Ledger.open(busy)
    ledger.items()
    TAMPERING[name][0](busy)
    if name == "another key":
        ledger = Ledger.open(busy)
    assert ledger.verify() == TAMPERING[name][1]


@pytest.mark.parametrize("column", COLUMNS)
def test_no_column_of_any_entry_can_be_changed(busy: NodeHome, column: str) -> None:
    ledger = Ledger.open(busy)
    for number in range(3 * TASKS):
        entries = rows(busy)
        value = getattr(entries[number], column)
        setattr(entries[number], column, value + 100 if isinstance(value, int) else value[:-1] + ("1" if value[-1] == "0" else "0"))
        replace_rows(busy, entries)
        assert ledger.verify(), (column, number)
        setattr(entries[number], column, value)
        replace_rows(busy, entries)
        assert ledger.verify() == ""


def test_a_rollback_of_the_ledger_is_noticed(busy: NodeHome, tmp_path: Path) -> None:
    backup = copy(busy, tmp_path / "backup")
    finish(Ledger.open(busy), TASKS)
    shutil.rmtree(busy.ledger)
    shutil.copytree(backup / "ledger", busy.ledger)
    assert Ledger.open(busy).verify() == "the ledger ends before entry 15, which it had: it was cut or rolled back"
    with pytest.raises(ConfigError):
        Ledger.open(busy).reserve(CLAIM, None)


def test_a_rollback_is_noticed_by_a_ledger_in_use(busy: NodeHome, tmp_path: Path) -> None:
    """Even one of the head as well: who has read further remembers."""
    backup = copy(busy, tmp_path / "backup")
    ledger = Ledger.open(busy)
    finish(ledger, TASKS)
    for name in ("ledger/ledger.db", "ledger.head"):
        shutil.copy(backup / name, busy.path / name)
    with pytest.raises(ConfigError) as raised:
        ledger.reserve(CLAIM, None)
    assert raised.value.why == "the ledger ends before entry 15, which it had: it was cut or rolled back"


@pytest.mark.parametrize("length", [1, 2])
def test_a_fork_is_noticed(busy: NodeHome, tmp_path: Path, length: int) -> None:
    """A copy that went on differently, put in the place of the ledger, however long it is."""
    fork = home_at(copy(busy, tmp_path / "fork"))
    for number in range(length):
        finish(Ledger.open(fork), 50 + number)
    finish(Ledger.open(busy), TASKS)
    shutil.copy(fork.ledger / "ledger.db", busy.ledger / "ledger.db")
    assert Ledger.open(busy).verify() == "entry 15 is not the one it was"


def test_a_backup_of_everything_shows_only_to_who_noted_the_head_elsewhere(busy: NodeHome, tmp_path: Path) -> None:
    backup = copy(busy, tmp_path / "backup")
    finish(Ledger.open(busy), TASKS)
    noted = Ledger.open(busy).head()
    shutil.rmtree(busy.path)
    copy(NodeHome(backup), busy.path)
    ledger = Ledger.open(busy)
    assert ledger.verify() == ""
    assert ledger.verify(noted) == "the ledger ends before entry 15, which it had: it was cut or rolled back"
    assert ledger.verify(Head(3, rows(busy)[2].digest)) == ""
    assert ledger.verify(Head(3, rows(busy)[3].digest)) == "entry 3 is not the one it was"


def test_a_head_of_another_ledger_is_refused(busy: NodeHome, tmp_path: Path) -> None:
    other = home_at(tmp_path / "other")
    Ledger.open(other)
    shutil.copy(other.ledger_head, busy.ledger_head)
    assert Ledger.open(busy).verify() == "the head is gone or was changed"


def test_a_head_that_lags_behind_is_caught_up(busy: NodeHome) -> None:
    """As after a crash between the entry and the head; the older head is part of the ledger."""
    former = busy.ledger_head.read_bytes()
    ledger = Ledger.open(busy)
    ledger.reserve(claim(8), None)
    busy.ledger_head.write_bytes(former)
    assert ledger.verify() == ""
    ledger.reserve(claim(9), None)
    assert json.loads(busy.ledger_head.read_bytes())["seq"] == 14


def test_a_key_that_is_none_is_refused(busy: NodeHome) -> None:
    busy.identity_file.write_text("no key")
    with pytest.raises(ConfigError, match="identity key cannot be read"):
        Ledger.open(busy)


def test_one_value_has_one_text() -> None:
    assert canonical({"b": 1.5, "a": [1, None]}) == '{"a":[1,null],"b":1.5}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


def test_the_database_is_one_file_when_nobody_uses_it(busy: NodeHome) -> None:
    """Backups of the home are whole."""
    assert {path.name for path in busy.ledger.iterdir()} == {"ledger.db", "lock"}
    with sqlite3.connect(busy.ledger / "ledger.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
