"""What a site says to a step of a run before anybody is asked for anything: which of its tasks it would refuse.

It binds nobody, for each task is looked at again when it comes. It lets a run learn of a refusal before other sites have
spent privacy on a round that cannot succeed without this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeAlias

from fedscale.errors import DataError, Failure, FedscaleError
from fedscale.learner import Phase
from fedscale.wire.convert import Key, key_text
from fedscale_client import declarations, failures
from fedscale_client.connection import Assignment, Proposal
from fedscale_client.gate import Gate
from fedscale_client.home import NodeHome

Tell: TypeAlias = Callable[..., None]
MOST = 32


class Stances:
    """Answers proposals.

    Args:
        home: what the site offers.
        gate: decides.
        say: takes the proposal's key and what would be refused.
        tell: takes what the site's own people should know.
    """

    def __init__(self, home: NodeHome, gate: Gate, say: Callable[[Key, Mapping[Phase, Failure]], None], tell: Tell) -> None:
        self._home, self._gate, self._say, self._tell = home, gate, say, tell
        self._open: set[Key] = set()
        self._turn = asyncio.Lock()

    async def answer(self, proposal: Proposal) -> None:
        """Say what would be refused; one at a time, and not twice at once. Beyond ``MOST`` nothing is said, and the tasks decide."""
        key = proposal.key
        if key in self._open or len(self._open) >= MOST:
            return
        self._open.add(key)
        try:
            async with self._turn:
                refused = {phase: failure for phase in _due(proposal) if (failure := await self._refusal(proposal, phase))}
        finally:
            self._open.discard(key)
        for phase, failure in refused.items():
            asked = (key[0], phase, key[2])
            self._tell("declined", key=key_text(asked), run=key[0], phase=str(phase), number=key[2], **wanted(proposal), failure=asdict(failure))
        self._say(key, refused)

    async def _refusal(self, proposal: Proposal, phase: Phase) -> Failure | None:
        """Why a task of that phase would not be done, as far as that can be known before it comes."""
        try:
            declaration = declarations.offered(self._home, name := proposal.plan.job.data)
            if not all(file.exists() for file in declaration.files(self._home.path)):
                raise DataError("a file of this dataset is not there", where=name, hint=f"the site can look with: fedscale node data check {name}")
            await self._gate.consider(proposal, phase, declaration)
        except (FedscaleError, OSError) as error:
            return failures.of_local(error)
        return None


def wanted(asked: Assignment | Proposal) -> dict[str, str]:
    """What a task wants, for the site's own people."""
    job, plan = asked.plan.job, asked.plan
    return {"name": job.name, "dataset": job.data, "app": asked.bundle, "plan": plan.digest, "plan_toml": asked.plan_toml}


def _due(proposal: Proposal) -> tuple[Phase, ...]:
    """The phases that a site would be asked for from there on: where a plan evaluates at all, whoever trains is asked for that too."""
    phase, plan = proposal.key[1], proposal.plan
    return (phase, Phase.EVALUATE) if phase is not Phase.EVALUATE and plan.evaluate.every else (phase,)
