"""``fedscale explain``: what a failure or an error means, and what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fedscale import console, errors
from fedscale.advice import ADVICE
from fedscale.cli.options import Json
from fedscale.errors import Cause, FedscaleError, NotFound

CODES = {0: "done", 1: "a run failed", 2: "usage or configuration", 3: "unreachable", 4: "access", 5: "policy", 6: "conflict or not found"}


def explain(
    word: Annotated[str, typer.Argument(metavar="CAUSE", help="A cause such as data, or an error such as PlanError; nothing lists all.")] = "",
    *,
    json: Json = False,
) -> None:
    """Explain a cause of failure or an error: what it means, what is behind it, what to do."""
    known = {kind.__name__.lower(): kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedscaleError)}
    if not word:
        rows = [(cause.value, advice.means) for cause, advice in ADVICE.items()]
        console.emit(dict(rows), console.table(("cause", "what it means"), rows), as_json=json)
    elif word in set(Cause):
        advice = ADVICE[Cause(word)]
        steps = "\n".join(f"{at}. {step}" for at, step in enumerate(advice.steps, 1))
        text = f"{word}: {advice.means}.\nOften behind it: {advice.often}.\n{steps}\nMeanwhile {advice.run}."
        console.emit({"cause": word} | asdict(advice), text, as_json=json)
    elif kind := known.get(word.lower()):
        said, code = (kind.__doc__ or "").partition("\n")[0], kind.exit_code
        data = {"error": kind.__name__, "means": said, "exit_code": code}
        console.emit(data, f"{kind.__name__}: {said} Exit code {code}: {CODES.get(code, 'a bug')}.", as_json=json)
    else:
        raise NotFound(
            f"'{word}' is no cause of failure and no error", hint=console.closest(word, [*Cause, *(kind.__name__ for kind in known.values())])
        )
