"""What a site's cap lets in: a run as a whole before anything of it is set aside, and each of its tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

from fedscale.errors import PolicyRefusal
from fedscale.privacy.accountant import epsilon
from fedscale.privacy.events import Mechanism, Spend
from fedscale_client.ledger.claims import Cap, Claim, to_set
from fedscale_client.ledger.lines import Kind
from fedscale_client.ledger.state import State, counting, holds, spends_of

RAISE = "train fewer rounds or with more noise, or ask the site's owner to raise the cap"
Change: TypeAlias = tuple[Kind, int, Mapping[str, Any]]


def admitted(state: State, claim: Claim, cap: Cap | None, run: tuple[Spend, ...], now: datetime) -> Change:
    """A reservation, if it fits under the cap; the first one of a run keeps room for all that the run has yet to ask.

    Args:
        state: the ledger.
        claim: what the task costs.
        cap: what must not be passed.
        run: what the run costs from this task to its end.
        now: the moment.

    Raises:
        PolicyRefusal: the task does not fit; or the run does not, of which nothing counts yet.
    """
    items = state.about(claim.population, claim.unit, claim.data)
    kept = holds(items, now)
    own = any(hold.run == claim.run for hold in kept)
    begun = own or any(item.claim.run == claim.run and item.claim.spends for item in counting(items))
    if cap is not None and (claim.spends != () or run):
        _require_countable(claim, cap)
        former = spends_of(counting(items))
        # Room of its own is as good as free; without it, all that is kept is others'.
        others = () if own else tuple(spend for hold in kept for spend in hold.spends)
        if run and not begun:
            _require_room(claim, cap, former, others, run)
        else:
            _require_fit(claim, cap, (*former, *others))
    _require_turn(state, claim)
    return Kind.RESERVE, 0, (replace(claim, answers=0, until="") if begun else claim).to_json()


def _require_countable(claim: Claim, cap: Cap) -> None:
    """Refuse what cannot be counted against a cap.

    Raises:
        PolicyRefusal: nothing protects it, or another unit than the cap's.
    """
    if claim.spends is None:
        raise PolicyRefusal("this site answers with differential privacy only", where=claim.dataset, why=_limit(cap), hint="add [privacy] to the job")
    if claim.unit != cap.unit:
        hint = f'set privacy.unit = "{cap.unit}"'
        raise PolicyRefusal(f"this site does not count its privacy by the {claim.unit}", where=claim.dataset, why=_limit(cap), hint=hint)


def _require_fit(claim: Claim, cap: Cap, taken: tuple[Spend, ...]) -> None:
    """Refuse a task that would pass the cap on top of what is taken: spent, and kept by others unless its own run keeps room for it.

    Raises:
        PolicyRefusal: it does not fit. What others have spent is not said of a single task: it is none of the coordinator's business.
    """
    if claim.spends and not epsilon((*taken, *claim.spends), cap.delta) <= cap.epsilon:
        need = f"{_limit(cap)}, this task alone needs {epsilon(claim.spends, cap.delta):.3g}"
        raise PolicyRefusal("the privacy cap of this site would be passed", where=claim.dataset, why=need, hint=RAISE)


def _require_room(claim: Claim, cap: Cap, former: tuple[Spend, ...], others: tuple[Spend, ...], run: tuple[Spend, ...]) -> None:
    """Refuse a run that would come to an end before its last round, after its first ones have cost what they cost.

    Raises:
        PolicyRefusal: it does not fit, with what is left: without that the coordinator could only try smaller and smaller runs.
    """
    total = epsilon((*former, *others, *run), cap.delta)
    if total <= cap.epsilon:
        return
    left = max(0.0, cap.epsilon - epsilon((*former, *others), cap.delta))
    beside = " beside what runs under way may yet spend" if others else ""
    why = f"{_limit(cap)}, of which {_down(left):g} is left{beside}, and all rounds of the run need {epsilon(run, cap.delta):.3g}"
    wait = "try again when other runs are over, " if others and epsilon((*former, *run), cap.delta) <= cap.epsilon else ""
    more = f": {to_set(claim.dataset, epsilon=f'{_up(total):g}')}" if math.isfinite(total) else ""
    hint = f"{wait}lower privacy.epsilon or leave this site out, or its owner allows more{more}"
    raise PolicyRefusal("the run would pass the privacy cap of this site before its end", where=claim.dataset, why=why, hint=hint)


def _limit(cap: Cap) -> str:
    """The cap in words."""
    return f"the cap is epsilon {cap.epsilon:g} at delta {cap.delta:g} for each {cap.unit}"


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
