"""``fedscale privacy spent|free|statement`` and ``fedscale node receipts``: what has left this site, and what it cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.lazy import later
from fedscale.cli.options import DryRun, Json, at
from fedscale.errors import NotFound
from fedscale_client import spending
from fedscale_client.ledger import accounts
from fedscale_client.ledger.accounts import Account
from fedscale_client.options import HOME, LINES, NOTHING, HomeFolder, Lines, emit_newest, opened

Delta = Annotated[float | None, typer.Option(min=1e-11, max=0.5, help="At which epsilon is told; by default the cap's, else the plans'.")]


def spent(*, home: HomeFolder = HOME, delta: Delta = None, json: Json = False) -> None:
    """Show what this site has spent, by population and unit of privacy."""
    node = opened(home)
    items = spending.items(node)
    found = spending.spent(node, items, delta)
    left_out = len(accounts.uncovered(items))
    data = {"accounts": [account.to_json() for account in found], "not_covered": left_out}
    rows = [_row(account) for account in found]
    drawn = console.table(("population", "unit", ">epsilon", ">promised", ">at delta", ">cap", ">answers"), rows)
    console.emit(data, drawn if rows else NOTHING if not items else "nothing has left this site with differential privacy yet", as_json=json)
    if left_out:
        console.note(f"{_answers(left_out)} {'is' if left_out == 1 else 'are'} covered by no epsilon; see: fedscale node receipts {at(home)}")
    for hold in (hold for account in found for hold in account.holds):
        kept = f"{_answers(hold.answers)} until {hold.item.claim.until[:16].replace('T', ' ')} UTC"
        console.note(f"run {hold.run} keeps room for {kept}; to let go of it: fedscale privacy free {hold.run} {at(home)}")


def free(
    run: Annotated[str, typer.Argument(help="The run, as the coordinator names it.")],
    *,
    home: HomeFolder = HOME,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let others have the room that a run keeps under the cap; what it spent stays spent."""
    node = opened(home)
    hold = next((hold for hold in spending.holds(node) if hold.run == run), None)
    if hold is not None and not dry_run:
        hold = later("fedscale_client.ledger.book:Ledger").open(node).free(run, "let go by the site's owner")
    if hold is None:
        raise NotFound(f"no room is kept for a run '{run}'", hint=f"see which: fedscale privacy spent {at(home)}")
    text = f"{'would let' if dry_run else 'let'} go of the room for {_answers(hold.answers)} of run {run}"
    console.emit(hold.to_json() | {"dry_run": dry_run}, text, as_json=json)


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


def _row(account: Account) -> tuple[object, ...]:
    """An account as a line of the table."""
    cap = f"{account.cap.epsilon:g}" if account.cap else "none"
    told = (f"{account.epsilon:.4g}", f"{account.promised:.4g}", f"{account.delta:g}", cap, len(account.items))
    return account.population, account.unit, *told


def _answers(count: int) -> str:
    return f"{count} answer{'' if count == 1 else 's'}"


def _cost(value: Any) -> str:
    return "not covered" if value is None else f"{value:.3g}"
