"""What a site's cap lets in: a run as a whole before anything of it is set aside, and each of its tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from fedscale.errors import PolicyRefusal
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Mechanism, Spend
from fedscale_client.ledger.claims import Cap, Claim, to_set
from fedscale_client.ledger.lines import Kind
from fedscale_client.ledger.state import State, spends_of

RAISE = "train fewer rounds or with more noise, or ask the site's owner to raise the cap"
Change: TypeAlias = tuple[Kind, int, Mapping[str, Any]]


def admitted(state: State, claim: Claim, cap: Cap | None, run: tuple[Spend, ...] = ()) -> Change:
    """A reservation, if it fits under the cap.

    Args:
        state: the ledger.
        claim: what the task costs.
        cap: what must not be passed.
        run: what the run costs from this task to its end.

    Raises:
        PolicyRefusal: the task does not fit; or the run does not, of which nothing counts yet.
    """
    if cap is not None and (claim.spends != () or run):
        limit = f"the cap is epsilon {cap.epsilon:g} at delta {cap.delta:g} for each {cap.unit}"
        if claim.spends is None:
            raise PolicyRefusal("this site answers with differential privacy only", where=claim.dataset, why=limit, hint="add [privacy] to the job")
        if claim.unit != cap.unit:
            hint = f'set privacy.unit = "{cap.unit}"'
            raise PolicyRefusal(f"this site does not count its privacy by the {claim.unit}", where=claim.dataset, why=limit, hint=hint)
        counted = state.counted(claim.population, claim.unit, claim.data)
        former = spends_of(counted)
        if run and not any(item.claim.run == claim.run and item.claim.spends for item in counted):
            _require_room(claim, cap, limit, former, run)
        # What others have spent is not said of a single task: it is none of the coordinator's business.
        if claim.spends and not epsilon((*former, *claim.spends), cap.delta) <= cap.epsilon:
            need = f"{limit}, this task alone needs {epsilon(claim.spends, cap.delta):.3g}"
            raise PolicyRefusal("the privacy cap of this site would be passed", where=claim.dataset, why=need, hint=RAISE)
    _require_turn(state, claim)
    return Kind.RESERVE, 0, claim.to_json()


def _require_room(claim: Claim, cap: Cap, limit: str, former: tuple[Spend, ...], run: tuple[Spend, ...]) -> None:
    """Refuse a run that would come to an end before its last round, after its first ones have cost what they cost.

    Raises:
        PolicyRefusal: it does not fit, with what is left: without that the coordinator could only try smaller and smaller runs.
    """
    total = epsilon((*former, *run), cap.delta)
    if total <= cap.epsilon:
        return
    left = max(0.0, cap.epsilon - epsilon(former, cap.delta))
    why = f"{limit}, of which {_down(left):g} is left, and all rounds of the run need {epsilon(run, cap.delta):.3g}"
    more = f": {to_set(claim.dataset, epsilon=f'{_up(total):g}')}" if math.isfinite(total) else ""
    hint = f"lower privacy.epsilon or leave this site out, or its owner allows more{more}"
    raise PolicyRefusal("the run would pass the privacy cap of this site before its end", where=claim.dataset, why=why, hint=hint)


def _down(value: float) -> float:
    """A number with two decimals, never more than it is."""
    return math.floor(value * 100) / 100


def _up(value: float) -> float:
    """A number with two decimals, never less than it is."""
    return math.ceil(value * 100) / 100


def _require_turn(state: State, claim: Claim) -> None:
    """Refuse a second answer in one tree of noise, which hides one answer of a site and no more.

    Raises:
        PolicyRefusal: this site has answered in the tree, in another round.
    """
    length = next((spend.steps for spend in claim.spends or () if spend.mechanism == Mechanism.TREE), 0)
    for item in state.items.values() if length else ():
        run, phase, number = item.claim.key
        same = (run, phase) == claim.key[:2] and (number - 1) // length == (claim.number - 1) // length
        if same and number != claim.number and item.refund is None:
            why = f"it answered in round {number}, and a tree goes over {length} rounds"
            hint = "lower clients.select or privacy.tree_rounds"
            raise PolicyRefusal("this site has answered in this tree of noise already", where=claim.dataset, why=why, hint=hint)
