"""The server's part: exact sums, whatever drops out, and nothing opened when too few are left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale.errors import FedscaleError, PlanError, PolicyRefusal, ProtocolError, RunFailed
from fedscale.ring import WORD
from fedscale.secagg import messages as m
from fedscale.secagg import server as states
from fedscale.secagg.server import Server
from fedscale.secagg.simulate import Step
from tests.fedscale.secagg.samples import KINDS, World, total

SIZES = {"silo": 6, "graph": 24}


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_exact(kind: str) -> None:
    world = World(SIZES[kind.partition("-")[0]], **KINDS[kind])
    np.testing.assert_array_equal(world.finish(), total(world.vectors, world.names))
    outcome = world.server.outcome
    assert outcome.masked
    assert outcome.survivors == tuple(world.names)
    assert (outcome.dropped, outcome.complaints) == ((), ())


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_drop_outs_down_to_the_threshold_and_one_below(step: Step, lost: int) -> None:
    """Six nodes, threshold four: two may be lost at any stage; a third loses the round, and no share is opened."""
    world = World(6, dropout=0.34)
    gone = world.names[:lost]
    world.until(step)
    if lost < 3:
        words = world.finish(silent=gone)
        survivors = world.server.outcome.survivors
        late = step in {Step.CONSENT, Step.OPENING}
        assert survivors == tuple(world.names if late else world.names[lost:])
        np.testing.assert_array_equal(words, total(world.vectors, survivors))
        return
    with pytest.raises((RunFailed, PlanError, PolicyRefusal)):
        world.finish(silent=gone)
    opened = [reply for name, reply in world.replies if isinstance(m.decode(reply.message), m.Opened)]
    assert not opened or step is Step.OPENING
    assert not isinstance(world.server.state, states.Done)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)))
def test_any_script_of_drop_outs_gives_the_exact_sum_or_none(data: st.DataObject, kind: str) -> None:
    world = World(SIZES[kind.partition("-")[0]], **KINDS[kind])
    gone: set[str] = set()
    try:
        while world.remaining:
            gone |= data.draw(st.sets(st.sampled_from(world.names), max_size=1))
            world.advance(gone)
    except FedscaleError:
        assert gone
        return
    outcome = world.server.outcome
    np.testing.assert_array_equal(outcome.words, total(world.vectors, outcome.survivors))


def test_replay_after_a_restart_gives_the_same_messages() -> None:
    """The server's journal is the answers and the ends of the stages; from it the same bytes come out again."""
    world, again = World(5, dropout=0.3), None
    journal: list[tuple[str, m.Message | None, Any]] = []
    outboxes = [world.outbox]
    dropped = {Step.VECTOR: "site-0003"}
    gone: set[str] = set()
    while world.remaining:
        gone |= {dropped.get(world.remaining[0], "")}
        start = len(world.replies)
        world.advance(gone)
        journal += [(name, m.decode(reply.message), reply.body) for name, reply in world.replies[start:]]
        journal.append(("", None, None))
        outboxes.append(world.outbox)
        # A new server, from the journal so far.
        again = Server(world.terms, world.roster)
        produced = [again.open()]
        for name, message, body in journal:
            if message is None:
                produced.append(again.close())
            else:
                again.receive(name, m.encode(message), body)
        assert produced == outboxes
    assert again is not None
    np.testing.assert_array_equal(again.outcome.words, world.server.outcome.words)


def test_of_two_answers_the_first_stands() -> None:
    world = World(4)
    for step in list(world.remaining):
        for name, data in world.outbox.items():
            reply = world.answer(name, data)
            for _ in range(2):
                world.server.receive(name, reply.message, reply.body)
            if step is Step.VECTOR:
                world.server.receive(name, reply.message, np.full(24, 77, WORD))
        world.outbox = world.server.close()
    assert np.array_equal(world.server.outcome.words, total(world.vectors, world.names))


@pytest.mark.parametrize("step", list(Step))
def test_answers_that_are_not_due_are_refused(step: Step) -> None:
    world = World(4)
    world.until(step)
    replies = {name: world.answer(name, data) for name, data in world.outbox.items()}
    reply = replies["site-0000"]
    with pytest.raises(PolicyRefusal, match="not on the roster"):
        world.server.receive("stranger", reply.message, reply.body)
    with pytest.raises(ProtocolError):
        world.server.receive("site-0001", m.encode(m.Open(world.terms)))
    message: Any = m.decode(reply.message)
    if step is not Step.KEYS:
        with pytest.raises(ProtocolError, match="another session"):
            world.server.receive("site-0000", m.encode(replace(message, session=b"x" * 32)), reply.body)
    if step in {Step.KEYS, Step.CONSENT}:
        with pytest.raises(ProtocolError):
            world.server.receive("site-0001", reply.message)
    for name, good in replies.items():
        world.server.receive(name, good.message, good.body)
    world.outbox = world.server.close()
    world.remaining.pop(0)
    np.testing.assert_array_equal(world.finish(), total(world.vectors, world.names))


@pytest.mark.parametrize(
    ("step", "change", "reason"),
    [
        (Step.AGREEMENT, lambda a: replace(a, items=a.items[1:]), "did not address its neighbours"),
        (Step.SHARES, lambda s: replace(s, parcels=s.parcels[1:]), "did not share with its neighbours"),
        (Step.SHARES, lambda s: replace(s, escrow=s.escrow[1:]), "an escrow of a wrong size"),
        (Step.CONSENT, lambda c: replace(c, signature=bytes(64)), "signature of the survivors by node 'site-0000' is wrong"),
        (Step.OPENING, lambda o: replace(o, pair_shares=o.self_shares), "opened shares that nobody asked for"),
    ],
)
def test_malformed_answers_are_refused(step: Step, change: Any, reason: str) -> None:
    world = World(4)
    world.until(step)
    reply = world.answer("site-0000", world.outbox["site-0000"])
    with pytest.raises(ProtocolError, match=reason):
        world.server.receive("site-0000", m.encode(change(m.decode(reply.message))))
    assert "site-0000" not in str(world.server.state.answers)  # type: ignore[union-attr]


def test_somebody_who_left_earlier_is_not_heard_later() -> None:
    world = World(5, dropout=0.3)
    world.until(Step.SHARES)
    late = world.answer("site-0004", world.outbox["site-0004"])
    world.advance(silent=["site-0004"])
    with pytest.raises(ProtocolError, match="nothing is due from node 'site-0004'"):
        world.server.receive("site-0004", m.encode(m.Masked(m.expect(m.decode(late.message), m.Shares).session)), np.zeros(24, WORD))


def sharing_with(world: World, name: str, change: Any) -> None:
    """All share, one of them what ``change`` makes of it."""
    for who, data in world.outbox.items():
        shares = m.expect(m.decode(world.answer(who, data).message), m.Shares)
        world.server.receive(who, m.encode(change(shares) if who == name else shares))
    world.outbox = world.server.close()
    world.remaining.pop(0)


def test_whoever_lies_about_all_its_masks_is_left_out() -> None:
    world = World(6, dropout=0.3)
    world.until(Step.SHARES)
    sharing_with(world, "site-0002", lambda s: replace(s, parcels=tuple(replace(p, pair=b"x" * 32) for p in s.parcels)))
    assert "site-0002" not in world.outbox
    words = world.finish()
    np.testing.assert_array_equal(words, total(world.vectors, [name for name in world.names if name != "site-0002"]))
    assert "node 'site-0002' does not agree" in world.server.outcome.complaints[0]


def test_a_wrong_escrow_loses_the_round_but_never_gives_a_wrong_sum() -> None:
    world = World(6, dropout=0.3)
    world.until(Step.SHARES)
    sharing_with(world, "site-0002", lambda s: replace(s, escrow=bytes(len(s.escrow))))
    with pytest.raises(ProtocolError, match="the escrow of node 'site-0002' does not open"):
        world.finish(silent=["site-0002"])
    assert isinstance(world.server.state, states.Aborted)
    with pytest.raises(ProtocolError, match="the round is over"):
        world.server.close()
    with pytest.raises(RunFailed, match="the sum is not open"):
        _ = world.server.outcome


def test_shares_of_another_secret_lose_the_round() -> None:
    world = World(6, dropout=0.3)
    world.until(Step.SHARES)
    sharing_with(world, "site-0002", lambda s: replace(s, self_secret=b"x" * 32))
    with pytest.raises(RunFailed, match="cannot be opened .*'site-0002' dealt shares of another secret"):
        world.finish()


def test_a_sum_that_honest_nodes_cannot_send_is_refused() -> None:
    world = World(4, limit=1000)
    world.until(Step.VECTOR)
    for name, data in world.outbox.items():
        reply = world.answer(name, data)
        body = reply.body
        assert isinstance(body, np.ndarray)
        world.server.receive(name, reply.message, body + np.uint32(100_000 if name == "site-0000" else 0))
    world.outbox = world.server.close()
    world.remaining.pop(0)
    with pytest.raises(RunFailed, match="beyond what these nodes may send"):
        world.finish()


@pytest.mark.parametrize("bits", [24, 32])
def test_bodies_may_be_bytes(bits: int) -> None:
    world = World(4, bits=bits)
    world.until(Step.VECTOR)
    for name, data in world.outbox.items():
        reply = world.answer(name, data)
        body = reply.body if isinstance(reply.body, bytes) else reply.body.tobytes()  # type: ignore[union-attr]
        assert len(body) == 24 * bits // 8
        world.server.receive(name, reply.message, memoryview(body))
    world.outbox = world.server.close()
    world.remaining.pop(0)
    np.testing.assert_array_equal(world.finish(), total(world.vectors, world.names))
