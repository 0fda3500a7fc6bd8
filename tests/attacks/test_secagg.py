"""Attacks on secure aggregation, each against real nodes: the node refuses and records why.

The numbers are those of docs/security/secure-aggregation.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import PlanError, PolicyRefusal, ProtocolError, UpdateRejected
from fedscale.ring import WORD
from fedscale.secagg import keys, prg
from fedscale.secagg import messages as m
from fedscale.secagg.node import Aborted, Done, Node, Reply
from fedscale.secagg.parameters import Profile
from fedscale.secagg.prg import Core, Mask
from fedscale.secagg.server import Server
from fedscale.secagg.simulate import Step, population
from fedscale.secagg.terms import Mark, Member, Policy, Roster, Suite, Terms, model_digest
from tests.fedscale.secagg.samples import MODEL, World, changed, make_terms, names, session_of, total

VICTIM = "site-0001"


def seats(*present: int) -> frozenset[int]:
    return frozenset(present)


# -------------------------------------------------------------------------------- 1: both shares of one node's secrets


@pytest.mark.parametrize("profile", Profile)
def test_01_both_shares_of_one_node(profile: Profile) -> None:
    """There is no way to name a node both alive and dropped in one request; the second request is refused."""
    world = World(5, profile=profile, dropout=0.3)
    world.until(Step.VECTOR)
    world.until(Step.OPENING, silent=["site-0004"])
    first = world.answer(VICTIM, world.outbox[VICTIM])
    opened = m.decode(first.message)
    assert isinstance(opened, m.Opened)
    assert not {item.seat for item in opened.self_shares} & {item.seat for item in opened.pair_shares}
    assert {item.seat for item in opened.self_shares} == {0, 1, 2, 3}
    assert {item.seat for item in opened.pair_shares} == {4}
    session = opened.session
    for second in (m.Survivors(session, seats(0, 1, 2)), m.Survivors(session, seats(1, 2, 3)), m.Consents(session, ())):
        with pytest.raises(ProtocolError, match="after the one unmask answer"):
            world.nodes[VICTIM].handle(m.encode(second))
    assert isinstance(world.nodes[VICTIM].state, Done)
    assert world.nodes[VICTIM].handle(world.outbox[VICTIM]) == first


# --------------------------------------------------------------------- 2: different survivors told to different nodes


def test_02_different_survivors_for_different_nodes() -> None:
    world = World(5, dropout=0.3)
    world.until(Step.CONSENT)
    session = session_of(world.outbox[VICTIM])
    signatures = {}
    for place, name in enumerate(world.names[:4]):
        reply = world.nodes[name].handle(world.altered(name, changed(present=seats(0, 1, 2, 3) if place < 2 else seats(0, 1, 2, 3, 4))))
        assert reply is not None
        signatures[place] = m.expect(m.decode(reply.message), m.Consent).signature
    everything = m.Consents(session, tuple(m.Item(seat, signature) for seat, signature in signatures.items()))
    for name in world.names[:4]:
        assert world.refuse(name, m.encode(everything), ProtocolError, "signature of the survivors")
    world = World(5, dropout=0.3)
    world.until(Step.OPENING)
    short = world.altered(VICTIM, lambda consents: replace(consents, items=consents.items[:-1]))
    assert world.refuse(VICTIM, short, PolicyRefusal, "3 signatures of the survivors are too few")


# ------------------------------------------------------------------------ 3: a late node declared dead, its vector used


def test_03_a_late_vector_stays_masked_when_its_sender_is_declared_dropped() -> None:
    world = World(5, dropout=0.3, length=4096, limit=1000)
    world.until(Step.VECTOR)
    # The server has the victim's vector but tells the others that it never came.
    late = world.answer(VICTIM, world.outbox[VICTIM])
    assert isinstance(late.body, np.ndarray)
    world.advance(silent=[VICTIM])
    world.advance()
    shares = {name: m.expect(m.decode(world.answer(name, data).message), m.Opened) for name, data in world.outbox.items()}
    assert {item.seat for opened in shares.values() for item in opened.self_shares} == {0, 2, 3, 4}
    # With all pair masks taken away by the honest opening, the victim's own mask is still there.
    for name, opened in shares.items():
        world.server.receive(name, m.encode(opened))
    unmasking = world.server.state
    pairs = list(unmasking._masks(1))  # type: ignore[union-attr]
    bare = prg.masked(late.body, [Mask(mask.key, negative=not mask.negative) for mask in pairs])
    truth = world.vectors[VICTIM].view(np.int32)
    assert abs(np.corrcoef(bare.view(np.int32), truth)[0, 1]) < 0.06
    assert (bare.view(np.int32) == truth).mean() < 0.01
    told = m.Survivors(session_of(late.message), seats(0, 2, 3, 4))
    assert world.refuse(VICTIM, m.encode(told), ProtocolError, "declares this very node dropped")


# ------------------------------------------------------------------------------- 4: replay of a session or of a round


def test_04_replay_of_a_round_or_a_session() -> None:
    old = World(4)
    old.finish()
    marks = {name: state.mark for name, node in old.nodes.items() if isinstance(state := node.state, Done)}
    assert len(marks) == 4
    again = Node(old.sites[VICTIM], old.terms, marks[VICTIM])
    with pytest.raises(PolicyRefusal, match="round 1 is not after round 1"):
        again.handle(m.encode(m.Open(old.terms)))
    assert isinstance(again.state, Aborted)

    new = World(4)
    new.until(Step.VECTOR)
    other_session = World(4)
    other_session.until(Step.VECTOR)
    assert new.refuse(VICTIM, other_session.outbox[VICTIM], ProtocolError, "another session")


# ---------------------------------------------------------------------------------- 5: other people's keys, invented people


def directory_with(member: int, **columns: Any) -> Any:
    def change(directory: m.Directory) -> m.Directory:
        entries = [directory.keys(seat, other) for seat, other in enumerate(directory.seats)]
        return m.Directory.of(replace(keys, **columns) if keys.member == member else keys for keys in entries)

    return change


def test_05_substituted_keys_and_invented_nodes() -> None:
    world = World(4)
    world.until(Step.AGREEMENT)
    curve, kem = keys.SessionKeys.new(lambda size: b"\x05" * size).public
    for column in ({"curve": curve}, {"kem": kem}, {"signature": bytes(64)}):
        data = world.altered(VICTIM, directory_with(2, **column))
        node = Node(world.sites[VICTIM], world.terms)
        assert node.handle(m.encode(m.Open(world.terms))) is not None
        with pytest.raises(ProtocolError):
            node.handle(data)
        assert isinstance(node.state, Aborted)
    assert world.refuse(
        VICTIM, world.altered(VICTIM, directory_with(2, curve=curve)), ProtocolError, "signature of the keys of node 'site-0002' is wrong"
    )

    def invent(directory: m.Directory) -> m.Directory:
        entries = [directory.keys(seat, member) for seat, member in enumerate(directory.seats)]
        return m.Directory.of([*entries, replace(entries[0], member=77)])

    assert world.refuse("site-0002", world.altered("site-0002", invent), ProtocolError, "not on the roster")


def test_05_a_roster_that_nobody_pinned() -> None:
    world = World(4)
    mallory = Ed25519PrivateKey.generate()
    roster = Roster((*world.roster.members, Member("sybil", keys.public_of(mallory))))
    with pytest.raises(ProtocolError, match="signature of the roster is wrong"):
        Roster.open(roster.sign(mallory), keys.public_of(Ed25519PrivateKey.generate()))
    assert world.refuse(VICTIM, m.encode(m.Open(replace(world.terms, roster=roster.digest))), PolicyRefusal, "terms differ in 'roster'")
    own = Node(world.sites[VICTIM], replace(world.terms, roster=roster.digest))
    with pytest.raises(PolicyRefusal, match="another roster than the one pinned"):
        own.handle(m.encode(m.Open(replace(world.terms, roster=roster.digest))))


# ------------------------------------------------------------------------------------------------ 6: keys of low order


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_06_keys_of_low_order(point: bytes) -> None:
    """A colluding node signs a key with which everybody's secret is known in advance."""
    world = World(4)
    world.until(Step.AGREEMENT)
    unsigned = replace(m.decode(world.outbox[VICTIM]).keys(2, 2), curve=point)  # type: ignore[union-attr]
    signature = world.sites["site-0002"].key.sign(unsigned.signed(world.terms.digest))
    data = world.altered(VICTIM, directory_with(2, curve=point, signature=signature))
    assert world.refuse(VICTIM, data, ProtocolError, "node 'site-0002' has a key of low order")
    server = Server(world.terms, world.roster)
    with pytest.raises(ProtocolError, match="low order"):
        server.receive("site-0002", m.encode(replace(unsigned, signature=signature)))


# --------------------------------------------------------------------------------- 7: the server chooses the parameters


@pytest.mark.parametrize(
    "change",
    [{"adversarial": 0.3}, {"dropout": 0.0}, {"limit": 1}, {"length": 23}, {"bits": 24}, {"run": "other"}, {"round": 2}, {"plan": b"x" * 32}],
    ids=lambda change: next(iter(change)),
)
def test_07_parameters_chosen_by_the_server(change: dict[str, Any]) -> None:
    world = World(4)
    offered = replace(world.terms, **change)
    assert world.refuse(VICTIM, m.encode(m.Open(offered)), PolicyRefusal, f"terms differ in '{next(iter(change))}'")


def test_07_degree_and_threshold_are_nowhere_in_a_message() -> None:
    """They follow from the terms and the directory, at each node."""
    told = {field.name for kind in m.FORMATS for field in fields(kind)} | {field.name for field in fields(Terms)}
    assert not told & {"degree", "threshold", "graph", "seed", "neighbours"}
    world = World(30, suite=Suite.GRAPH, adversarial=0.05, dropout=0.05)
    world.until(Step.SHARES)
    places = [node.state.place.session for node in world.nodes.values()]  # type: ignore[union-attr]
    assert {(place.graph.digest, place.threshold, place.id) for place in places} == {(places[0].graph.digest, places[0].threshold, places[0].id)}


def test_07_assumptions_weaker_than_the_site_allows() -> None:
    world = World(4, policy=Policy(adversarial=0.2))
    assert world.refuse(VICTIM, world.outbox[VICTIM], PolicyRefusal, "at least 0.2 of the nodes must be assumed to collude")


# ---------------------------------------------------------------------------------------------------- 8: small cohorts


def test_08_a_cohort_smaller_than_the_site_allows() -> None:
    world = World(5, policy=Policy(cohort=5), dropout=0.3)
    world.until(Step.CONSENT)
    assert world.refuse(
        VICTIM, world.altered(VICTIM, changed(present=seats(0, 1, 2, 3))), PolicyRefusal, "a sum over 4 nodes is not opened .*at least 5"
    )
    few = World(5, policy=Policy(cohort=5), dropout=0.3)
    few.advance(silent=["site-0004"])
    assert few.refuse(VICTIM, few.outbox[VICTIM], PolicyRefusal, "a sum over 4 nodes")


def test_08_all_others_may_collude() -> None:
    world = World(5, policy=Policy(honest=4), adversarial=0.2, dropout=0.2)
    world.until(Step.CONSENT)
    assert world.refuse(
        VICTIM, world.altered(VICTIM, changed(present=seats(0, 1, 2, 3))), PolicyRefusal, "1 of them may collude and the site asks for 4 others"
    )


def test_08_fewer_neighbours_than_the_threshold() -> None:
    world = World(6, dropout=0.2)
    world.until(Step.SHARES)
    assert world.refuse(VICTIM, world.altered(VICTIM, changed(present=seats(1, 2, 3), items=())), PolicyRefusal, "too few neighbours are left")


# ------------------------------------------------------------------------------------------------- 9: difference attack


def test_09_the_same_model_twice_and_cohorts_that_differ_by_one() -> None:
    world = World(5, dropout=0.3)
    world.finish()
    mark = world.nodes[VICTIM].state.mark  # type: ignore[union-attr]
    terms = make_terms(world.sites, round=2, dropout=0.3)
    second = Node(world.sites[VICTIM], terms, mark)
    with pytest.raises(PolicyRefusal, match="a vector was given for this very model before"):
        second.handle(m.encode(m.Open(terms)))
    assert isinstance(second.refusal, PolicyRefusal)

    marks = dict.fromkeys(world.names, mark)
    after = World(5, policy=Policy(least_change=2), round=2, model=b"n" * 32, dropout=0.3, marks=marks)
    after.until(Step.CONSENT)
    assert after.refuse(VICTIM, after.altered(VICTIM, changed(present=seats(0, 1, 2, 3))), PolicyRefusal, "it differs by 1 from the last")


# -------------------------------------------------------------------------------------- 10: other models to other nodes


def test_10_another_model_for_one_node() -> None:
    """The node hashes the model that it was given; the server cannot have it agree on keys with nodes that were given another."""
    world = World(4)
    trap = Node(world.sites[VICTIM], replace(world.terms, model=model_digest(np.zeros(3, np.float32), 1.0)))
    with pytest.raises(PolicyRefusal, match="terms differ in 'model'"):
        trap.handle(world.outbox[VICTIM])
    # Should the server name each node's own model, the nodes' signatures do not hold for one another.
    other = Node(world.sites[VICTIM], replace(world.terms, model=b"o" * 32))
    reply = other.handle(m.encode(m.Open(replace(world.terms, model=b"o" * 32))))
    assert reply is not None
    own = m.expect(m.decode(reply.message), m.Keys)
    world.until(Step.AGREEMENT)
    data = world.altered(VICTIM, directory_with(1, curve=own.curve, kem=own.kem, signature=own.signature))
    with pytest.raises(ProtocolError, match="signature of the keys of node 'site-0000' is wrong"):
        other.handle(data)
    assert isinstance(other.state, Aborted)
    assert world.refuse("site-0000", data, ProtocolError, "signature of the keys of node 'site-0001' is wrong")


# --------------------------------------------------------------------------------------------- 11: models laid as traps


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, -1e6])
def test_11_models_with_trap_weights(value: float) -> None:
    model = np.zeros(10, np.float32)
    assert len(model_digest(model, 100.0)) == 32
    model[4] = value
    with pytest.raises(PolicyRefusal, match="the model is refused"):
        model_digest(model, 100.0)


def test_11_architectures_that_the_site_did_not_approve() -> None:
    world = World(4, policy=Policy(plans=frozenset({b"another plan".ljust(32)})))
    assert world.refuse(VICTIM, world.outbox[VICTIM], PolicyRefusal, "the plan is not one that the site approved")


# -------------------------------------------------------------------------------------------- 12: overflow of the ring


@pytest.mark.parametrize("word", [1001, -1001, 2**31 - 1, -(2**31)])
def test_12_words_beyond_the_range(word: int) -> None:
    world = World(4, limit=1000)
    world.until(Step.VECTOR)
    world.nodes[VICTIM].handle(world.outbox[VICTIM])
    words = world.vectors[VICTIM].copy()
    words.view(np.int32)[3] = word
    with pytest.raises(UpdateRejected, match="beyond the agreed range"):
        world.nodes[VICTIM].submit(words)
    assert isinstance(world.nodes[VICTIM].refusal, UpdateRejected)


@pytest.mark.parametrize("bits", [24, 32])
def test_12_terms_without_headroom(bits: int) -> None:
    world = World(4, bits=bits, limit=1 << (bits - 3))
    world.until(Step.KEYS)
    for name, data in world.outbox.items():
        world.server.receive(name, world.answer(name, data).message)
    with pytest.raises(PlanError, match=f"may pass the ring of {bits} bits"):
        world.server.close()
    entries = [m.expect(m.decode(reply.message), m.Keys) for _, reply in world.replies]
    assert world.refuse(VICTIM, m.encode(m.Directory.of(entries)), PlanError, f"may pass the ring of {bits} bits")


# ----------------------------------------------------------------------------------------------- 13: sparse updates


def test_13_sparse_updates() -> None:
    world = World(4, policy=Policy(least_touched=0.5), length=1000, limit=1000)
    world.until(Step.VECTOR)
    sparse = np.zeros(1000, WORD)
    sparse[:400] = 7
    for name, data in world.outbox.items():
        world.nodes[name].handle(data)
    with pytest.raises(PolicyRefusal, match="a sparse vector is not sent"):
        world.nodes[VICTIM].submit(sparse)
    assert isinstance(world.nodes[VICTIM].state, Aborted)
    # Where it is sent, nothing in what leaves tells which words it touched.
    sparse[400:600] = 7
    body = world.nodes["site-0002"].submit(sparse).body
    assert isinstance(body, np.ndarray)
    assert np.count_nonzero(body[600:] == 0) == 0


# ------------------------------------------------------------------------------------------------------ 14: metadata


def test_14_nothing_beside_the_vector() -> None:
    """What leaves has the same size and the same fields whatever the data; there is no message that asks for more."""
    assert {field.name for field in fields(Reply)} == {"message", "body", "mark"}
    assert {field.name for field in fields(m.Masked)} == {"session"}
    sizes = []
    for scale in (0, 1):
        world = World(4, limit=1000)
        world.vectors = {name: words * np.uint32(scale) for name, words in world.vectors.items()}
        world.finish()
        sizes.append([(name, len(reply.message), getattr(reply.body, "nbytes", 0)) for name, reply in world.replies])
    assert sizes[0] == sizes[1]
    world = World(4)
    assert world.refuse(VICTIM, m.MAGIC + bytes([len(m.FORMATS) + 1]) + b"num_examples", ProtocolError, "not a message of this version")


# ----------------------------------------------------------------------------------------------- 15: malicious nodes


def test_15_forged_boxes_are_noted_and_the_round_completes() -> None:
    world = World(6, dropout=0.3)
    world.until(Step.SHARES)
    for name, data in world.outbox.items():
        reply = world.answer(name, data)
        shares = m.expect(m.decode(reply.message), m.Shares)
        if name == "site-0005":
            forged = tuple(replace(parcel, box=bytes(len(parcel.box))) if parcel.seat == 1 else parcel for parcel in shares.parcels)
            shares = replace(shares, parcels=forged)
        world.server.receive(name, m.encode(shares))
    world.outbox = world.server.close()
    world.remaining.pop(0)
    world.nodes[VICTIM].handle(world.outbox[VICTIM])
    assert "the box of node 'site-0005' does not open" in world.nodes[VICTIM].state.complaints[0]  # type: ignore[union-attr]
    np.testing.assert_array_equal(world.finish(), total(world.vectors, world.names))


def test_15_garbage_shares_are_left_aside_and_the_round_completes() -> None:
    world = World(6, dropout=0.3)
    world.until(Step.VECTOR)
    world.until(Step.OPENING, silent=["site-0004"])
    for name, data in world.outbox.items():
        opened = m.expect(m.decode(world.answer(name, data).message), m.Opened)
        if name == "site-0000":
            opened = replace(opened, self_shares=tuple(replace(item, data=b"\x01" * 32) for item in opened.self_shares))
        world.server.receive(name, m.encode(opened))
    world.server.close()
    outcome = world.server.outcome
    np.testing.assert_array_equal(outcome.words, total(world.vectors, outcome.survivors))
    assert "that node 'site-0000' opened is not the one dealt" in outcome.complaints[0]


def test_15_vectors_of_a_wrong_size_are_refused() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    reply = world.answer(VICTIM, world.outbox[VICTIM])
    for body in (np.zeros(23, WORD), np.zeros(25, WORD), b"", None):
        with pytest.raises(UpdateRejected, match="a masked vector of"):
            world.server.receive(VICTIM, reply.message, body)
    world.nodes["site-0002"].handle(world.outbox["site-0002"])
    with pytest.raises(UpdateRejected, match="a vector of 23 words"):
        world.nodes["site-0002"].submit(np.zeros(23, WORD))
    assert isinstance(world.nodes["site-0002"].refusal, UpdateRejected)


# ------------------------------------------------------------------------------------------ 16: restarts and rollback


def test_16_a_restart_gives_the_same_answer_and_no_other() -> None:
    world = World(4)
    world.until(Step.OPENING)
    request = world.outbox[VICTIM]
    answer = world.answer(VICTIM, request)
    assert answer.mark is not None
    kept = Mark.decode(answer.mark.encode())
    restarted = Node(world.sites[VICTIM], world.terms, kept)
    again = restarted.handle(request)
    assert again is not None
    assert again.message == answer.message
    session = session_of(answer.message)
    with pytest.raises(ProtocolError, match="out of turn"):
        restarted.handle(m.encode(m.Survivors(session, seats(0, 1, 2))))
    assert isinstance(restarted.state, Aborted)


def test_16_a_restart_after_the_vector_was_given_gives_no_second_one() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    mark = world.answer(VICTIM, world.outbox[VICTIM]).mark
    assert mark is not None
    restarted = Node(world.sites[VICTIM], world.terms, Mark.decode(mark.encode()))
    with pytest.raises(PolicyRefusal, match="round 1 is not after round 1, for which a vector was given"):
        restarted.handle(m.encode(m.Open(world.terms)))
    assert isinstance(restarted.refusal, PolicyRefusal)
    with pytest.raises(ProtocolError, match="not due"):
        restarted.submit(world.vectors[VICTIM])


# ---------------------------------------------------------------------------------------------- 17: keys used twice


def test_17_no_key_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonces are fixed, so each key may seal one text and mask one vector, in two rounds of the same nodes."""
    sealed: Counter[bytes] = Counter()
    masks: Counter[bytes] = Counter()
    seal, stream = keys.seal, prg.keystream

    def watched_seal(key: bytes, text: bytes, context: bytes) -> bytes:
        sealed[key] += 1
        return seal(key, text, context)

    def watched_stream(key: bytes, core: Core) -> Any:
        masks[key] += 1
        return stream(key, core)

    for place in ("fedscale.secagg.node.seal", "fedscale.secagg.session.seal"):
        monkeypatch.setattr(place, watched_seal)
    monkeypatch.setattr(prg, "keystream", watched_stream)
    world = World(5, dropout=0.3)
    for number in (1, 2):
        world.terms = make_terms(world.sites, round=number, model=bytes([number]) * 32, dropout=0.3)
        world.start({})
        world.until(Step.VECTOR)
        world.until(Step.OPENING, silent=["site-0003"])
    assert set(sealed.values()) == {1}
    # A pair's key is used at both of its ends, one's own once.
    assert set(masks.values()) == {1, 2}
    assert not sealed.keys() & masks.keys()
    assert len(sealed) == 2 * (5 * 4 + 5)


def test_17_masks_of_two_rounds_have_nothing_in_common() -> None:
    world = World(4, length=20_000, limit=10)
    bodies = []
    for number in (1, 2):
        world.terms = make_terms(world.sites, round=number, length=20_000, limit=10)
        world.start({})
        world.until(Step.VECTOR)
        body = world.answer(VICTIM, world.outbox[VICTIM]).body
        assert isinstance(body, np.ndarray)
        bodies.append(body)
    assert abs(np.corrcoef(bodies[0].astype(float), bodies[1].astype(float))[0, 1]) < 5 / np.sqrt(20_000)
    assert set(bodies[0].tolist()) != set(bodies[1].tolist())
    mark = Mark("run-1", 1, (MODEL,))
    again = Node(world.sites[VICTIM], make_terms(world.sites), mark)
    with pytest.raises(PolicyRefusal, match="not after round 1"):
        again.handle(m.encode(m.Open(make_terms(world.sites))))
    assert again.refusal is not None


# ------------------------------------------------------------------------------------------------------ 18: downgrade


@pytest.mark.parametrize("change", [{"profile": Profile.CURIOUS}, {"suite": Suite.GRAPH}], ids=["profile", "suite"])
def test_18_downgrade(change: dict[str, Any]) -> None:
    world = World(4)
    assert world.refuse(VICTIM, m.encode(m.Open(replace(world.terms, **change))), PolicyRefusal, f"terms differ in '{next(iter(change))}'")


def test_18_terms_below_the_policy_of_the_site() -> None:
    sites = population(names(4))
    terms = make_terms(sites, profile=Profile.CURIOUS)
    node = Node(sites[VICTIM], terms)
    with pytest.raises(PolicyRefusal, match="must be assumed malicious"):
        node.handle(m.encode(m.Open(terms)))
    assert isinstance(node.refusal, PolicyRefusal)
    strict = World(4, policy=Policy(suites=frozenset({Suite.GRAPH})))
    assert strict.refuse(VICTIM, strict.outbox[VICTIM], PolicyRefusal, "the suite 'secagg-silo' is not allowed")


def test_18_an_unknown_suite_or_version_is_no_message() -> None:
    world = World(4)
    good = world.outbox[VICTIM]
    assert world.refuse(VICTIM, good.replace(b"secagg-silo", b"secagg-none"), ProtocolError, "unknown suite")
    assert world.refuse("site-0002", b"FSA2" + good[4:], ProtocolError, "not a message of this version")


def test_the_eighteen_rows_are_all_here() -> None:
    rows = {name.split("_")[1] for name in globals() if name.startswith("test_") and name.split("_")[1].isdigit()}
    assert rows == {f"{number:02}" for number in range(1, 19)}
