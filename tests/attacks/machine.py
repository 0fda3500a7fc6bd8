"""A server that sends anything in any order to real nodes, and what must hold whatever it does.

One of the nodes works for the server: all its shares count as known, and it signs whatever the server likes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedscale.errors import FedscaleError
from fedscale.secagg import messages as m
from fedscale.secagg.keys import KEY
from fedscale.secagg.node import AdvertiseKeys, AgreeKeys, CollectShares, Consistency, MaskedInput, Node, Reply, ShareKeys, Unmask
from fedscale.secagg.parameters import Profile
from fedscale.secagg.session import consent_text
from fedscale.secagg.simulate import population
from fedscale.secagg.terms import Mark, Policy
from tests.fedscale.secagg.samples import make_terms, names, vectors_for

COUNT, TRAITOR = 5, 0
THRESHOLDS = {5: 4, 4: 3}
SITES = population(names(COUNT), Policy(curious=True))
NAMES = list(SITES)
IDENTITIES = [site.key.private_bytes_raw() for site in SITES.values()]
FORCED = ("direct", "agree", "share", "survive", "consent")
MEMBERS = st.integers(0, COUNT - 1)
EVERYBODY = frozenset(range(COUNT))
GROUPS = st.one_of(st.just(EVERYBODY), st.frozensets(MEMBERS, min_size=1), st.integers(0, COUNT - 1).map(lambda out: EVERYBODY - {out}))


class AnyServer(RuleBasedStateMachine):
    """The server's knowledge is what nodes said; its moves are all messages that can be made of it."""

    profile = Profile.MALICIOUS

    def __init__(self) -> None:
        super().__init__()
        self.terms = make_terms(SITES, profile=self.profile, dropout=0.2)
        self.vectors = vectors_for(NAMES, self.terms)
        self.marks: dict[int, Mark] = {}
        self.nodes = {member: Node(SITES[name], self.terms) for member, name in enumerate(NAMES)}
        self.said: dict[tuple[type[m.Message], bytes], dict[int, Any]] = defaultdict(dict)
        self.keys: dict[int, m.Keys] = {}
        self.sent: list[bytes] = []
        self.directory = m.Directory.of([])
        self.sizes: dict[bytes, int] = {}
        self.vectors_given: dict[int, set[bytes]] = defaultdict(set)
        self.opened: dict[int, set[bytes]] = defaultdict(set)
        self.sets: dict[bytes, set[tuple[str, ...]]] = defaultdict(set)
        self.held: dict[tuple[bytes, int, str], set[int]] = defaultdict(set)
        self.secrets: set[bytes] = set(IDENTITIES)
        self.emitted: list[bytes] = []
        self.looked_at: set[bytes] = set()

    # ------------------------------------------------------------------------------------------------------- moves

    @property
    def session(self) -> bytes:
        return self.directory.session(self.terms.digest)

    def deliver(self, member: int, message: m.Message | bytes) -> None:
        data = message if isinstance(message, bytes) else m.encode(message)
        self.sent.append(data)
        try:
            reply = self.nodes[member].handle(data)
        except FedscaleError:
            return
        finally:
            self.learn(member)
        if reply is not None:
            self.hear(member, reply)

    def hear(self, member: int, reply: Reply) -> None:
        """Take in a reply; the node's mark is on its disk by now."""
        if reply.mark is not None:
            self.marks[member] = reply.mark
        self.emitted.append(reply.message)
        message = m.decode(reply.message)
        if isinstance(message, m.Keys):
            self.keys[member] = message
        else:
            assert not isinstance(message, m.Open | m.Directory)
            self.said[type(message), message.session].setdefault(member, message)
        if isinstance(message, m.Opened):
            self.opened[member].add(reply.message)
            assert reply.mark is not None
            assert NAMES[member] in reply.mark.cohort, "a node opened the pair masks of itself"
            self.sets[message.session].add(reply.mark.cohort)
            for use, items in (("self", message.self_shares), ("pair", message.pair_shares)):
                for item in items:
                    self.held[message.session, item.seat, use].add(member)

    def learn(self, member: int) -> None:
        """Note a node's secrets, to know them again in what leaves; those of the traitor are the server's."""
        state = self.nodes[member].state
        if isinstance(state, ShareKeys):
            self.secrets |= {state.keys.curve.private_bytes_raw(), *state.curves.values()}
        if isinstance(state, CollectShares):
            self.secrets |= {state.secret, *(key for pair in state.pairs.values() for key in (pair.up, pair.down, pair.mask))}
        if isinstance(state, MaskedInput):
            self.secrets |= {mask.key for mask in state.masks}
            if member == TRAITOR:
                for seat in state.shares:
                    self.held[state.place.session.id, seat, "self"].add(member)
                    self.held[state.place.session.id, seat, "pair"].add(member)

    @initialize()
    def begin(self) -> None:
        for member in self.nodes:
            self.deliver(member, m.Open(self.terms))

    @rule(move=st.sampled_from(FORCED), group=GROUPS, to=GROUPS)
    def force(self, move: str, group: frozenset[int], to: frozenset[int]) -> None:
        """Any message, made for any group, to anybody, whether it is due or not."""
        getattr(self, move)(group, to)

    def direct(self, group: frozenset[int], to: frozenset[int]) -> None:
        chosen = m.Directory.of(self.keys[member] for member in group if member in self.keys)
        self.directory = chosen
        self.sizes[self.session] = len(chosen.members)
        for member in sorted(to):
            self.deliver(member, chosen)

    @precondition(lambda self: len(self.keys) == COUNT)
    @rule(victim=MEMBERS, to=GROUPS)
    def forge(self, victim: int, to: frozenset[int]) -> None:
        """Keys of the server's own in the place of a node's."""
        forged = replace(self.keys[victim], curve=self.keys[(victim + 1) % COUNT].curve)
        chosen = m.Directory.of((self.keys | {victim: forged}).values())
        for member in sorted(to - {victim}):
            self.deliver(member, chosen)
            state = self.nodes[member].state
            believed = isinstance(state, ShareKeys) and state.place.session.directory == chosen
            assert not believed, "forged keys were believed"

    def letters(self, kind: type[m.Message], member: int, present: frozenset[int]) -> dict[int, Any]:
        """What those present addressed to a node, by sender."""
        senders = {sender: said for sender, said in self.said[kind, self.session].items() if sender in present and sender != member}
        if kind is m.Agreement:
            return {sender: data for sender, said in senders.items() for data in [i.data for i in said.items if i.seat == member]}
        return {sender: data for sender, said in senders.items() for data in [p.box for p in said.parcels if p.seat == member]}

    def forward(self, kind: type[m.Message], make: type[m.Agreed | m.Boxes], present: frozenset[int], to: frozenset[int]) -> None:
        for member in sorted(to):
            items = tuple(m.Item(sender, data) for sender, data in sorted(self.letters(kind, member, present).items()))
            self.deliver(member, make(self.session, present, items))

    def agree(self, present: frozenset[int], to: frozenset[int]) -> None:
        self.forward(m.Agreement, m.Agreed, present, to)

    def share(self, present: frozenset[int], to: frozenset[int]) -> None:
        self.forward(m.Shares, m.Boxes, present, to)
        for member in sorted(to):
            self.give(member)

    def give(self, member: int) -> None:
        """The site hands its vector to its node."""
        try:
            reply = self.nodes[member].submit(self.vectors[NAMES[member]])
        except FedscaleError:
            return
        assert isinstance(reply.body, np.ndarray)
        assert (reply.body == self.vectors[NAMES[member]]).mean() < 0.5, "a vector in the clear"
        self.vectors_given[member].add(reply.body.tobytes())
        self.hear(member, reply)

    def survive(self, present: frozenset[int], to: frozenset[int]) -> None:
        for member in sorted(to):
            self.deliver(member, m.Survivors(self.session, present))

    def consent(self, signers: frozenset[int], to: frozenset[int], *, traitor: bool = False) -> None:
        for member in sorted(to):
            state = self.nodes[member].state
            found = {signer: said.signature for signer, said in self.said[m.Consent, self.session].items() if signer in signers}
            if traitor and isinstance(state, Unmask) and TRAITOR in (state.signed or ()):
                found[TRAITOR] = SITES[NAMES[TRAITOR]].key.sign(consent_text(state.transcript, TRAITOR))
            items = tuple(m.Item(signer, signature) for signer, signature in sorted(found.items()))
            self.deliver(member, m.Consents(self.session, items))

    @rule(present=GROUPS, to=GROUPS)
    def carry_on(self, present: frozenset[int], to: frozenset[int]) -> None:
        """To each node what it waits for, from everybody who is present and has anything to say."""
        for member in sorted(to):
            self.carry_on_with(member, present)

    @rule(stages=st.integers(1, 7))
    def carry_on_with_all(self, stages: int) -> None:
        """An honest server's next stages: without it hardly any round would ever end."""
        for _ in range(stages):
            self.carry_on(EVERYBODY, EVERYBODY)

    def carry_on_with(self, member: int, present: frozenset[int]) -> None:
        state, here = self.nodes[member].state, frozenset({member})
        if isinstance(state, AdvertiseKeys):
            self.deliver(member, m.Open(self.terms))
        elif isinstance(state, AgreeKeys):
            self.direct(present, here)
        elif isinstance(state, ShareKeys):
            self.forward(m.Agreement, m.Agreed, present & self.said[m.Agreement, self.session].keys(), here)
        elif isinstance(state, CollectShares):
            self.forward(m.Shares, m.Boxes, present & self.said[m.Shares, self.session].keys(), here)
        elif isinstance(state, MaskedInput):
            self.give(member)
        elif isinstance(state, Consistency) or (isinstance(state, Unmask) and state.signed is None):
            self.survive(present & self.said[m.Masked, self.session].keys(), here)
        elif isinstance(state, Unmask):
            self.consent(present & (state.signed or present), here, traitor=True)

    @rule(out=MEMBERS, told=GROUPS)
    def equivocate(self, out: int, told: frozenset[int]) -> None:
        """Once all wait to hear who survived, some hear that a node is gone, all others that it is there."""
        for _ in range(5):
            for member in self.nodes:
                if not isinstance(self.nodes[member].state, Consistency):
                    self.carry_on_with(member, EVERYBODY)
        self.survive(EVERYBODY - {out}, told)
        self.survive(EVERYBODY, EVERYBODY - told)

    @precondition(lambda self: self.sent)
    @rule(member=MEMBERS, data=st.data())
    def disturb(self, member: int, data: st.DataObject) -> None:
        """Something that was sent before, or noise."""
        self.deliver(member, data.draw(st.one_of(st.sampled_from(self.sent[-12:]), st.binary(max_size=40).map(lambda noise: m.MAGIC + noise))))

    @rule(member=MEMBERS)
    def restart(self, member: int) -> None:
        """The node's process dies; what is left is the mark on its disk."""
        self.nodes[member] = Node(SITES[NAMES[member]], self.terms, self.marks.get(member))

    @rule()
    def restart_all(self) -> None:
        """The whole federation loses its power, and the server hopes to play the round again."""
        for member in self.nodes:
            self.restart(member)

    # --------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def never_both_secrets_of_a_node(self) -> None:
        for session, seat, _ in list(self.held) if self.profile is Profile.MALICIOUS else ():
            # A traitor among three leaves nobody a majority.
            if seat != TRAITOR and self.sizes[session] in THRESHOLDS:
                least = min(len(self.held[session, seat, "self"]), len(self.held[session, seat, "pair"]))
                assert least < THRESHOLDS[self.sizes[session]], f"both secrets of seat {seat}"

    @invariant()
    def one_vector_and_one_answer(self) -> None:
        assert all(len(given) == 1 for given in self.vectors_given.values()), "a second vector"
        assert all(len(given) == 1 for given in self.opened.values()), "a second unmask answer"

    @invariant()
    def one_set_of_survivors(self) -> None:
        if self.profile is Profile.MALICIOUS:
            assert all(len(told) == 1 for told in self.sets.values()), "two sets of survivors"
        assert all(len(present) >= 3 for told in self.sets.values() for present in told), "a sum over too few"

    @invariant()
    def no_secret_leaves(self) -> None:
        for data in self.emitted:
            # The same reply is given again and again; what it could hold was known before it was first given.
            if data not in self.looked_at:
                self.looked_at.add(data)
                assert self.secrets.isdisjoint([data[at : at + KEY] for at in range(len(data) - KEY + 1)]), "a secret key"
        self.emitted.clear()

    def check(self) -> None:
        """All invariants."""
        self.never_both_secrets_of_a_node()
        self.one_vector_and_one_answer()
        self.one_set_of_survivors()
        self.no_secret_leaves()

    def stray(self, rng: random.Random) -> None:
        """One of the moves above, its choices drawn without hypothesis: a thousand times the examples in the same time."""
        group, to, member = drawn(rng), drawn(rng), rng.randrange(COUNT)
        move = rng.randrange(9)
        if move == 0:
            self.force(rng.choice(FORCED), group, to)
        elif move == 1 and len(self.keys) == COUNT:
            self.forge(member, to)
        elif move == 2:
            self.carry_on_with_all(rng.randint(1, 7))
        elif move == 3:
            self.equivocate(member, to)
        elif move == 4:
            self.deliver(member, rng.choice(self.sent[-12:]) if rng.random() < 0.5 else m.MAGIC + rng.randbytes(rng.randrange(41)))
        elif move == 5:
            self.restart(member)
        elif move == 6 and rng.random() < 0.3:
            self.restart_all()
        else:
            self.carry_on(group, to)
        self.check()


def drawn(rng: random.Random) -> frozenset[int]:
    """Some of the nodes: all, all but one, or any."""
    kind = rng.randrange(3)
    if kind == 0:
        return EVERYBODY
    return EVERYBODY - {rng.randrange(COUNT)} if kind == 1 else frozenset(rng.sample(range(COUNT), rng.randint(1, COUNT)))


def wander(kind: type[AnyServer], steps: int, length: int, seed: int) -> int:
    """So many moves of a server whose choices are drawn at random, in federations that last ``length`` moves; returns how many rounds ended."""
    rng, ended = random.Random(seed), 0
    for done in range(0, steps, length):
        server = kind()
        server.begin()
        for _ in range(min(length, steps - done)):
            server.stray(rng)
        ended += bool(server.opened)
    return ended


class AnyCuriousServer(AnyServer):
    """Nodes that believe the server to be curious sign nothing; they still answer once and never tell a key."""

    profile = Profile.CURIOUS


Invariants = (AnyServer, AnyCuriousServer)
