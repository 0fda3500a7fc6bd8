"""``fedscale demo``: a coordinator and four hospitals as real processes on this machine, over mutual TLS, on real patients."""

from __future__ import annotations

import json as json_
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from fedscale import console, report
from fedscale.cli.init import contents
from fedscale.cli.lazy import later
from fedscale.cli.options import Json
from fedscale.errors import Conflict, RunFailed
from fedscale.record import JSON, RunRecord, summary
from fedscale.report.units import data_size, duration, number
from fedscale_simulations.cast import Cast

if TYPE_CHECKING:
    from fedscale_simulations.comparison import Comparison

PROJECT, LABEL, TEMPLATE = "demo", "malignant", "hospitals"
MARK = ".fedscale-demo"
PARTS = ("job", "coordinator", "sites", "logs")
CLOSE_ENOUGH = 0.02
LONG_ROUNDS, LOOK_SECONDS = 300, 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything of a demonstration lies."""

    folder: Path

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job" / "job.toml"

    @property
    def profile(self) -> Path:
        """The coordinator's profile."""
        return self.folder / "coordinator" / "admin"

    def table(self, site: str) -> Path:
        """A hospital's patients."""
        return self.folder / "sites" / site / "patients.csv"

    def home(self, site: str) -> Path:
        """A hospital's node."""
        return self.folder / "sites" / site / "node"

    def log(self, name: str) -> Path:
        """A process's log."""
        return self.folder / "logs" / f"{name}.log"


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Where it all happens; made anew each time.")] = Path("runs", "demo"),
    stay: Annotated[bool, typer.Option("--stay", help="Train on in a long run, to be watched in a browser, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Train on real medical data with a coordinator and four hospital nodes on this machine."""
    began = time.monotonic()
    # Threads of several processes that wait for each other on few cores cost more than they bring.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stage = prepare(out)
    with Cast() as cast:
        sites = set_up(cast, stage)
        record = train(cast, stage)
        if not stay:
            cast.dismiss()
        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(spent, cast, stage, sites)
            compared = compare(stage, sites)
            epsilons = asked.result()
        files = leave(stage, record, compared, epsilons, time.monotonic() - began)
        conclude(stage, files, compared, as_json=json)
        if stay:
            linger(cast, stage)


def prepare(folder: Path) -> Stage:
    """An empty stage with the job on it.

    Raises:
        Conflict: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise Conflict("the folder holds something else", where=str(folder), hint="choose another: fedscale demo --out DIR")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    stage = Stage(folder)
    stage.job.parent.mkdir(parents=True)
    (folder / MARK).touch()
    for name, text in contents(TEMPLATE, PROJECT).items():
        (stage.job.parent / name).write_text(text, encoding="utf-8")
    return stage


def set_up(cast: Cast, stage: Stage) -> tuple[str, ...]:
    """A coordinator, and at the same time the hospitals' tables; then the hospitals, side by side."""
    home, log = stage.folder / "coordinator", stage.log("coordinator")
    cast.call("server", "init", "--home", home, "--federation", "demo", "--port", 0, "--enrolment-port", 0)
    cast.start("coordinator", "server", "start", "--home", home, "--json", log=log)
    sites: tuple[str, ...] = later("fedscale_simulations.hospitals:write_tables")(stage.job, stage.table, LABEL)
    where = cast.ready("coordinator", log)
    cast.tell(f"coordinator ready at {where['address']}")
    cast.tell(f"watch it in a browser: {into_dashboard(cast, stage)}")
    cast.call("project", "create", PROJECT, "--profile", stage.profile)
    with ThreadPoolExecutor(len(sites)) as hospitals:
        list(hospitals.map(lambda site: open_hospital(cast, stage, site), sites))
    return sites


def open_hospital(cast: Cast, stage: Stage, site: str) -> None:
    """One hospital joins with its ticket, declares its patients and starts its node."""
    home = ("--home", stage.home(site))
    ticket = cast.call("project", "invite", PROJECT, "--name", site, "--profile", stage.profile)["ticket"]
    cast.tell(f"$ fedscale node join {ticket[:12]}... --home {stage.home(site)}")
    cast.call("node", "join", ticket, *home, show=False)
    cast.call("node", "data", "add", "biopsies", "--path", stage.table(site), "--label", LABEL, *home)
    cast.start(site, "node", "start", *home, log=stage.log(site))


def train(cast: Cast, stage: Stage) -> RunRecord:
    """Submit the job, follow it to its end and fetch the model."""
    ended = cast.call("run", "submit", stage.job, "--project", PROJECT, "--profile", stage.profile, "--watch", live=True)
    record = RunRecord.from_json(json_.dumps(ended["record"]))
    cast.call("run", "export", record.run, "--out", stage.folder / "model.safetensors", "--profile", stage.profile)
    return record


def spent(cast: Cast, stage: Stage, sites: tuple[str, ...]) -> dict[str, float]:
    """What each hospital's own ledger says it has spent in privacy, as epsilon."""
    found = {site: cast.call("privacy", "spent", "--home", stage.home(site), show=False)["accounts"] for site in sites}
    return {site: float(accounts[0]["epsilon"]) for site, accounts in found.items() if accounts}


def into_dashboard(cast: Cast, stage: Stage) -> str:
    """A link that opens the coordinator's dashboard once."""
    return str(cast.call("server", "open", "--home", stage.folder / "coordinator", show=False)["link"])


def linger(cast: Cast, stage: Stage) -> None:
    """A long run, a link to where it is seen, and then nothing until Ctrl-C."""
    cast.call("run", "submit", stage.job, "--project", PROJECT, "--profile", stage.profile, "--set", f"strategy.rounds={LONG_ROUNDS}")
    console.note(f"watch it in a browser: {into_dashboard(cast, stage)}")
    console.note(f"another link: fedscale server open --home {stage.folder / 'coordinator'}; Ctrl-C ends it all")
    try:
        while cast.alive():
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        console.note("the demonstration is over")


def compare(stage: Stage, sites: tuple[str, ...]) -> Comparison:
    """The federation's model beside what each hospital, and all in one place, would have trained."""
    console.note("training each hospital alone, and all in one place, to compare")
    compared: Comparison = later("fedscale_simulations.hospitals:compare_with")(
        stage.job, {site: stage.table(site) for site in sites}, LABEL, stage.folder / "model.safetensors"
    )
    return compared


def leave(stage: Stage, record: RunRecord, compared: Comparison, epsilons: dict[str, float], seconds: float) -> dict[str, Any]:
    """Write the report and the summary; returns the summary."""
    booked: dict[str, JSON] = {"privacy": {"epsilon, by each hospital's own ledger": dict(epsilons)}} if epsilons else {}
    record = replace(record, extra={**record.extra, **booked, "comparison": compared.rows()})
    files = report.write(record, stage.folder) | report.card_beside(record, stage.folder)
    values = {"alone": dict(compared.alone), "alone_mean": compared.mean_alone, "federated": compared.federated, "pooled": compared.pooled}
    privacy = {"epsilon": max(epsilons.values(), default=None), "epsilon_by_site": epsilons}
    left = summary(record) | privacy | {"auc": values, "total_seconds": seconds, "report": str(files["report.html"])}
    files["summary.json"].write_text(json_.dumps(left, indent=2) + "\n", encoding="utf-8")
    return left


def told(epsilons: dict[str, float]) -> str:
    """What was spent in privacy, in a line."""
    each = ", ".join(f"{site} {value:.2f}" for site, value in epsilons.items())
    return f"{each}, by each hospital's own ledger" if each else "none: this run has no differential privacy"


def conclude(stage: Stage, left: dict[str, Any], compared: Comparison, *, as_json: bool) -> None:
    """Print the table that answers whether it was worth it.

    Raises:
        RunFailed: it was not.
    """
    rows: list[tuple[object, ...]] = [(f"{site} alone", compared.examples[site], number(value)) for site, value in compared.alone.items()]
    everybody = sum(compared.examples.values())
    rows += [("mean of alone", "", number(compared.mean_alone)), ("federated", everybody, number(compared.federated))]
    rows += [("pooled in one place", everybody, number(compared.pooled))]
    lines = {
        "federated against alone": f"{compared.federated - compared.mean_alone:+.3f}",
        "federated against pooled": f"{compared.federated - compared.pooled:+.3f}",
        "bytes moved": f"{data_size(left['bytes_up'])} from the hospitals, {data_size(left['bytes_down'])} to them",
        "secure aggregation": "yes: the coordinator saw the sum of the hospitals' updates and nothing of a single one",
        "epsilon": told(left["epsilon_by_site"]),
        "time": f"{duration(left['total_seconds'])}, of which {duration(left['seconds'])} for {left['rounds']} rounds",
        "report": left["report"],
    }
    title = "AUC on the held-out patients of all hospitals, by model"
    shown = Group(title, console.table(("model", ">patients", ">AUC"), rows), console.facts(lines))
    console.emit(left, shown, as_json=as_json)
    if not compared.mean_alone < compared.federated >= compared.pooled - CLOSE_ENOUGH:
        raise RunFailed("federating was not worth it here", where=str(stage.folder), why="see the table", hint="this should not happen; report it")
