"""``fedscale audit privacy``: is the noise there, is the clip the sensitivity, and do known attacks fail?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import ConfigError, RunFailed
from fedscale.privacy.accountant import noise_multiplier
from fedscale.privacy.audit.canaries import CONFIDENCE
from fedscale.privacy.events import Mechanism
from fedscale_simulations.audit.campaign import Attacked, Finding, Verdict, attack, audit, protected, self_test
from fedscale_simulations.audit.pipeline import Pipeline

FEWEST = 3
BENCH = Pipeline(4, 1024, 1.0, 1.0)
BENCH_CANARIES = 512


def privacy(
    *,
    epsilon: Annotated[float, typer.Option(help="What one release is to cost.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Chance with which that may fail.")] = 1e-5,
    clip: Annotated[float, typer.Option(help="Largest norm of one unit's contribution.")] = 1.0,
    nodes: Annotated[int, typer.Option(help="How many nodes share the noise.")] = 4,
    canaries: Annotated[int, typer.Option(help="Made-up units in a release; more of them see smaller faults.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of canaries and made-up records; the noise is always fresh.")] = 0,
    test: Annotated[bool, typer.Option("--self-test", help="Audit small pipelines with known bugs instead, and one without.")] = False,
    runs: Annotated[int, typer.Option(help="How often each bug is planted by --self-test.")] = 10,
    json: Json = False,
) -> int:
    """Send canaries and attacks through clipping, ring, masks and noise."""
    if test:
        return _tell_test(self_test(BENCH, BENCH_CANARIES, delta, seed, runs), as_json=json)
    if nodes < FEWEST or canaries < 2 or clip <= 0:
        raise ConfigError(f"an audit needs {FEWEST} nodes, 2 canaries and a positive clip", hint="leave the options out")
    noise = noise_multiplier(epsilon, delta, mechanism=str(Mechanism.SKELLAM))
    pipeline = Pipeline(nodes, 1 << canaries.bit_length(), clip, noise)
    return _tell(pipeline, audit(pipeline, canaries, delta, seed), attack(pipeline, seed), delta, as_json=json)


def _tell(pipeline: Pipeline, verdict: Verdict, attacked: Sequence[Attacked], delta: float, *, as_json: bool) -> int:
    """Print what was found; exit code 1 where something is wrong."""
    power, failed = protected(attacked, pipeline.noise_multiplier)
    flags = [*verdict.flags, *(["attacks without power"] * (not power)), *(["attacks succeed"] * (not failed))]
    data = {"delta": delta, "noise_multiplier": pipeline.noise_multiplier, "canaries": verdict.to_json(), "flags": flags}
    data |= {"attacks": [asdict(each) for each in attacked], "attacks_have_power": power, "attacks_fail": failed}
    if flags:
        return console.refuse(RunFailed(f"the audit flags: {', '.join(flags)}", where="audit privacy"), as_json=as_json, data=data)
    facts = {
        "epsilon promised": f"{verdict.claimed:.3g} at delta {delta:g}",
        "epsilon estimated": ", ".join(f"{each.epsilon:.3g}" for each in verdict.estimates),
        "epsilon at least": f"{verdict.certificate:.3g} with confidence {CONFIDENCE:g}",
        "noise over clip": ", ".join(f"{each.noise:.3g} +- {each.error:.2g}" for each in verdict.estimates),
        "sensitivity over clip": ", ".join(f"{each.signal:.3g}" for each in verdict.estimates),
        "flags": "none",
    }
    rows = [(each.held, f"{each.membership:.3f}", f"{each.inversion:.3f}") for each in attacked]
    shown = Group(console.facts(facts), console.table(("what the server holds", ">membership, AUC", ">inversion, likeness"), rows))
    console.emit(data, shown, as_json=as_json)
    return 0


def _tell_test(tested: Sequence[Finding], *, as_json: bool) -> int:
    """Print how often each bug was found; exit code 1 where one was missed or something was found where nothing was."""
    data = {"faults": [asdict(each) | {"passed": each.passed} for each in tested], "passed": all(each.passed for each in tested)}
    if not data["passed"]:
        wrong = [f"{each.fault}: flagged {each.flagged} of {each.runs}" for each in tested if not each.passed]
        return console.refuse(RunFailed("the audit fails its own test", why="; ".join(wrong)), as_json=as_json, data=data)
    rows = [(each.fault, f"{each.flagged} of {each.runs}") for each in tested]
    console.emit(data, console.table(("planted", ">flagged"), rows), as_json=as_json)
    return 0
