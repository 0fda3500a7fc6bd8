"""The schema: what the migrations make is what the tables say, and no release's data is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from fedscale.errors import ConfigError
from fedscale_server.store import database
from fedscale_server.store.admission import Bearer
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Table
from tests.server.samples import NOW, later

RELEASED = Path(__file__).with_name("released")
BEARER = Bearer("t1", "c0ffee", "key-1")
SCRIPTS = ScriptDirectory(str(database.MIGRATIONS))
REVISIONS = sorted(revision.revision for revision in SCRIPTS.walk_revisions())


@pytest.fixture
def engine(empty_url: str) -> Engine:
    """An engine on each kind of database at the newest version."""
    return database.connect(empty_url)


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, Table.metadata))


def test_head_is_the_newest_migration() -> None:
    assert SCRIPTS.get_heads() == [database.HEAD]


def test_migrations_make_what_the_tables_say(engine: Engine) -> None:
    with engine.connect() as connection:
        assert differences(connection) == []
    engine.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE run ADD COLUMN colour VARCHAR",
        "ALTER TABLE run DROP COLUMN reason",
        "ALTER TABLE ticket RENAME COLUMN used_by TO bearer",
        "CREATE TABLE extra (n INTEGER)",
        "DROP TABLE checkpoint",
    ],
)
def test_the_comparison_sees_a_difference(engine: Engine, change: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(change))
        assert differences(connection) != []
    engine.dispose()


def test_every_constraint_has_the_name_that_the_tables_give_it(engine: Engine) -> None:
    """A later migration can only change what it can name."""
    found, wanted = set(), set()
    inspector = inspect(engine)
    for table in Table.metadata.sorted_tables:
        found |= {inspector.get_pk_constraint(table.name)["name"]}
        found |= {row["name"] for row in (*inspector.get_foreign_keys(table.name), *inspector.get_unique_constraints(table.name))}
        wanted |= {str(constraint.name) for constraint in table.constraints}
    assert found == wanted
    engine.dispose()


def upgrade(url: str, revision: str, statements: str) -> None:
    """A database as the release with that schema left it."""
    parsed = database._parsed(url)
    engine = database._sqlite(parsed) if parsed.get_backend_name() == "sqlite" else database._postgresql(parsed)
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    with engine.execution_options(**database.WRITE).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        for statement in statements.split(";\n"):
            # SQLite keeps times as text without a zone, which is always UTC.
            plain = statement.replace("+00:00", "") if parsed.get_backend_name() == "sqlite" else statement
            connection.exec_driver_sql(plain) if plain.strip() else None
    engine.dispose()


def test_every_release_left_a_database_to_try(root: Path) -> None:
    assert sorted(path.stem for path in RELEASED.glob("*.sql")) == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_data_of_every_release_is_kept(empty_url: str, revision: str, opened: Callable[[str], Store]) -> None:
    upgrade(empty_url, revision, (RELEASED / f"{revision}.sql").read_text())
    store = opened(empty_url)
    day = later(86_400)
    assert store.projects() == [("ward", 1, 1)]
    ticket = store.ticket("t1", "c0ffee")
    assert (ticket.project, ticket.role, ticket.name, ticket.expires_at, ticket.used_at) == ("ward", "node", "alpha", day, None)
    (member,) = store.members("ward")
    assert (member.name, member.role, member.serial, member.expires_at, member.joined_at) == ("alpha", "node", "5e", day, NOW)
    assert (member.datasets, member.version, member.last_seen, member.revoked_at) == (["icu"], "0.1.0", None, None)
    assert (member.identity or "")[:8] == ("d75a9801" if revision >= "0003" else "")
    assert (member.ledger or "")[:6] == ("7:4ce5" if revision >= "0005" else "")
    (run,) = store.unfinished()
    assert (run.id, run.name, run.plan, run.plan_hash, run.bundle, run.key) == ("sepsis-0a1b2c", "sepsis", "[job]", "aa", "bb", "k1")
    (line,) = store.journal(run.id)
    assert (line.seq, line.kind, line.payload["node"], line.at, line.unique_key) == (1, "answered", "alpha", NOW, "train/1/alpha")
    checkpoint = store.last_checkpoint(run.id)
    assert checkpoint is not None
    assert (checkpoint.facts, checkpoint.model, checkpoint.slots, checkpoint.outcome) == ({"number": 1}, "m", {"momentum": "s"}, {"auc": 0.5})


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_upgraded_database_goes_on(empty_url: str, revision: str, opened: Callable[[str], Store]) -> None:
    upgrade(empty_url, revision, (RELEASED / f"{revision}.sql").read_text())
    store = opened(empty_url)
    assert store.append("sepsis-0a1b2c", "answered", {}, NOW, "train/1/alpha") is None
    assert store.append("sepsis-0a1b2c", "lost", {}, NOW) == 2
    assert store.redeem(BEARER, "alpha", "6f", later(9), NOW).name == "alpha"


def test_opening_again_changes_nothing(empty_url: str, opened: Callable[[str], Store]) -> None:
    opened(empty_url).create_project("ward", NOW)
    for _ in range(2):
        assert opened(empty_url).projects() == [("ward", 0, 0)]


def test_a_database_of_a_later_release_is_left_alone(empty_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="the database has the schema '9999' of a later release; install that release"):
        Store.open(empty_url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    engine.dispose()
