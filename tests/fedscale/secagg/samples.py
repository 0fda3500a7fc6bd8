"""A small federation with real nodes and a real server, stopped wherever a test wants to interfere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedscale.errors import FedscaleError
from fedscale.ring import WORD, Words
from fedscale.secagg import messages as m
from fedscale.secagg.node import Aborted, Node, Reply, Site
from fedscale.secagg.parameters import Profile
from fedscale.secagg.server import Outbox, Server
from fedscale.secagg.simulate import Step, population, steps
from fedscale.secagg.terms import Mark, Policy, Suite, Terms

PLAN, MODEL = b"p" * 32, b"m" * 32
KINDS: dict[str, dict[str, Any]] = {
    "silo-malicious": {},
    "silo-curious": {"profile": Profile.CURIOUS},
    "silo-24": {"bits": 24},
    "graph-malicious": {"suite": Suite.GRAPH, "adversarial": 0.05, "dropout": 0.05},
    "graph-curious": {"suite": Suite.GRAPH, "profile": Profile.CURIOUS, "adversarial": 0.05, "dropout": 0.05},
}


def names(count: int) -> list[str]:
    return [f"site-{i:04}" for i in range(count)]


def vectors_for(who: Iterable[str], terms: Terms, seed: int = 0) -> dict[str, Words]:
    """Vectors that use the whole range which the terms allow."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-terms.limit, terms.limit, terms.length, np.int32, endpoint=True).view(WORD) for name in who}


def total(vectors: Mapping[str, Words], who: Iterable[str]) -> Words:
    """The plain sum modulo 2^32."""
    result = np.zeros_like(next(iter(vectors.values())))
    for name in who:
        result += vectors[name]
    return result


def make_terms(sites: Mapping[str, Site], **changes: Any) -> Terms:
    roster = next(iter(sites.values())).roster
    bits = changes.get("bits", 32)
    given = {"length": 24, "limit": ((1 << (bits - 1)) - 1) // len(sites), "adversarial": 0.0, "dropout": 0.1} | changes
    return Terms("run-1", given.pop("round", 1), given.pop("plan", PLAN), given.pop("model", MODEL), roster.digest, **given)


class World:
    """Nodes and a server in one process; ``outbox`` is what the server would send next.

    Args:
        count: how many nodes.
        policy: of all sites; by default one that allows a curious server.
        marks: what nodes remember.
        changes: of the terms.
    """

    def __init__(self, count: int = 4, *, policy: Policy | None = None, marks: Mapping[str, Mark] | None = None, **changes: Any) -> None:
        self.sites = population(names(count), policy or Policy(curious=True))
        self.terms = make_terms(self.sites, **changes)
        self.vectors = vectors_for(self.sites, self.terms)
        self.start(marks or {})

    def start(self, marks: Mapping[str, Mark]) -> None:
        self.roster = next(iter(self.sites.values())).roster
        self.server = Server(self.terms, self.roster)
        self.nodes = {name: Node(site, self.terms, marks.get(name)) for name, site in self.sites.items()}
        self.outbox: Outbox = self.server.open()
        self.replies: list[tuple[str, Reply]] = []
        self.remaining = list(steps(self.terms))

    @property
    def names(self) -> list[str]:
        return list(self.sites)

    def answer(self, name: str, data: bytes) -> Reply:
        """What a node replies, its vector included when that is due."""
        reply = self.nodes[name].handle(data)
        if reply is None:
            reply = self.nodes[name].submit(self.vectors[name])
        self.replies.append((name, reply))
        return reply

    def advance(self, silent: Iterable[str] = ()) -> Outbox:
        """One stage in which all but some answer."""
        for name, data in self.outbox.items():
            if name not in set(silent):
                reply = self.answer(name, data)
                self.server.receive(name, reply.message, reply.body)
        self.outbox = self.server.close()
        self.remaining.pop(0)
        return self.outbox

    def until(self, step: Step, silent: Iterable[str] = ()) -> Outbox:
        """All stages before a step; ``outbox`` then holds the messages that ask for it."""
        while self.remaining[0] is not step:
            self.advance(silent)
        return self.outbox

    def finish(self, silent: Iterable[str] = ()) -> Words:
        """All stages that are left."""
        while self.remaining:
            self.advance(silent)
        return self.server.outcome.words

    def refuse(self, name: str, data: bytes, error: type[FedscaleError], match: str) -> str:
        """The node refuses the message and records why; then it answers nothing any more. Returns the reason."""
        node = self.nodes[name]
        with pytest.raises(error, match=match):
            node.handle(data)
        assert isinstance(node.state, Aborted)
        assert type(node.refusal) is error
        assert node.refusal is node.state.reason
        with pytest.raises(FedscaleError):
            node.handle(m.encode(m.Survivors(b"x" * 32, frozenset({1}))))
        return str(node.state.reason)

    def altered(self, name: str, change: Callable[[Any], m.Message]) -> bytes:
        """What the server would send to a node, changed."""
        return m.encode(change(m.decode(self.outbox[name])))


def session_of(data: bytes) -> bytes:
    """The session that a message names."""
    session = getattr(m.decode(data), "session", b"")
    assert isinstance(session, bytes)
    return session


def changed(**fields: Any) -> Callable[[Any], m.Message]:
    """A change of some fields of a message."""
    return lambda message: replace(message, **fields)
