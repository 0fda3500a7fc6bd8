"""The nodes' half of secure aggregation in a simulation: the real machines of all clients, in this process.

A round of few clients runs the protocol as it is deployed. A large one would spend its time on keys that nobody attacks;
it takes the same sum in the clear instead, gives the same bits, and says so.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from fedscale.errors import FedscaleError, PlanError
from fedscale.events import Answered, Failed, Spoke, Tell
from fedscale.masked import Ground, MaskedSum, filled
from fedscale.names import Names
from fedscale.plan import Plan
from fedscale.privacy.lots import derived
from fedscale.record import JSON
from fedscale.ring import WORD
from fedscale.run import Run
from fedscale.secagg import prg
from fedscale.secagg.keys import public_of
from fedscale.secagg.node import Node, Reply, Site
from fedscale.secagg.parameters import Profile
from fedscale.secagg.table import Secagg
from fedscale.secagg.terms import Mark, Policy
from fedscale_simulations.failures import failure_of

Mode: TypeAlias = Literal["auto", "protocol", "exact"]
Wanted: TypeAlias = bool | Mode | Secagg | Mapping[str, Any] | None

MODES = ("auto", "protocol", "exact")
# The largest cohort that runs the protocol unasked.
FEW = 32


@lru_cache(maxsize=1 << 16)
def identity(seed: int, name: str) -> Ed25519PrivateKey:
    """The identity key of a virtual client: always the same, for there is nothing to protect."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"identity/{seed}/{name}".encode()).digest())


@dataclass(frozen=True)
class Identities(Mapping[str, str]):
    """The identity keys of all clients, in hex, each made when it is asked for."""

    names: Names
    seed: int

    def __getitem__(self, name: str) -> str:
        """The public key of a client."""
        return public_of(identity(self.seed, name)).hex()

    def __iter__(self) -> Iterator[str]:
        """All clients."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many they are."""
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        """Every client has one."""
        return name in self.names


@dataclass
class Circle:
    """The clients of one round after the other, each with its machine.

    Args:
        run: whose rounds these are.
    """

    run: Run
    _nodes: dict[str, Node] = field(default_factory=dict)
    _marks: dict[str, Mark] = field(default_factory=dict)

    def hear(self, tell: Tell) -> Spoke | Failed | None:
        """What a client answers to a message; ``None`` where its vector is due."""
        if tell.step == "keys":
            self._join(tell.node)
        try:
            reply = self._nodes[tell.node].handle(tell.data)
        except FedscaleError as error:
            return Failed(tell.node, failure_of(error))
        return None if reply is None else Spoke(tell.node, tell.step, b64encode(self._marked(tell.node, reply).message).decode())

    def mask(self, answer: Answered) -> Answered | Failed:
        """A client's answer under its masks."""
        if answer.words is None:
            return answer
        try:
            reply = self._marked(answer.node, self._nodes[answer.node].submit(answer.words[:]))
        except FedscaleError as error:
            return Failed(answer.node, failure_of(error))
        body = reply.body if isinstance(reply.body, np.ndarray) else np.frombuffer(filled(reply.body or b""), WORD)
        return replace(answer, words=body)

    def _join(self, name: str) -> None:
        """A client takes part in a new round, with what it remembers of the last."""
        masked = self._masked()
        # Whoever simulates owns all sites: they believe of the server what the plan says.
        policy = Policy(curious=masked.server.terms.profile is Profile.CURIOUS)
        site = Site(name, identity(self.run.plan.job.seed, name), masked.roster, policy, core=self.run.ground.core)
        self._nodes[name] = Node(site, masked.server.terms, self._marks.get(name))

    def _masked(self) -> MaskedSum:
        """The sum of the open round.

        Raises:
            PlanError: there is none.
        """
        if self.run.round is None or self.run.round.masked is None:
            raise PlanError("a message of secure aggregation in a round without it")
        return self.run.round.masked

    def _marked(self, name: str, reply: Reply) -> Reply:
        """A reply once its mark is kept."""
        if reply.mark is not None:
            self._marks[name] = reply.mark
        return reply


def wanted_of(wanted: Wanted) -> tuple[Secagg | Mapping[str, Any] | None, Mode]:
    """The plan's table and the mode behind the argument of ``simulate``.

    Raises:
        PlanError: there is no such mode.
    """
    if isinstance(wanted, BaseModel | Mapping):
        return wanted, "auto"
    if isinstance(wanted, str):
        if wanted not in MODES:
            raise PlanError(f"there is no secure aggregation '{wanted}'", hint=f"known: {', '.join(MODES)}")
        return Secagg(), wanted
    if not isinstance(wanted, bool | None):
        raise PlanError(f"secagg is of type {type(wanted).__name__}", hint=f"give True, one of {', '.join(MODES)}, or fs.Secagg(...)")
    return (Secagg() if wanted else None), "auto"


def ground_of(plan: Plan, clients: int, mode: Mode, facts: dict[str, JSON]) -> Ground:
    """How the sums of a simulation are computed; what it says of it is noted in ``facts``.

    Raises:
        PlanError: a mode was asked for and the plan has no secure aggregation.
    """
    # All chance of a simulation is the plan's, so that it can be repeated.
    secret = derived(plan.job.seed.to_bytes(8, "little"), "coordinator", 0)
    if not plan.secagg.enabled:
        if mode != "auto":
            raise PlanError(f"secure aggregation '{mode}' is asked for and the plan has none", where="secagg", hint="add a table [secagg]")
        return Ground(secret=secret)
    chosen = plan.clients.model_copy(update={"select": plan.evaluate.select})
    largest = max(plan.clients.asked(clients)[0], chosen.asked(clients)[0] if plan.evaluate.every else 0)
    real = mode == "protocol" or (mode == "auto" and largest <= FEW)
    why = "asked for" if mode != "auto" else f"cohorts of up to {largest} clients, the protocol is run for up to {FEW}"
    facts["secagg"] = {"mode": "protocol" if real else "exact", "profile": plan.secagg.profile, "why": why}
    return Ground(core=prg.choose(time.perf_counter), protocol=real, secret=secret)
