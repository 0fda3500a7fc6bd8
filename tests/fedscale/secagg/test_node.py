"""A node's own part: order of the messages, what it remembers, what it forgets."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import FedscaleError, PolicyRefusal, ProtocolError, UpdateRejected
from fedscale.ring import WORD
from fedscale.secagg import messages as m
from fedscale.secagg import node as states
from fedscale.secagg import prg
from fedscale.secagg.node import Aborted, MaskedInput, Node
from fedscale.secagg.simulate import Step
from tests.fedscale.secagg.samples import KINDS, World, session_of, total

VICTIM = "site-0001"
ORDER = [
    states.AdvertiseKeys,
    states.AgreeKeys,
    states.ShareKeys,
    states.CollectShares,
    states.Consistency,
    states.Unmask,
    states.Done,
]


def test_the_states_in_order() -> None:
    world = World(4)
    seen = [type(world.nodes[VICTIM].state)]
    while world.remaining:
        world.advance()
        seen.append(type(world.nodes[VICTIM].state))
    assert seen == [ORDER[0], ORDER[1], ORDER[2], ORDER[3], ORDER[4], ORDER[5], ORDER[6]]
    assert world.nodes[VICTIM].refusal is None


def test_under_a_curious_server_nothing_is_signed() -> None:
    world = World(4, **KINDS["silo-curious"])
    world.until(Step.OPENING)
    assert isinstance(world.nodes[VICTIM].state, states.Unmask)
    world.finish()
    assert isinstance(world.nodes[VICTIM].state, states.Done)


EVERY = [m.Open, m.Directory, m.Agreed, m.Boxes, m.Survivors, m.Consents]


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("kind", EVERY)
def test_every_message_has_its_one_moment(step: Step, kind: type[m.Message]) -> None:
    """Each message of the server, at each moment that is not its own, ends the round for the node."""
    world = World(4)
    seen: dict[type[m.Message], bytes] = {}
    other = World(4)
    while other.remaining:
        data = other.outbox[VICTIM]
        seen[type(m.decode(data))] = data
        other.advance()
    world.until(step)
    if isinstance(m.decode(world.outbox[VICTIM]), kind):
        assert world.nodes[VICTIM].handle(world.outbox[VICTIM]) is not None or kind is m.Boxes
        return
    data = seen[kind] if kind is not m.Open else m.encode(m.Open(replace(world.terms, round=2)))
    assert world.refuse(VICTIM, data, ProtocolError, "out of turn")


def test_while_the_site_trains_the_server_has_nothing_to_say() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    assert world.nodes[VICTIM].handle(world.outbox[VICTIM]) is None
    assert world.refuse(
        VICTIM, m.encode(m.Survivors(session_of(world.outbox[VICTIM]), frozenset({0, 1, 2}))), ProtocolError, "the node's own vector is due"
    )


def test_the_same_request_gives_the_same_reply() -> None:
    """A server that restarted asks again; a node draws no second key and gives no second vector."""
    world = World(4)
    while world.remaining:
        before = dict(world.outbox)
        world.advance()
        for name, data in before.items():
            first = [reply for who, reply in world.replies if who == name][-1]
            again = world.nodes[name].handle(data)
            assert again is first or (again is None and first.body is not None)


def test_a_vector_is_given_once() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    node = world.nodes[VICTIM]
    with pytest.raises(ProtocolError, match="not due"):
        node.submit(world.vectors[VICTIM])
    world.answer(VICTIM, world.outbox[VICTIM])
    with pytest.raises(ProtocolError, match="not due"):
        node.submit(world.vectors[VICTIM])
    assert node.refusal is None


def test_the_sites_own_vector_is_not_touched() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    before = world.vectors[VICTIM].copy()
    reply = world.answer(VICTIM, world.outbox[VICTIM])
    np.testing.assert_array_equal(world.vectors[VICTIM], before)
    assert isinstance(reply.body, np.ndarray)
    assert (reply.body != before).mean() > 0.9


@pytest.mark.parametrize("words", [np.zeros(24, np.int32), np.zeros(24, np.float32), np.zeros((4, 6), WORD), np.zeros(0, WORD)])
def test_vectors_that_do_not_fit_are_refused(words: Any) -> None:
    world = World(4)
    world.until(Step.VECTOR)
    world.nodes[VICTIM].handle(world.outbox[VICTIM])
    with pytest.raises(UpdateRejected, match="the round asks for 24"):
        world.nodes[VICTIM].submit(words)
    assert isinstance(world.nodes[VICTIM].state, states.Aborted)


def test_the_marks_say_what_was_given() -> None:
    world = World(4)
    world.finish()
    marks = [reply.mark for name, reply in world.replies if name == VICTIM]
    assert [mark is not None for mark in marks] == [False, False, False, True, False, True]
    given, answered = marks[3], marks[5]
    assert given is not None
    assert (given.round, given.models, given.request) == (1, (world.terms.model,), b"")
    assert answered is not None
    assert answered.cohort == tuple(world.names)
    assert answered.answer == [reply for name, reply in world.replies if name == VICTIM][-1].message


def test_another_identity_key_than_the_one_listed() -> None:
    world = World(4)
    for site, reason in (
        (replace(world.sites[VICTIM], key=Ed25519PrivateKey.generate()), "another identity key"),
        (replace(world.sites[VICTIM], name="stranger"), "not on the roster"),
    ):
        node = Node(site, world.terms)
        with pytest.raises(PolicyRefusal, match=reason):
            node.handle(world.outbox[VICTIM])
        assert isinstance(node.state, states.Aborted)


def test_a_directory_without_this_node() -> None:
    world = World(4, dropout=0.3)
    world.until(Step.AGREEMENT)

    def without(directory: m.Directory) -> m.Directory:
        return m.Directory.of(directory.keys(seat, member) for seat, member in enumerate(directory.seats) if member != 1)

    assert world.refuse(VICTIM, world.altered(VICTIM, without), ProtocolError, "does not list this node's own keys")


@pytest.mark.parametrize("step", [Step.SHARES, Step.VECTOR])
@pytest.mark.parametrize("change", ["missing", "doubled", "stranger"])
def test_items_must_be_those_of_the_neighbours(step: Step, change: str) -> None:
    world = World(4)
    world.until(step)
    name = world.names[-1]

    def alter(message: Any) -> Any:
        items = message.items
        return replace(
            message,
            items={"missing": items[1:], "doubled": (items[0], *items), "stranger": (*items, m.Item(9, items[0].data))}[change],
        )

    assert world.refuse(name, world.altered(name, alter), ProtocolError, "not those of this node's neighbours|not in ascending order")


def test_a_seat_from_nowhere() -> None:
    world = World(4)
    world.until(Step.SHARES)
    assert world.refuse(
        VICTIM, world.altered(VICTIM, lambda agreed: replace(agreed, present=frozenset({0, 1, 2, 3, 4}))), ProtocolError, "was not there before"
    )


def test_survivors_that_never_shared() -> None:
    world = World(5, dropout=0.3)
    world.until(Step.SHARES)
    world.until(Step.CONSENT, silent=["site-0004"])
    assert world.refuse(VICTIM, world.altered(VICTIM, lambda told: replace(told, present=frozenset(range(5)))), ProtocolError, "was not there before")


def test_a_wrong_ciphertext_makes_a_box_that_does_not_open() -> None:
    """ML-KEM rejects implicitly; the pair then has different keys, and its boxes tell."""
    world = World(4, dropout=0.0)
    world.until(Step.SHARES)
    name = world.names[-1]

    def alter(agreed: Any) -> Any:
        return replace(agreed, items=(m.Item(0, bytes(len(agreed.items[0].data))), *agreed.items[1:]))

    world.outbox[name] = world.altered(name, alter)
    for who, data in world.outbox.items():
        world.server.receive(who, world.answer(who, data).message)
    world.outbox = world.server.close()
    assert "does not agree with its neighbours" in world.server.state.complaints[0]  # type: ignore[union-attr]
    assert len(world.outbox) == 3


def test_states_cannot_be_changed() -> None:
    state = World(3).nodes[VICTIM].state
    with pytest.raises(FrozenInstanceError):
        state.terms = None  # type: ignore[union-attr, misc]


def test_what_is_refused_once_is_refused_for_good() -> None:
    world = World(4)
    node = world.nodes[VICTIM]
    with pytest.raises(ProtocolError):
        node.handle(b"noise")
    first = node.refusal
    with pytest.raises(ProtocolError, match=r"after this node left the round \(not a message"):
        node.handle(world.outbox[VICTIM])
    with pytest.raises(FedscaleError):
        node.submit(world.vectors[VICTIM])
    assert node.refusal is first


def test_secrets_do_not_show_in_texts() -> None:
    world = World(4)
    world.until(Step.VECTOR)
    node = world.nodes[VICTIM]
    assert isinstance(node.state, states.CollectShares)
    assert repr(node.state.secret) not in repr(node.state)
    node.handle(world.outbox[VICTIM])
    assert isinstance(node.state, states.MaskedInput)
    shown = repr(node.state)
    assert not any(repr(share) in shown for shares in node.state.shares.values() for share in shares)
    assert not any(repr(mask.key) in shown for mask in node.state.masks)


# ---------------------------------------------------------------------------------------------------------- in pieces


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("length", [1, prg.TILE, 2 * prg.TILE + 5])
def test_a_vector_in_pieces_has_the_bytes_of_the_whole(bits: int, length: int) -> None:
    world = World(3, bits=bits, length=length)
    for name, data in world.until(Step.VECTOR).items():
        node, pieces = world.nodes[name], list[bytes]()
        node.handle(data)
        assert isinstance(node.state, MaskedInput)
        body = node.state.mask(world.vectors[name])[1].body
        reply = node.submit(world.vectors[name], lambda piece, pieces=pieces: pieces.append(bytes(piece)))  # type: ignore[misc]
        assert reply.body is None
        assert reply.mark == node.state.place.mark
        assert len(pieces) == -(-length // prg.TILE)
        assert b"".join(pieces) == (body if isinstance(body, bytes) else body.tobytes())  # type: ignore[union-attr]
        world.server.receive(name, reply.message, b"".join(pieces))
    world.outbox = world.server.close()
    world.remaining.pop(0)
    np.testing.assert_array_equal(world.finish(), total(world.vectors, world.names))


@pytest.mark.parametrize("place", [0, prg.TILE + 7])
def test_a_word_beyond_the_range_is_refused_wherever_it_stands(place: int) -> None:
    world = World(3, length=prg.TILE + 8, limit=1000)
    name, data = next(iter(world.until(Step.VECTOR).items()))
    node, words = world.nodes[name], world.vectors[name].copy()
    words[place] = 1001
    node.handle(data)
    with pytest.raises(UpdateRejected, match="beyond the agreed range"):
        node.submit(words, lambda _: None)
    assert isinstance(node.state, Aborted)
    with pytest.raises(ProtocolError, match="not due"):
        node.submit(world.vectors[name])
