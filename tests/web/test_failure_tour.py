"""The failure tour: 24 things that go wrong at a real node, each on the page of its run with site, round, reason and next step.

Nodes are the real ones, with worker processes of their own. What an app does at a site depends on the first value of the
site's data, so that one run meets most faults at once. Wherever a patient could be named, one is.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedscale import bundle, files, report
from fedscale.clock import SystemClock
from fedscale.errors import PlanError
from fedscale.identity import Role
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.record import RunRecord
from fedscale_client import chronicle, connection, declarations, policy
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from fedscale_client.node import Node
from tests.server.running import plan_text, soon, until
from tests.web.conftest import Front
from tests.web.witness import Stamps, Witness, delayed

__all__ = ["delayed"]

PATIENT = "Jane Roe 1944-02-29"
PATIENCE, DEADLINE = 150.0, 90.0
PLANTED = re.compile(r"Jane|Roe |1944-02")
ROWS = 20

APP = f"""
import os, signal, time
import numpy as np
from fedscale.errors import DataError
from fedscale.learner import Phase, Result

PATIENT = "{PATIENT}"

class Site:
    def require_private(self, unit):
        return None

    def run(self, work):
        if work.phase is Phase.INIT:
            return Result({{"w": np.zeros(3, np.float32)}}, len(work.data))
        print("looking at", PATIENT, flush=True)
        w, rows, kind = work.arrays["w"], len(work.data), int(work.data.x[0, 0])
        with open(os.path.join(os.environ["STAMPS"], str(kind)), "w") as stamp:
            stamp.write(repr(time.time()))
        return FAULTS[kind](w, rows)

def raises(w, rows):
    raise ValueError(f"{{PATIENT}} has no diagnosis")

def one_class(w, rows):
    raise DataError("only one class is left", hint="offer data of both classes")

def memory(w, rows):
    np.empty(1 << 55, np.float32)

def disk(w, rows):
    with open("/dev/full", "w") as file:
        file.write(PATIENT)

def killed(w, rows):
    os.kill(os.getpid(), signal.SIGKILL)

def exits(w, rows):
    os._exit(3)

def sleeps(w, rows):
    time.sleep(600)

FAULTS = {{
    0: lambda w, rows: Result({{"w": w + 1}}, rows, {{"loss": np.ones(1)}}),
    1: raises,
    2: one_class,
    3: memory,
    4: disk,
    5: killed,
    6: exits,
    7: lambda w, rows: Result({{"w": w * np.nan}}, rows, {{"loss": np.ones(1)}}),
    8: lambda w, rows: Result({{"w": w[:2]}}, rows, {{"loss": np.ones(1)}}),
    9: lambda w, rows: Result({{"w": w + 1e6}}, rows, {{"loss": np.ones(1)}}),
    10: lambda w, rows: Result({{"w": w}}, 0, {{"loss": np.ones(1)}}),
    11: lambda w, rows: {{"diagnosis": PATIENT}},
    12: lambda w, rows: Result({{PATIENT: w}}, rows, {{"loss": np.ones(1)}}),
    13: sleeps,
}}
app = Site()
"""
HEALTHY, SLEEPS = 0, 13
# What stands on the page: cause, and words of what happened or of what to do.
BY_APP = {
    "raises": (1, "code", "ValueError"),
    "one-class": (2, "data", "DataError"),
    "memory": (3, "memory", "more memory"),
    "disk-full": (4, "disk", "free space"),
    "killed": (5, "memory", "killed by the system"),
    "exits": (6, "worker", "the log of its worker"),
    "not-finite": (7, "diverged", "not finite"),
    "wrong-length": (8, "rejected", "w"),
    "out-of-range": (9, "diverged", "beyond"),
    "no-weight": (10, "code", "examples"),
    "no-result": (11, "code", "Result"),
    "wrong-name": (12, "rejected", ""),
}
BY_DATA = {
    "no-file": ("data", "is not there"),
    "bad-cell": ("data", "not a number"),
    "missing-value": ("data", "missing"),
    "no-column": ("data", "column"),
}
BY_POLICY = {
    "dp-only": ("require_dp=true", "policy", "add [privacy] to the job"),
    "paused": ("paused=true", "policy", "paused by its owner"),
    "not-approved": (f'apps=["{"0" * 64}"]', "policy", "has not approved this app"),
}


@dataclass
class Tour:
    """A server with its dashboard, and real nodes."""

    front: Front
    folder: Path
    working: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    homes: dict[str, NodeHome] = field(default_factory=dict)

    async def site(
        self, name: str, project: str, kind: int = HEALTHY, changes: Callable[[Path], object] | None = None, rules: Iterable[str] = ()
    ) -> None:
        """A node that joined by a ticket and offers ``heart``; ``changes`` does something to its file, ``rules`` to its policy."""
        path = self.folder / name / "heart.csv"
        path.parent.mkdir()
        path.write_text("\n".join(["kind,b,y", *(f"{kind},{row % 3},{row % 2}" for row in range(ROWS))]) + "\n")
        home = self.homes[name] = NodeHome(files.private_folder(path.parent / "node"))
        credentials = await self.front.running.join(name, Role.NODE, project)
        for file, pem in (
            (home.key_file, credentials.key),
            (home.certificate_file, credentials.certificate),
            (home.authority_file, credentials.authority),
        ):
            files.write(file, pem)
        settings = NodeSettings(name=name, federation="fedscale", project=project, address=self.front.running.ready.address)
        write_toml(home.settings_file, settings.model_dump())
        declarations.add(home, "heart", Declaration(kind="csv", path=str(path), label="y"))
        if changes:
            changes(path)
        if rules:
            policy.save(home, policy.load(home, rules))
        told = chronicle.Chronicle(home, SystemClock().now)
        self.working[name] = asyncio.create_task(Node(home, told.take, SystemClock()).run())

    async def connected(self, project: str, count: int) -> None:
        """Wait until so many sites of a project are there."""

        async def there() -> int:
            reply = await self.front.running.admin.control.ListNodes(pb.ListNodesRequest(project=project))
            return sum(node.connected for node in reply.nodes)

        async with asyncio.timeout(PATIENCE):
            while await there() < count:
                await asyncio.sleep(0.05)

    async def run(self, project: str, code: str, *, sites: int, **plan: Any) -> str:
        """Submit a run of an app to the sites of a project; its id."""
        await self.connected(project, sites)
        folder = self.folder / f"app-{project}"
        folder.mkdir()
        (folder / "app.py").write_text(code)
        packed = bundle.pack(folder)
        await soon(self.front.running.admin.put(packed))
        clients = {"min_per_round": 1, "wait_for": sites, "rejoin": 1.0, "deadline": DEADLINE, **plan.pop("clients", {})}
        text = plan_text(data="heart", clients=clients, **plan)
        request = pb.SubmitRunRequest(project=project, plan=text, bundle=bundle.digest(packed))
        return str((await soon(self.front.running.admin.control.SubmitRun(request))).run)

    async def rows(self, http: httpx.AsyncClient, run: str, sites: int) -> dict[str, list[str]]:
        """The table of failures on a run's page, as soon as it has this many rows: cells by site."""

        async def table() -> dict[str, list[str]] | None:
            page = (await http.get(f"/runs/{run}")).text
            body = page.partition('id="failures"')[2].partition("</tbody>")[0].partition("<tbody>")[2]
            found = [
                [html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in body.split("<tr>")
            ]
            return {row[0]: row[1:] for row in found if row}

        shown: dict[str, list[str]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while len(shown) < sites:
                    shown = await table() or {}
                    await asyncio.sleep(0.1)
        assert len(shown) == sites, (sorted(shown), [task for task in self.working.values() if task.done()])
        return shown

    async def end(self) -> None:
        for task in self.working.values():
            task.cancel()
        for task in self.working.values():
            with suppress(asyncio.CancelledError, ExceptionGroup):
                await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stamps:
    (tmp_path / "stamps").mkdir()
    monkeypatch.setenv("STAMPS", str(tmp_path / "stamps"))
    return Stamps(tmp_path / "stamps")


@pytest.fixture
async def tour(front: Front, stamps: Stamps, tmp_path: Path) -> AsyncIterator[Tour]:
    folder = tmp_path / "sites"
    folder.mkdir()
    made = Tour(front, folder)
    yield made
    await made.end()


def empty_cell(path: Path, cell: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], f"0,{cell},1", *lines[4:]]) + "\n")


def asked(home: NodeHome, phase: str) -> float:
    """When a node was first asked for this, or whether it would, by its own chronicle."""
    return next(float(event["at"]) for event in chronicle.read(home) if event["event"] in chronicle.ASKING and event["phase"] == phase)


def plain(page: str) -> str:
    """What people read of a piece of a page."""
    return html.unescape(re.sub("<[^>]+>", " ", page)).strip()


async def gather(*waits: Awaitable[object]) -> None:
    await asyncio.gather(*waits)


async def nothing_names_a_patient(front: Front, tour: Tour, run: str, logged: str) -> None:
    """Pages, API, metrics, reports, the journal, the server's log and files: none of them quotes what was planted."""
    guest = await front.person(Role.AUDITOR)
    record = (await guest.http.get(f"/api/runs/{run}/record")).text
    seen = {"record": record, "log": logged, "report": report.html(RunRecord.from_json(record))}
    pages = ("/", "/runs", "/sites", "/models", "/privacy", "/audit", "/metrics", "/api/status", "/api/sites")
    for path in (*pages, f"/runs/{run}", f"/api/runs/{run}", f"/api/runs/{run}/report"):
        seen[path] = (await guest.http.get(path)).text
    for event in await front.running.events(run):
        seen[f"event {event.sequence}"] = event.detail
    for name, home in tour.homes.items():
        seen[f"chronicle of {name}"] = json.dumps(chronicle.read(home))
    quoted = {name: PLANTED.findall(re.sub(r"\d{4}-\d\d-\d\dT?[ \d:.+Z]*", "", text)) for name, text in seen.items()}
    assert {name: found for name, found in quoted.items() if found} == {}


@pytest.mark.timeout(400)
async def test_nineteen_faults_in_one_round(
    front: Front, tour: Tour, stamps: Stamps, delayed: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Callable[[Path], object]] = {
        "no-file": Path.unlink,
        "bad-cell": partial(empty_cell, cell=PATIENT),
        "missing-value": partial(empty_cell, cell=""),
        "no-column": lambda path: path.write_text(path.read_text().replace("kind,b,y", f"kind,b,{PATIENT.split(maxsplit=1)[0]}")),
    }
    await gather(
        tour.site("healthy", "ward"),
        tour.site("cut-off", "ward", SLEEPS),
        *(tour.site(name, "ward", kind) for name, (kind, _, _) in BY_APP.items()),
        *(tour.site(name, "ward", changes=change) for name, change in changes.items()),
        *(tour.site(name, "ward", rules=[rule]) for name, (rule, _, _) in BY_POLICY.items()),
    )
    expected = (
        {name: (cause, words) for name, (_, cause, words) in (BY_APP | BY_POLICY).items()} | BY_DATA | {"cut-off": ("lost", "the node's own log")}
    )
    run = await tour.run("ward", APP, sites=len(tour.homes))
    guest = await front.person(Role.AUDITOR)
    witness = Witness(guest.http, run)
    watching = witness.begun()
    await until(
        lambda: any(event["event"] == "task" and event["phase"] == "train" for event in chronicle.read(tour.homes["cut-off"])) or None, PATIENCE
    )
    cut = time.time()
    tour.working.pop("cut-off").cancel()
    shown = await tour.rows(guest.http, run, len(expected))
    assert {name: row[1] for name, row in shown.items()} == {name: cause for name, (cause, _) in expected.items()}
    assert {row[0] for row in shown.values()} == {"train 1"}
    assert [name for name, row in shown.items() if not row[4]] == [], "every failure has a next step"
    assert {name: (words, shown[name]) for name, (_, words) in expected.items() if words not in " ".join(shown[name])} == {}
    info, _ = await front.running.over(run)
    assert info.info.status == "completed", "one healthy site is enough for this plan"
    await asyncio.wait_for(watching, PATIENCE)
    faults = {name: stamps.of(kind) for name, (kind, _, _) in BY_APP.items()} | {"cut-off": cut}
    faults |= {name: asked(tour.homes[name], "train") for name in (*BY_DATA, *BY_POLICY)}
    told = {name: witness.read(name) for name in faults}
    assert [name for name, (_, live) in told.items() if not live] == [], "nobody waits for the end of the round to read it"
    delayed(DEADLINE, **{name: at - faults[name] for name, (at, _) in told.items()})
    await nothing_names_a_patient(front, tour, run, "".join(capfd.readouterr()))


IMPORTS = f"import no_such_package\nPATIENT = '{PATIENT}'\napp = None\n"
WRONG = "class Site:\n    def learn(self, work):\n        return None\n\napp = Site()\n"


@pytest.mark.parametrize(
    ("project", "code", "rules", "plan", "expected"),
    [
        ("imports", IMPORTS, [], {}, ("code", "no_such_package")),
        ("signature", WRONG, [], {}, ("code", "app")),
        ("deadline", APP, [], {"clients": {"deadline": 2.0}}, ("timeout", "within 2 s|by its deadline")),
        (
            "budget",
            APP,
            ["datasets.heart.epsilon=0.01", 'datasets.heart.units=["record"]'],
            {"privacy": {"epsilon": 4.0, "delta": 1e-5, "clip": 1.0}},
            ("policy", "lower privacy.epsilon or leave this site out, or its owner allows more"),
        ),
    ],
)
async def test_faults_that_take_a_run_of_their_own(
    front: Front, tour: Tour, delayed: Callable[..., None], project: str, code: str, rules: list[str], plan: dict[str, Any], expected: tuple[str, str]
) -> None:
    cause, words = expected
    await front.running.admin.control.CreateProject(pb.CreateProjectRequest(name=project))
    await tour.site("mercy", project, SLEEPS if project == "deadline" else HEALTHY, rules=rules)
    run = await tour.run(project, code, sites=1, **plan)
    guest = await front.person(Role.AUDITOR)
    witness = Witness(guest.http, run)
    await asyncio.wait_for(witness.watch(), PATIENCE)
    info, _ = await front.running.over(run)
    page = plain((await guest.http.get(f"/runs/{run}")).text)
    assert info.info.status == "failed"
    assert "mercy" in page
    assert cause in page, re.sub(r"\s+", " ", page)[:1500]
    assert re.search(words, page), page
    assert not PLANTED.search(page.replace(run, ""))
    # Whoever would refuse to train says so before the first model; a site that does not answer has failed when the plan's deadline is over.
    phase = "train" if project == "budget" else witness.reached
    fault = asked(tour.homes["mercy"], phase) + (plan["clients"]["deadline"] if project == "deadline" else 0.0)
    delayed(DEADLINE, **{project: witness.read("mercy", witness.reached)[0] - fault})


async def test_a_node_of_another_release_says_so(front: Front, tour: Tour, delayed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[float] = []

    def newer(*_: object) -> None:
        faults.append(time.time())
        raise PlanError("unknown setting 'novelty'", where="strategy.novelty")

    monkeypatch.setattr(connection, "assignment_from_proto", newer)
    await tour.site("mercy", "ward")
    run = await tour.run("ward", APP, sites=1)
    guest = await front.person(Role.AUDITOR)
    witness = Witness(guest.http, run)
    await asyncio.wait_for(witness.watch(), PATIENCE)
    info, _ = await front.running.over(run)
    delayed(DEADLINE, **{"other-release": witness.read("mercy", "init")[0] - faults[0]})
    page = html.unescape((await guest.http.get(f"/runs/{run}")).text)
    assert info.info.status == "failed"
    assert "the coordinator and this node may run different releases" in page
