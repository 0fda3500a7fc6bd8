"""What secure aggregation adds to a round: terms that server and nodes compute alike, and the sum under masks.

``MaskedSum`` is the server's machine with what a round must know of it: which step it is at, whose message is due and
what each node was told. Like the machine it is a function of the answers and of when steps were closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedscale.errors import PlanError
from fedscale.learner import Phase
from fedscale.plan import Plan
from fedscale.ring import LIMB_BITS, WORD, Pieces
from fedscale.secagg import messages as m
from fedscale.secagg import prg
from fedscale.secagg.parameters import MOST_SILOS, Profile
from fedscale.secagg.prg import Core
from fedscale.secagg.server import Advertising, Agreeing, Consenting, Done, Masking, Outcome, Server, Sharing, Unmasking
from fedscale.secagg.terms import Member, Roster, Suite, Terms
from fedscale.secagg.transcript import digest
from fedscale.update import Layout
from fedscale.vector import Schema

STEPS: dict[type[object], str] = {
    Advertising: "keys",
    Agreeing: "agreement",
    Sharing: "shares",
    Masking: "vector",
    Consenting: "consent",
    Unmasking: "opening",
}
VECTOR = STEPS[Masking]
LATE = (STEPS[Consenting], STEPS[Unmasking])


@dataclass(frozen=True, slots=True)
class Ground:
    """What the terms of a run's rounds say besides its plan, and how the run computes its sums.

    Args:
        run: whose rounds they are.
        code: SHA-256 of the app's bundle.
        core: what computes masks; all give the same bits.
        secret: 32 bytes that nobody else knows, for noise that the coordinator adds; what a run has begun with stays in its checkpoints.
        protocol: whether a plan's secure aggregation is really run. Only a simulation may do without, and then says so.
    """

    run: str = "simulation"
    code: str = ""
    core: Core = Core.GCM
    protocol: bool = True
    secret: bytes = field(default=b"", repr=False)


def roster_of(names: Iterable[str], keys: Mapping[str, str]) -> Roster:
    """The roster of a cohort from its identity keys in hex.

    Raises:
        PlanError: a node has none.
        ProtocolError: two nodes have the same.
    """
    listed = sorted(names)
    if missing := [name for name in listed if name not in keys]:
        raise PlanError(f"node '{missing[0]}' has no identity key", where="secagg", hint="secure aggregation needs a newer node there")
    return Roster(tuple(Member(name, bytes.fromhex(keys[name])) for name in listed))


def terms_for(ground: Ground, plan: Plan, phase: Phase, number: int, layout: Layout, schema: Schema, model: str, roster: Roster) -> Terms:
    """The terms of a round, computed alike by the server and by each node.

    Training and evaluation of one round are two sessions with numbers and models of their own, for a node gives one vector for each.
    """
    table, nodes = plan.secagg, len(roster.members)
    largest = (1 << LIMB_BITS) - 1
    return Terms(
        run=ground.run,
        round=2 * number - (phase is Phase.TRAIN),
        plan=digest("plan", bytes.fromhex(plan.digest), ground.code.encode(), schema.to_json().encode(), layout.clip.hex().encode()),
        model=digest("model", str(phase).encode(), bytes.fromhex(model)),
        roster=roster.digest,
        length=layout.length,
        limit=max(largest, layout.format.limit(layout.bound)) if layout.size else largest,
        bits=table.bits,
        suite=Suite.SILO if nodes <= MOST_SILOS else Suite.GRAPH,
        profile=Profile(table.profile),
        adversarial=table.adversarial,
        dropout=table.dropout,
    )


def filled(data: bytes) -> bytes:
    """A packed vector as it travels, filled up to whole words."""
    return data + bytes(-len(data) % WORD.itemsize)


@dataclass(slots=True)
class MaskedSum:
    """The sum of a round under masks.

    Args:
        server: the machine.
        outbox: what each node was told at this step.
        waiting: whose answer is due.
        away: who of those left after its vector was taken and may come back.
    """

    server: Server
    outbox: Mapping[str, bytes]
    waiting: set[str]
    away: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, terms: Terms, roster: Roster, core: Core = Core.GCM) -> MaskedSum:
        """A sum in which everybody is asked for keys."""
        server = Server(terms, roster, core)
        outbox = server.open()
        return cls(server, outbox, set(outbox))

    @property
    def step(self) -> str:
        """What is being collected; nothing when the round is over."""
        return STEPS.get(type(self.server.state), "")

    @property
    def late(self) -> bool:
        """Whether the vectors are in and only the sum is to be opened."""
        return self.step in LATE

    @property
    def roster(self) -> Roster:
        """Who may take part."""
        return self.server.roster

    @property
    def outcome(self) -> Outcome | None:
        """The opened sum."""
        return self.server.state.outcome if isinstance(self.server.state, Done) else None

    def hear(self, node: str, message: bytes) -> None:
        """Take an answer that is due.

        Raises:
            FedscaleError: it is not sound; the node is no longer waited for.
        """
        self.drop(node)
        self.server.receive(node, message)

    def add(self, node: str, words: Pieces) -> None:
        """Take a masked vector that is due, as it travelled.

        Raises:
            UpdateRejected: it is of a wrong size; the node is no longer waited for.
        """
        self.drop(node)
        state, terms = self.server.state, self.server.terms
        if isinstance(state, Masking):
            body = words[:] if terms.bits == WORD.itemsize * 8 else words[:].tobytes()[: prg.PACKED_BYTES * terms.length]
            self.server.receive(node, m.encode(m.Masked(state.session.id)), body)

    def drop(self, node: str) -> None:
        """Do not wait for a node any more at this step."""
        self.waiting.discard(node)
        self.away.discard(node)

    def close(self) -> None:
        """End the step and go to the next; whoever has not answered has dropped out.

        Raises:
            FedscaleError: too few answered, or the sum would be wrong; nothing was opened.
        """
        self.outbox = self.server.close()
        self.waiting, self.away = set(self.outbox), set()
