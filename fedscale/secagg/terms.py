"""What a round is about, who is in it, and what a site's owner allows: all of it known to a node before the server speaks.

``Terms`` and ``Roster`` are hashed into every key and signature of a round, so nodes that were told different things
cannot even agree on a mask. ``Policy`` is the site's own; ``Mark`` is what a node must remember to never answer twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import PlanError, PolicyRefusal, ProtocolError
from fedscale.secagg.codec import Blob, Codec, Fixed, Many, Number, Rate, Text, Word, record, whole
from fedscale.secagg.keys import KEY, SIGNATURE, verify
from fedscale.secagg.parameters import SLACK, Parameters, Profile, complete, find
from fedscale.secagg.prg import PACKED_BITS
from fedscale.secagg.transcript import DIGEST, digest, frame
from fedscale.vector import Vector

RING_BITS = (PACKED_BITS, 32)
RECENT_MODELS = 64


class Suite(StrEnum):
    """Which protocol; a name stands for all its algorithms and parameters, nothing is negotiated."""

    SILO = "secagg-silo"
    GRAPH = "secagg-graph"


@dataclass(frozen=True, slots=True)
class Member:
    """A node's name and its 32-byte Ed25519 identity key."""

    name: str
    key: bytes


@dataclass(frozen=True)
class Roster:
    """All nodes that may take part, by ascending name: the list that every site pins."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Refuse a roster in which one node could appear as two.

        Raises:
            ProtocolError: names not ascending, or a key listed twice.
        """
        names = [member.name for member in self.members]
        if names != sorted(set(names)) or len({member.key for member in self.members}) != len(names):
            raise ProtocolError("a roster lists a node twice, or its names are not in order")

    @cached_property
    def digest(self) -> bytes:
        """What identifies the roster."""
        return digest("roster", ROSTER.write(self))

    def index(self, name: str) -> int:
        """Where a node stands.

        Raises:
            PolicyRefusal: it is not on the roster.
        """
        if name not in self._places:
            raise PolicyRefusal(f"node '{name}' is not on the roster of this federation")
        return self._places[name]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {member.name: place for place, member in enumerate(self.members)}

    def sign(self, authority: Ed25519PrivateKey) -> bytes:
        """The roster with its authority's signature, for ``Roster.open``."""
        return authority.sign(frame("signed roster", self.digest)) + ROSTER.write(self)

    @classmethod
    def open(cls, data: bytes, authority: bytes) -> Roster:
        """The roster that the holder of the public key ``authority`` signed.

        Raises:
            ProtocolError: malformed, or signed by somebody else.
        """
        roster: Roster = whole(ROSTER, data[SIGNATURE:])
        verify(authority, data[:SIGNATURE], frame("signed roster", roster.digest), "the roster")
        return roster


ROSTER = record(Roster, members=Many(record(Member, name=Text(64), key=Fixed(KEY))))


@dataclass(frozen=True)
class Terms:
    """Everything on which all nodes of a round must agree.

    Args:
        run: whose round it is.
        round: number of the round, higher than all before in the run.
        plan: hash of the plan, the code and the model's architecture.
        model: hash of the model that was sent out, from ``model_digest``.
        roster: hash of the roster.
        length: words of one vector.
        limit: largest magnitude of one word, read as a signed number.
        bits: 32, or 24 for uploads of three bytes a word.
        suite: which protocol.
        profile: what the server is believed capable of.
        adversarial: share of the nodes that may collude with the server.
        dropout: share of the nodes that may drop out.
    """

    run: str
    round: int
    plan: bytes
    model: bytes
    roster: bytes
    length: int
    limit: int
    bits: int = 32
    suite: Suite = Suite.SILO
    profile: Profile = Profile.MALICIOUS
    adversarial: float = 0.1
    dropout: float = 0.1

    @cached_property
    def digest(self) -> bytes:
        """What identifies the terms."""
        return digest("terms", TERMS.write(self))

    def parameters(self, nodes: int, listed: int = 0) -> Parameters:
        """Degree and threshold for ``nodes`` participants out of ``listed`` on the roster, all by default.

        Whoever the server left out was honest: all colluders of the roster are taken to be there.

        Raises:
            PlanError: none is safe, or so many vectors could pass the ring.
            PolicyRefusal: more of the roster is missing than may drop out.
        """
        listed = max(listed, nodes)
        least = listed - int((self.dropout + SLACK) * listed)
        if nodes < least:
            raise PolicyRefusal(f"{nodes} of {listed} nodes are too few to begin", why=f"the terms let {listed - least} of them drop out")
        if self.bits not in RING_BITS or self.length < 1 or self.round < 1:
            raise PlanError("a round of secure aggregation needs a number, a length and a ring of 24 or 32 bits", where="secagg")
        if not 0 < self.limit * nodes < 1 << (self.bits - 1):
            raise PlanError(f"the sum of {nodes} vectors may pass the ring of {self.bits} bits", where="secagg", hint="take a coarser fixed point")
        choose = complete if self.suite is Suite.SILO else find
        return choose(nodes, self.adversarial * listed / max(nodes, 1), self.dropout, self.profile)


_HASH: Codec = Fixed(DIGEST)
TERMS = record(
    Terms,
    run=Text(128),
    round=Number(),
    plan=_HASH,
    model=_HASH,
    roster=_HASH,
    length=Number(),
    limit=Number(),
    bits=Number(),
    suite=Word(Suite),
    profile=Word(Profile),
    adversarial=Rate(),
    dropout=Rate(),
)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a node has gone in a run: to be on disk before the reply that carries it is sent.

    Args:
        run: the run.
        round: the last round in which a masked vector was given.
        models: hashes of the last models for which one was given.
        cohort: names of the nodes in the last sum that was opened.
        request: hash of the unmask request that was answered in that round, or nothing.
        answer: the answer, to be repeated byte for byte.
    """

    run: str
    round: int = 0
    models: tuple[bytes, ...] = ()
    cohort: tuple[str, ...] = ()
    request: bytes = b""
    answer: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """For the site's disk."""
        return MARK.write(self)

    @classmethod
    def decode(cls, data: bytes) -> Mark:
        """Read ``encode`` back.

        Raises:
            ProtocolError: malformed.
        """
        mark: Mark = whole(MARK, data)
        return mark

    def masked(self, terms: Terms) -> Mark:
        """The mark of a node that gives its masked vector under these terms."""
        return replace(self, round=terms.round, models=(*self.models, terms.model)[-RECENT_MODELS:], request=b"", answer=b"")


MARK = record(Mark, run=Text(128), round=Number(), models=Many(_HASH), cohort=Many(Text(64)), request=Blob(DIGEST), answer=Blob(1 << 26))


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner of a site allows; no message of the server can change it.

    Args:
        suites: protocols in which the site takes part.
        curious: whether it believes a server to be merely curious.
        cohort: fewest nodes in a sum.
        honest: fewest nodes in a sum beyond those that may collude.
        adversarial: smallest share of colluding nodes to be assumed.
        plans: hashes of the plans allowed; empty: any that the site accepted elsewhere.
        repeats: whether a second vector may be given for the same model, as after a round that failed.
        least_change: fewest nodes by which the cohorts of two sums must differ unless they are the same.
        least_touched: smallest share of words that must differ from zero, against the traces of sparse updates.
    """

    suites: frozenset[Suite] = frozenset(Suite)
    curious: bool = False
    cohort: int = 3
    honest: int = 2
    adversarial: float = 0.0
    plans: frozenset[bytes] = frozenset()
    repeats: bool = False
    least_change: int = 0
    least_touched: float = 0.0

    def admit(self, terms: Terms, mark: Mark) -> None:
        """Decide whether to take part at all.

        Raises:
            PolicyRefusal: with the reason.
        """
        checks = {
            f"the suite '{terms.suite}' is not allowed here": terms.suite in self.suites,
            "the server must be assumed malicious here": self.curious or terms.profile is Profile.MALICIOUS,
            f"at least {self.adversarial:g} of the nodes must be assumed to collude": terms.adversarial >= self.adversarial,
            "the plan is not one that the site approved": not self.plans or terms.plan in self.plans,
            f"round {terms.round} is not after round {mark.round}, for which a vector was given": terms.round > mark.round,
            "the node's memory is that of another run": terms.run == mark.run,
            "a vector was given for this very model before": self.repeats or terms.model not in mark.models,
        }
        for reason, fine in checks.items():
            if not fine:
                raise PolicyRefusal(f"the site does not take part in round {terms.round}", why=reason)

    def admit_cohort(self, names: tuple[str, ...], all_nodes: int, terms: Terms, mark: Mark) -> None:
        """Decide whether a sum over these nodes may be opened, out of ``all_nodes`` that began.

        Raises:
            PolicyRefusal: with the reason.
        """
        colluding = int(terms.adversarial * all_nodes + SLACK)
        changed = len(set(names) ^ set(mark.cohort))
        if len(names) < self.cohort:
            raise PolicyRefusal(f"a sum over {len(names)} nodes is not opened", why=f"the site asks for at least {self.cohort}")
        if len(names) - colluding < self.honest:
            raise PolicyRefusal(
                f"a sum over {len(names)} nodes is not opened", why=f"{colluding} of them may collude and the site asks for {self.honest} others"
            )
        if mark.cohort and 0 < changed < self.least_change:
            raise PolicyRefusal(
                "a sum over these nodes is not opened", why=f"it differs by {changed} from the last, the site asks for {self.least_change}"
            )


def model_digest(model: Vector, bound: float) -> bytes:
    """The hash of a model's values, float32, once they are known to be ordinary numbers within ``bound``.

    Raises:
        PolicyRefusal: a value is not finite or beyond the bound, as weights laid as traps are.
    """
    # Written so that NaN fails as well: every comparison with NaN is false.
    if len(model) and not (-bound <= model.min() and model.max() <= bound):
        raise PolicyRefusal("the model is refused", why=f"a value of it is not finite or beyond {bound:g}")
    return hashlib.sha256(np.ascontiguousarray(model, "<f4").tobytes()).digest()
