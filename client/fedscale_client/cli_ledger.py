"""``fedscale privacy ledger``: every entry of a site's ledger, and whether anybody has changed them; epsilons are not computed here."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import RunFailed
from fedscale_client import chronicle
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.ledger.head import RESTORE, Head
from fedscale_client.options import HOME, LINES, HomeFolder, Lines, emit_newest, opened


def ledger(
    *,
    home: HomeFolder = HOME,
    verify: Annotated[bool, typer.Option("--verify", help="Check every entry, the chain and its end; exit code 1 when something is wrong.")] = False,
    head: Annotated[
        str, typer.Option(metavar="SEQ:HASH", help="With --verify: an end noted earlier, which it must still contain; by default the coordinator's.")
    ] = "",
    lines: Lines = LINES,
    json: Json = False,
) -> None:
    """Show or verify the privacy ledger of this site."""
    node = opened(home)
    known = Head.parsed(head, "--head") if head else None
    if verify:
        _verify(node, known or chronicle.noted(node), as_json=json)
        return
    entries = reading.lines(node)
    data = [asdict(entry) | {"facts": json_text.loads(entry.facts)} for entry in entries]
    rows = [(entry.seq, entry.at[:19], entry.kind, entry.reservation, entry.digest[:12]) for entry in entries]
    emit_newest(data, (">entry", "at (UTC)", "what", ">of", "hash"), rows, lines, as_json=json)


def _verify(node: NodeHome, known: Head | None, *, as_json: bool) -> None:
    """Print what is wrong with the ledger, or where it ends.

    Raises:
        RunFailed: something is wrong.
    """
    problem, head = reading.verify(node, known)
    if problem:
        hint = f"no task is answered until it does; where it was cut or rolled back: {RESTORE}"
        raise RunFailed("the privacy ledger does not verify", where=str(node.ledger), why=problem, hint=hint)
    text = f"the ledger verifies; it ends with {head}"
    console.emit({"entries": head.seq, "head": asdict(head)}, text, as_json=as_json)
