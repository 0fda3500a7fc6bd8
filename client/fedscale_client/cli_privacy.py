"""``fedscale privacy spent|statement`` and ``fedscale node receipts``: what has left this site, and what it cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.options import Json, at
from fedscale_client import spending
from fedscale_client.ledger import accounts
from fedscale_client.options import HOME, LINES, NOTHING, HomeFolder, Lines, emit_newest, opened

Delta = Annotated[float | None, typer.Option(min=1e-11, max=0.5, help="At which epsilon is told; by default the cap's, else the plans'.")]


def spent(*, home: HomeFolder = HOME, delta: Delta = None, json: Json = False) -> None:
    """Show what this site has spent, by population and unit of privacy."""
    node = opened(home)
    items = spending.items(node)
    found = spending.spent(node, items, delta)
    left_out = len(accounts.uncovered(items))
    data = {"accounts": [account.to_json() for account in found], "not_covered": left_out}
    rows = [(a.population, a.unit, f"{a.epsilon:.4g}", f"{a.delta:g}", f"{a.cap.epsilon:g}" if a.cap else "none", len(a.items)) for a in found]
    drawn = console.table(("population", "unit", ">epsilon", ">at delta", ">cap", ">answers"), rows)
    console.emit(data, drawn if rows else NOTHING if not items else "nothing has left this site with differential privacy yet", as_json=json)
    if left_out:
        console.note(f"{left_out} answer{' is' if left_out == 1 else 's are'} covered by no epsilon; see: fedscale node receipts {at(home)}")


def statement(
    run: Annotated[str, typer.Argument(help="The run, as the coordinator names it.")], *, home: HomeFolder = HOME, json: Json = False
) -> None:
    """State what this site guarantees about its part in a run."""
    node = opened(home)
    data = accounts.statement(spending.items(node), run, node.settings().name)
    console.emit(data, console.facts({name: value for name, value in data.items() if name != "spends"}), as_json=json)


def receipts(
    *,
    home: HomeFolder = HOME,
    run: Annotated[str, typer.Option(help="Only of this run.")] = "",
    lines: Lines = LINES,
    json: Json = False,
) -> None:
    """List what left this site, answer by answer."""
    data = spending.receipts(opened(home), run)
    rows = [
        (r["at"][:19], r["run"], f"{r['phase']} {r['round']}", r["bytes"], r["sha256"][:12], "yes" if r["masked"] else "no", _cost(r["epsilon"]))
        for r in data
    ]
    emit_newest(data, ("at (UTC)", "run", "task", ">bytes", "sha256", "masked", ">epsilon"), rows, lines, as_json=json)


def _cost(value: Any) -> str:
    return "not covered" if value is None else f"{value:.3g}"
