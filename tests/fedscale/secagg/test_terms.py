"""What a round is about and what a site allows."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import PlanError, PolicyRefusal, ProtocolError
from fedscale.secagg.keys import public_of
from fedscale.secagg.parameters import Parameters, Profile
from fedscale.secagg.simulate import population
from fedscale.secagg.terms import RECENT_MODELS, Mark, Member, Policy, Roster, Suite, Terms, model_digest
from tests.fedscale.secagg.samples import make_terms, names

SITES = population(names(4))
TERMS = make_terms(SITES)
OTHER = {
    "run": "run-2",
    "round": 2,
    "plan": b"q" * 32,
    "model": b"q" * 32,
    "roster": b"q" * 32,
    "length": 25,
    "limit": 7,
    "bits": 24,
    "suite": Suite.GRAPH,
    "profile": Profile.CURIOUS,
    "adversarial": 0.2,
    "dropout": 0.2,
}


def test_every_term_is_in_the_hash() -> None:
    assert set(OTHER) == {field.name for field in fields(Terms)}
    digests = {replace(TERMS, **{name: value}).digest for name, value in OTHER.items()}  # type: ignore[arg-type]
    assert len(digests | {TERMS.digest}) == len(OTHER) + 1


@pytest.mark.parametrize(
    ("change", "nodes", "reason"),
    [
        ({"bits": 16}, 4, "a ring of 24 or 32 bits"),
        ({"length": 0}, 4, "a length"),
        ({"round": 0}, 4, "a number"),
        ({"limit": 0}, 4, "may pass the ring"),
        ({"limit": 1 << 29}, 4, "may pass the ring of 32 bits"),
        ({"limit": 1 << 21, "bits": 24}, 4, "may pass the ring of 24 bits"),
        ({"adversarial": 0.95}, 4, "no graph is safe"),
    ],
)
def test_impossible_terms(change: dict[str, int], nodes: int, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        replace(TERMS, **change).parameters(nodes)  # type: ignore[arg-type]


def test_the_suite_decides_the_graph() -> None:
    assert replace(TERMS, limit=1000).parameters(30) == Parameters(29, 20)
    small = replace(TERMS, suite=Suite.GRAPH, limit=1000, adversarial=0.05, dropout=0.05)
    assert small.parameters(100) == Parameters(16, 11)


def test_colluders_are_counted_on_the_roster() -> None:
    """A server that leaves honest nodes out does not thin out the assumption: two of ten collude, also among nine."""
    terms = replace(TERMS, limit=1000, adversarial=0.2, dropout=0.1)
    assert terms.parameters(9).threshold == 6
    assert terms.parameters(9, 10).threshold == 6
    assert replace(terms, adversarial=0.5).parameters(9).threshold == 7
    assert replace(terms, adversarial=0.5).parameters(9, 10).threshold == 8
    with pytest.raises(PolicyRefusal, match="8 of 10 nodes are too few to begin .*1 of them"):
        terms.parameters(8, 10)


def test_a_roster_is_pinned_by_its_authority() -> None:
    authority, roster = Ed25519PrivateKey.generate(), SITES["site-0000"].roster
    signed = roster.sign(authority)
    assert Roster.open(signed, public_of(authority)) == roster
    for bad in (signed[:-1], signed + b"\0", bytes(64) + signed[64:], signed[:70] + bytes([signed[70] ^ 1]) + signed[71:], b""):
        with pytest.raises(ProtocolError):
            Roster.open(bad, public_of(authority))
    with pytest.raises(ProtocolError):
        Roster.open(signed, public_of(Ed25519PrivateKey.generate()))


@pytest.mark.parametrize(
    "members",
    [
        (Member("b", b"1" * 32), Member("a", b"2" * 32)),
        (Member("a", b"1" * 32), Member("a", b"2" * 32)),
        (Member("a", b"1" * 32), Member("b", b"1" * 32)),
    ],
)
def test_nobody_is_listed_twice(members: tuple[Member, ...]) -> None:
    with pytest.raises(ProtocolError, match="lists a node twice, or its names are not in order"):
        Roster(members)


def test_places_on_the_roster() -> None:
    roster = SITES["site-0000"].roster
    assert [roster.index(name) for name in names(4)] == [0, 1, 2, 3]
    with pytest.raises(PolicyRefusal, match="node 'x' is not on the roster"):
        roster.index("x")


def test_a_mark_survives_the_disk() -> None:
    mark = Mark("run-1", 7, (b"m" * 32, b"n" * 32), ("a", "b"), b"r" * 32, b"answer")
    assert Mark.decode(mark.encode()) == mark
    assert Mark.decode(Mark("run").encode()) == Mark("run")
    for bad in (mark.encode()[:-1], mark.encode() + b"\0", b""):
        with pytest.raises(ProtocolError):
            Mark.decode(bad)


def test_a_mark_forgets_old_models_and_the_answer_of_the_last_round() -> None:
    mark = Mark("run-1", 1, tuple(bytes([at]) * 32 for at in range(RECENT_MODELS)), ("a",), b"r" * 32, b"answer")
    after = mark.masked(replace(TERMS, round=2))
    assert after.round == 2
    assert len(after.models) == RECENT_MODELS
    assert after.models[-1] == TERMS.model
    assert (after.request, after.answer, after.cohort) == (b"", b"", ("a",))


@pytest.mark.parametrize(
    ("policy", "mark", "reason"),
    [
        (Policy(suites=frozenset({Suite.GRAPH})), Mark("run-1"), "suite"),
        (Policy(adversarial=0.3), Mark("run-1"), "collude"),
        (Policy(plans=frozenset({b"x" * 32})), Mark("run-1"), "plan"),
        (Policy(), Mark("run-1", 1), "not after round 1"),
        (Policy(), Mark("run-2"), "another run"),
        (Policy(), Mark("run-1", 0, (TERMS.model,)), "this very model"),
    ],
)
def test_a_policy_refuses_with_its_reason(policy: Policy, mark: Mark, reason: str) -> None:
    with pytest.raises(PolicyRefusal, match=f"does not take part in round 1 .*{reason}"):
        policy.admit(TERMS, mark)


def test_a_policy_admits_what_it_allows() -> None:
    Policy(plans=frozenset({TERMS.plan})).admit(TERMS, Mark("run-1"))
    Policy(repeats=True).admit(TERMS, Mark("run-1", 0, (TERMS.model,)))
    curious = replace(TERMS, profile=Profile.CURIOUS)
    Policy(curious=True).admit(curious, Mark("run-1"))
    with pytest.raises(PolicyRefusal, match="assumed malicious"):
        Policy().admit(curious, Mark("run-1"))


def test_cohorts_must_be_large_and_either_the_same_or_different_enough() -> None:
    policy, mark = Policy(cohort=3, honest=2, least_change=2), Mark("run-1", cohort=("a", "b", "c"))
    policy.admit_cohort(("a", "b", "c"), 4, TERMS, mark)
    policy.admit_cohort(("a", "b", "d"), 4, TERMS, mark)
    with pytest.raises(PolicyRefusal, match="over 2 nodes"):
        policy.admit_cohort(("a", "b"), 4, TERMS, mark)
    with pytest.raises(PolicyRefusal, match="differs by 1"):
        policy.admit_cohort(("a", "b", "c", "d"), 4, TERMS, mark)
    with pytest.raises(PolicyRefusal, match="2 of them may collude"):
        policy.admit_cohort(("a", "b", "c"), 4, replace(TERMS, adversarial=0.5), mark)


def test_the_hash_of_a_model_is_that_of_its_values() -> None:
    model = np.array([0.5, -1.0], np.float32)
    assert model_digest(model, 1.0) == model_digest(model.copy(), 2.0)
    assert model_digest(model, 1.0) != model_digest(model[::-1], 1.0)
    assert len(model_digest(np.zeros(0, np.float32), 1.0)) == 32
    with pytest.raises(PolicyRefusal, match="beyond 0.9"):
        model_digest(model, 0.9)
