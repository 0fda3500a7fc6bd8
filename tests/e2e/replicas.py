"""Several coordinators as real processes on one PostgreSQL and one object store, and a witness of every write to the database."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import psycopg
import tomli_w
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from tests.e2e.federation import PROJECT, Federation, Process, living, until
from tests.server.conftest import Postgres
from tests.server.ports import own_port

NAMES = ("red", "green", "blue")
LEASE_SECONDS = 10.0  # longer than any process of a busy machine stands still: only who is killed or frozen shall lose it
BUCKET = "federation"
# Whoever writes to a run's tables is noted with whoever holds the lease at that moment.
WITNESS = """
CREATE TABLE witness (writer text, holder text, epoch int);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO witness SELECT current_setting('application_name'), lease.holder, lease.epoch FROM lease;
    RETURN NULL;
END $$;
CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON checkpoint FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON run FOR EACH ROW EXECUTE FUNCTION see();
"""


@contextmanager
def object_store() -> Iterator[str]:
    """An object store with a bucket, and its credentials in the environment; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    known = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    try:
        with patch.dict(os.environ, known):
            endpoint = "http://{}:{}".format(*server.get_host_and_port())
            make_bucket(endpoint)
            yield endpoint
    finally:
        server.stop()


def make_bucket(endpoint: str) -> None:
    """The bucket, by a request that the store itself would have signed."""
    import boto3

    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)


def bucket(endpoint: str) -> S3Store:
    return S3Store(BUCKET, config={"endpoint": endpoint}, client_options={"allow_http": True})


class Replicas(Federation):
    """A federation with three coordinators.

    Args:
        folder: where everything lies.
        postgres: the database.
        endpoint: the object store.
    """

    def __init__(self, folder: Path, postgres: Postgres, endpoint: str) -> None:
        super().__init__(folder)
        self._postgres, self._endpoint = postgres, endpoint
        self.coordinators: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Make and start all of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        living.append(self)
        try:
            self.ask("server", "init", "--home", self.home, "--federation", "trial")
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._make, NAMES))
                self.start(NAMES[0])
                list(pool.map(self.start, NAMES[1:]))
            with self.database() as database:
                database.execute(WITNESS.encode())
            until(lambda: len((self.profile / "address").read_text().split()) == len(NAMES), "all coordinators to know each other")
            self.manage("project", "create", PROJECT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def place(self, name: str) -> Path:
        """The home of a coordinator."""
        return self.home if name == NAMES[0] else self.folder / name

    def _make(self, name: str) -> None:
        """A home with settings of its own; all but the first have the authority of the first."""
        if name != NAMES[0]:
            self.ask("server", "init", "--home", self.place(name), "--authority", self.home / "ca")
        path = self.place(name) / "server.toml"
        settings = tomllib.loads(path.read_text()) | {"replicas": True, "lease_seconds": LEASE_SECONDS, "web": False}
        settings |= {"database": f"{self._postgres.url('public')}&application_name={name}"}
        settings |= {"blobs": f"s3://{BUCKET}/trial", "blobs_endpoint": self._endpoint}
        path.write_text(tomli_w.dumps(settings))

    def start(self, name: str) -> None:
        """Start a coordinator, each time on the same port."""
        port = self.addresses.get(name, f":{own_port()}").rpartition(":")[2]
        process = self.begin(name, "server", "start", "--home", self.place(name), "--port", port, "--enrolment-port", 0, "--json")
        until(lambda: process.said().endswith("\n") or not process.alive, f"coordinator {name}")
        assert process.alive, process.told()
        self.coordinators[name], self.addresses[name] = process, json.loads(process.said())["data"]["address"]

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(host=str(self._postgres.folder), user="fedscale", dbname="postgres", autocommit=True) as connection:
            yield connection

    def lease(self) -> tuple[str, int, datetime]:
        """Who leads, in which epoch and until when."""
        with self.database() as database:
            row = database.execute(b"SELECT holder, epoch, lease_until FROM lease").fetchone()
        assert row is not None
        return next((name for name, address in self.addresses.items() if address == row[0]), ""), row[1], row[2]

    def taken(self, after: int) -> tuple[str, float]:
        """Wait for a leader of a later epoch; its name, and how many seconds after the end of the lease before it took over."""
        ended = self.lease()[2]
        until(lambda: self.lease()[1] > after, f"a leader after epoch {after}")
        with self.database() as database:
            row = database.execute(b"SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None
        return self.lease()[0], row[0] - ended.timestamp()

    def writers(self) -> list[tuple[str, str, int]]:
        """Every write to a run so far: by whom, who held the lease, and in which epoch."""
        names = {address: name for name, address in self.addresses.items()}
        with self.database() as database:
            return [(writer, names[holder], epoch) for writer, holder, epoch in database.execute(b"SELECT writer, holder, epoch FROM witness")]
