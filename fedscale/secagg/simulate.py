"""Whole rounds in one process: the real machines with a script of drop-outs, or the same sum in the clear."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import RunFailed
from fedscale.ring import WORD, Words, add
from fedscale.secagg.keys import KEY, public_of
from fedscale.secagg.node import Node, Reply, Site
from fedscale.secagg.parameters import Profile
from fedscale.secagg.prg import Core
from fedscale.secagg.server import Outcome, Server
from fedscale.secagg.session import check_words
from fedscale.secagg.shamir import Entropy
from fedscale.secagg.terms import Member, Policy, Roster, Terms


class Step(StrEnum):
    """What a node that drops out does not do any more."""

    KEYS = "keys"
    AGREEMENT = "agreement"
    SHARES = "shares"
    VECTOR = "vector"
    CONSENT = "consent"
    OPENING = "opening"


def steps(terms: Terms) -> tuple[Step, ...]:
    """What a node does in a round, in order."""
    return tuple(step for step in Step if step is not Step.CONSENT or terms.profile is Profile.MALICIOUS)


def population(names: Sequence[str], policy: Policy | None = None, entropy: Entropy = secrets.token_bytes, core: Core = Core.GCM) -> dict[str, Site]:
    """Sites with fresh identities and a roster of them all, by name."""
    keys = {name: Ed25519PrivateKey.from_private_bytes(entropy(KEY)) for name in sorted(names)}
    roster = Roster(tuple(Member(name, public_of(key)) for name, key in keys.items()))
    return {name: Site(name, key, roster, policy or Policy(), entropy, core) for name, key in keys.items()}


def run(terms: Terms, sites: Mapping[str, Site], vectors: Mapping[str, Words], drops: Mapping[str, Step] | None = None) -> Outcome:
    """One round of the real protocol.

    Args:
        terms: what the round is about.
        sites: the nodes by name, all of one roster.
        vectors: each node's words, shape ``(terms.length,)``.
        drops: from which step on a node is silent.

    Raises:
        RunFailed: too few nodes are left; nothing was opened.
        FedscaleError: a node refused.
    """
    first = next(iter(sites.values()))
    server, nodes = Server(terms, first.roster, first.core), {name: Node(site, terms) for name, site in sites.items()}
    order = steps(terms)
    silent = {name: order.index(step) for name, step in (drops or {}).items()}
    outbox = server.open()
    for at, step in enumerate(order):
        for name, data in outbox.items():
            if at < silent.get(name, len(order)):
                reply = _reply(nodes[name], data, vectors[name] if step is Step.VECTOR else None)
                server.receive(name, reply.message, reply.body)
        outbox = server.close()
    return server.outcome


def _reply(node: Node, data: bytes, words: Words | None) -> Reply:
    """What a node answers; with ``words``, its masked vector."""
    reply = node.handle(data)
    if words is not None:
        reply = node.submit(words)
    if reply is None:
        raise RunFailed("a node had nothing to say when its answer was due", where=type(node.state).__name__)
    return reply


def plain(terms: Terms, vectors: Mapping[str, Words]) -> Outcome:
    """The fast exact mode: the very sum that the protocol gives, without the protocol. It hides nothing and says so in ``masked``.

    Raises:
        UpdateRejected: a vector that a node would refuse to send.
        PlanError: terms under which no round could be run.
    """
    terms.parameters(len(vectors))
    total = np.zeros(terms.length, WORD)
    for words in vectors.values():
        check_words(words, terms)
        add(total, words)
    return Outcome(total, tuple(sorted(vectors)), masked=False)
