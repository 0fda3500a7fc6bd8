"""``fedscale privacy spent|ledger|statement`` and ``fedscale node receipts``: what has left this site, and what it cost."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import RunFailed
from fedscale_client import spending
from fedscale_client.home import NodeHome
from fedscale_client.ledger import accounts, reading
from fedscale_client.ledger.head import Head
from fedscale_client.options import HOME, HomeFolder, opened

NOTHING = "nothing has left this site yet"
Delta = Annotated[float | None, typer.Option(min=1e-11, max=0.5, help="At which epsilon is told; by default the cap's, else the plans'.")]


def spent(*, home: HomeFolder = HOME, delta: Delta = None, json: Json = False) -> None:
    """Show what this site has spent, by population and unit of privacy."""
    node = opened(home)
    found, items = spending.spent(node, delta), spending.items(node)
    left_out = len(accounts.uncovered(items))
    data = {"accounts": [account.to_json() for account in found], "not_covered": left_out}
    rows = [(a.population, a.unit, f"{a.epsilon:.4g}", f"{a.delta:g}", f"{a.cap.epsilon:g}" if a.cap else "none", len(a.items)) for a in found]
    drawn = console.table(("population", "unit", ">epsilon", ">at delta", ">cap", ">answers"), rows)
    console.emit(data, drawn if rows else NOTHING if not items else "nothing has left this site with differential privacy yet", as_json=json)
    if left_out:
        console.note(f"{left_out} answers are covered by no epsilon; see them: fedscale node receipts --home {home}")


def ledger(
    *,
    home: HomeFolder = HOME,
    verify: Annotated[bool, typer.Option("--verify", help="Check every entry, the chain and its end; exit code 1 when something is wrong.")] = False,
    head: Annotated[
        str, typer.Option(metavar="SEQ:HASH", help="With --verify: an end of the ledger noted earlier, which it must still contain.")
    ] = "",
    json: Json = False,
) -> None:
    """Show or verify the privacy ledger of this site."""
    node = opened(home)
    known = Head.parsed(head, "--head") if head else None
    if verify:
        _verify(node, known, as_json=json)
        return
    entries = reading.lines(node)
    data = [asdict(entry) | {"facts": json_text.loads(entry.facts)} for entry in entries]
    rows = [(entry.seq, entry.at[:19], entry.kind, entry.reservation, entry.digest[:12]) for entry in entries]
    console.emit(data, console.table((">entry", "at", "what", ">of", "hash"), rows) if rows else NOTHING, as_json=json)


def statement(
    run: Annotated[str, typer.Argument(help="The run, as the coordinator names it.")], *, home: HomeFolder = HOME, json: Json = False
) -> None:
    """State what this site guarantees about its part in a run."""
    node = opened(home)
    data = accounts.statement(spending.items(node), run, node.settings().name)
    console.emit(data, console.facts({name: value for name, value in data.items() if name != "spends"}), as_json=json)


def receipts(*, home: HomeFolder = HOME, run: Annotated[str, typer.Option(help="Only of this run.")] = "", json: Json = False) -> None:
    """List what left this site, answer by answer."""
    data = spending.receipts(opened(home), run)
    rows = [
        (r["at"][:19], r["run"], f"{r['phase']} {r['round']}", r["bytes"], r["sha256"][:12], "yes" if r["masked"] else "no", _cost(r["epsilon"]))
        for r in data
    ]
    columns = ("at", "run", "task", ">bytes", "sha256", "masked", ">epsilon")
    console.emit(data, console.table(columns, rows) if rows else NOTHING, as_json=json)


def _verify(node: NodeHome, known: Head | None, *, as_json: bool) -> None:
    """Print what is wrong with the ledger, or where it ends.

    Raises:
        RunFailed: something is wrong.
    """
    problem, head = reading.verify(node, known)
    if problem:
        raise RunFailed("the privacy ledger does not verify", where=str(node.ledger), why=problem, hint="this node answers no task until it does")
    text = f"the ledger verifies; it ends with {head}"
    console.emit({"entries": head.seq, "head": asdict(head)}, text, as_json=as_json)


def _cost(value: Any) -> str:
    return "not covered" if value is None else f"{value:.3g}"
