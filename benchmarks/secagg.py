"""Secure aggregation beside Flower 1.41's SecAgg+, on the same vectors in the same run.

Like for like is the profile in which the server is curious: Flower has no other. A client's time is the sum over the stages
of the fastest client, quantising included; a server's is all the rest. Times are of the processor, so that what else runs on
the machine does not count, and of a few rounds the best, for both. An upload is the masked vector.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks import Cost, Figure, _flwr_secagg
from fedscale.aggregate import Mean
from fedscale.secagg import keys, prg
from fedscale.secagg.node import Node, Reply
from fedscale.secagg.parameters import Profile
from fedscale.secagg.server import Server
from fedscale.secagg.simulate import Step, population, steps
from fedscale.secagg.terms import Policy, Suite, Terms
from fedscale.update import Layout, Update
from fedscale.vector import Vector

BOUND = 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """Size, cohort and assumptions; the rates are those for which the finder gives ``degree``."""

    size: int
    nodes: int
    degree: int
    drops: int
    rates: dict[Profile, tuple[float, float]]
    repeat: int


CASES = (
    Case(1_000_000, 20, 10, 2, {Profile.CURIOUS: (0.3, 0.1), Profile.MALICIOUS: (0.2, 0.1)}, 3),
    Case(100_000, 100, 30, 10, {Profile.CURIOUS: (0.18, 0.1), Profile.MALICIOUS: (0.08, 0.1)}, 2),
)


def measure() -> Iterator[Figure]:
    """For each case: milliseconds of a client and of the server, bytes a parameter, error of the mean, and the ratios."""
    core = prg.choose(time.perf_counter)
    for case in CASES:
        rng = np.random.default_rng(0)
        vectors = [(rng.standard_normal(case.size) * 0.05).astype(np.float32) for _ in range(case.nodes)]
        truth = np.mean(vectors[case.drops :], axis=0, dtype=np.float64)
        label = f"d={case.size:.0e} n={case.nodes} k={case.degree}"
        ours = {
            name: best([Round(case, vectors, profile, bits, core).run() for _ in range(case.repeat + 2)])
            for name, (profile, bits) in {
                "ours": (Profile.CURIOUS, 32),
                "ours malicious": (Profile.MALICIOUS, 32),
                "ours 24 bits": (Profile.CURIOUS, 24),
            }.items()
        }
        theirs = best(
            [
                _flwr_secagg.measure_round(vectors, case.degree, (case.degree + 1) // 2 + 1, case.drops)
                for _ in range(1 if case.nodes > 50 else case.repeat)
            ]
        )
        for name, cost in (ours | {"flwr": theirs}).items():
            yield Figure(f"{label} {name} client", cost.client * 1e3, "ms")
            yield Figure(f"{label} {name} server", cost.server * 1e3, "ms")
            yield Figure(f"{label} {name} upload", cost.uploaded / case.size, "B/param")
            yield Figure(f"{label} {name} error of the mean", float(np.abs(cost.mean - truth).max()), "")
        yield Figure(f"{label} client ratio", theirs.client / ours["ours"].client, "x")
        yield Figure(f"{label} server ratio", theirs.server / ours["ours"].server, "x")
        yield from overhead(label, case, ours["ours"], averaging(case, vectors))


def overhead(label: str, case: Case, cost: Cost, plain: float) -> Iterator[Figure]:
    """What the protocol adds to averaging in the clear, which takes the server ``plain`` seconds."""
    yield Figure(f"{label} client overhead", cost.extra / case.size * 1e9, "ns/param")
    more = cost.extra + max(cost.server - plain, 0.0) / case.nodes
    yield Figure(f"{label} overhead of both sides over averaging", more / case.size * 1e9, "ns/param/client")


def averaging(case: Case, vectors: list[Vector], tries: int = 5) -> float:
    """The least time in which a server averages the same answers in the clear: it checks each, adds it, and divides in the end."""
    layout, best = Layout(case.size, (), terms=case.nodes, bound=BOUND, weight_cap=_flwr_secagg.MAX_WEIGHT), float("inf")
    answers = [layout.encode(Update(vector, _flwr_secagg.EXAMPLES)) for vector in vectors[case.drops :]]
    for _ in range(tries):
        began, mean = _flwr_secagg.clock(), Mean()
        partial = mean.zero(layout)
        for words in answers:
            layout.check(words)
            mean.add(partial, words)
        mean.report(partial, layout)
        best = min(best, _flwr_secagg.clock() - began)
    return best


def best(costs: list[Cost]) -> Cost:
    """The least time of each side; the rest is the same in all rounds."""
    fastest = min(costs, key=lambda cost: cost.client)
    return Cost(fastest.client, min(cost.server for cost in costs), fastest.uploaded, fastest.mean, fastest.extra)


class Round:
    """One round of ours over these vectors, the first ``drops`` of which never arrive, with the time of each side booked."""

    def __init__(self, case: Case, vectors: list[Vector], profile: Profile, bits: int, core: prg.Core) -> None:
        names = [f"site-{place:04}" for place in range(case.nodes)]
        # A ring of 24 bits has eight bits less for each value.
        self.layout = Layout(case.size, (), terms=case.nodes << (32 - bits), bound=BOUND, weight_cap=_flwr_secagg.MAX_WEIGHT)
        sites = population(names, Policy(curious=True), core=core)
        roster = sites[names[0]].roster
        limit, rates = (1 << (bits - 2)) // case.nodes, case.rates[profile]
        self.terms = Terms("benchmark", 1, bytes(32), bytes(32), roster.digest, self.layout.length, limit, bits, Suite.GRAPH, profile, *rates)
        assert self.terms.parameters(case.nodes).degree == case.degree
        self.server, self.nodes = Server(self.terms, roster, core), {name: Node(site, self.terms) for name, site in sites.items()}
        self.updates = {name: Update(vector, _flwr_secagg.EXAMPLES) for name, vector in zip(names, vectors, strict=True)}
        self.dropped = set(names[: case.drops])
        self.clients: defaultdict[Step, list[float]] = defaultdict(list)
        self.encoding: list[float] = []
        self.body = 0
        self.spent = 0.0

    def run(self) -> Cost:
        """All stages."""
        outbox = self.server.open()
        for step in steps(self.terms):
            late = step not in {Step.KEYS, Step.AGREEMENT, Step.SHARES}
            for name, data in outbox.items():
                if not (late and name in self.dropped):
                    self._receive(name, self._answer(step, name, data))
            began = _flwr_secagg.clock()
            outbox = self.server.close()
            self.spent += _flwr_secagg.clock() - began
        began = _flwr_secagg.clock()
        weight, _ = self.layout.tail(self.server.outcome.words)
        mean = self.layout.mean(self.server.outcome.words, weight)
        self.spent += _flwr_secagg.clock() - began
        client = sum(min(times) for times in self.clients.values())
        return Cost(client, self.spent, self.body, mean, client - min(self.encoding))

    def _answer(self, step: Step, name: str, data: bytes) -> Reply:
        keys.found_right.cache_clear()  # a node alone on its machine has checked nothing before
        began = _flwr_secagg.clock()
        reply = self.nodes[name].handle(data)
        if step is Step.VECTOR:
            encoding = _flwr_secagg.clock()
            words = self.layout.encode(self.updates[name])
            self.encoding.append(_flwr_secagg.clock() - encoding)
            reply = self.nodes[name].submit(words)
        self.clients[step].append(_flwr_secagg.clock() - began)
        assert reply is not None
        return reply

    def _receive(self, name: str, reply: Reply) -> None:
        if reply.body is not None:
            self.body = len(reply.body) if isinstance(reply.body, bytes) else reply.body.nbytes
        began = _flwr_secagg.clock()
        self.server.receive(name, reply.message, reply.body)
        self.spent += _flwr_secagg.clock() - began
