"""A site with a past, for the tests of its console: what was asked, what left, what was refused; and its console at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from fedscale import files, identity
from fedscale.clock import Clock, SystemClock
from fedscale.identity import Identity, Role, new_authority
from fedscale.web.links import link
from fedscale_client import declarations
from fedscale_client.chronicle import Chronicle
from fedscale_client.console import serve
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from fedscale_client.ledger.book import Ledger
from tests.client.conftest import write_csv
from tests.client.ledger.samples import claim, parcel
from tests.web.conftest import Guest

APP = "f" * 64
FAILURE = {
    "cause": "policy",
    "what": "this site answers with secure aggregation only",
    "where": "require_secagg",
    "hint": "set secagg.enabled = true",
}


def joined(folder: Path) -> NodeHome:
    """A home that has joined and offers ``heart``."""
    home, key, now = NodeHome(files.private_folder(folder)), identity.new_key(), datetime.now(UTC)
    authority = new_authority("testland", now)
    certificate = authority.issue(identity.new_request(key, "mercy"), Identity("testland", Role.NODE, "mercy"), now, 24.0)
    files.write(home.key_file, identity.key_pem(key))
    files.write(home.certificate_file, identity.certificate_pem(certificate))
    files.write(home.authority_file, identity.certificate_pem(authority.certificate))
    settings = NodeSettings(name="mercy", federation="testland", project="heart", address="hub.example.org:8470")
    write_toml(home.settings_file, settings.model_dump())
    declarations.add(home, "heart", Declaration(kind="csv", path=str(write_csv(folder / "heart.csv")), label="y"))
    return home


def tell(home: NodeHome, event: str, *, ago: float = 0.0, **facts: Any) -> None:
    """One line of the chronicle."""
    Chronicle(home, lambda: datetime.now(UTC) - timedelta(seconds=ago)).take({"event": event, "node": "mercy", **facts})


def task(run: str, phase: str, number: int) -> dict[str, Any]:
    asked = {"name": "heart-risk", "dataset": "heart", "app": APP, "plan": "e" * 64, "plan_toml": '[job]\nname = "heart-risk"\n'}
    return {"key": f"{run}/{phase}/{number}", "run": run, "phase": phase, "number": number, **asked}


def past(home: NodeHome) -> None:
    """Two rounds that left, one of them masked, metrics without protection, and a run that was refused."""
    ledger = Ledger.open(home)
    for number in (1, 2):
        tell(home, "task", ago=60.0, **task("run-1", "train", number))
        reservation = ledger.reserve(claim(number, app=APP), None)
        ledger.release(reservation, replace(parcel(str(number)), masked=number == 2, size=1200))
        ledger.commit(reservation, "accepted")
        tell(home, "answered", ago=50.0, key=f"run-1/train/{number}", verdict="accepted", reason="", bytes=1200)
    ledger.release(ledger.reserve(claim(2, phase="evaluate", spends=None, unit="", delta=0.0), None), parcel("9"))
    tell(home, "task", ago=9.0, **task("run-2", "train", 1))
    tell(home, "failed", ago=8.0, key="run-2/train/1", failure=FAILURE)
    folder = home.cache / "bundles" / APP
    folder.mkdir(parents=True)
    (folder / "app.py").write_text("print('what the job runs')\n")
    (folder / "weights.bin").write_bytes(b"\xff\xfe\x00")


@dataclass
class Site:
    """A home and its console."""

    home: NodeHome
    address: str

    def link(self) -> str:
        """Another way in."""
        return link(self.home.path, time.time())

    async def owner(self, http: httpx.AsyncClient) -> Guest:
        """Somebody who came in by a link."""
        guest = Guest(http)
        answer = await guest.enter(self.link().partition("#")[2])
        assert answer.status_code == 200, answer.text
        return guest


@asynccontextmanager
async def console(home: NodeHome, clock: Clock | None = None) -> AsyncIterator[Site]:
    """The console of a home, in this process."""
    stopping, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve.serve(home, 0, ready.set_result, stopping, clock or SystemClock()))
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield Site(home, ready.result())
    finally:
        stopping.set()
        await asyncio.wait_for(task, 60)
