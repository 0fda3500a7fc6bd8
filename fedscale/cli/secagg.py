"""``fedscale secagg``: what secure aggregation needs, computed, never guessed."""

from __future__ import annotations

from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.lazy import Entry, group
from fedscale.cli.options import Json
from fedscale.secagg.parameters import FAILURE_BITS, SECURITY_BITS, Profile, complete, find
from fedscale.secagg.terms import Suite

secagg = group("Plan secure aggregation.", {"parameters": Entry("fedscale.cli.secagg:parameters", "Compute degree and threshold for a cohort.")})


def parameters(
    *,
    nodes: Annotated[int, typer.Option(help="How many nodes take part.")],
    adversarial: Annotated[float, typer.Option(help="Share of them that may collude with the server.")],
    dropout: Annotated[float, typer.Option(help="Share of them that may drop out.")],
    profile: Annotated[Profile, typer.Option(help="What the server may do.")] = Profile.MALICIOUS,
    suite: Annotated[Suite, typer.Option(help="On a random graph, or everybody with everybody.")] = Suite.GRAPH,
    json: Json = False,
) -> None:
    """Compute degree and threshold for a cohort."""
    found = (find if suite is Suite.GRAPH else complete)(nodes, adversarial, dropout, profile)
    promise = (
        f"secure but for 2^-{SECURITY_BITS}, complete but for 2^-{FAILURE_BITS}" if suite is Suite.GRAPH else "secure and complete within these rates"
    )
    shown = console.facts({"degree": found.degree, "threshold": found.threshold, "promise": promise})
    console.emit({"degree": found.degree, "threshold": found.threshold}, shown, as_json=json)
