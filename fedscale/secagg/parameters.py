"""How many neighbours share masks with a node, and which threshold is enough.

The degree and the threshold follow from the number of nodes and the shares of them that may collude with the server or
drop out, so that with probability at least ``1 - 2^-40`` no set of colluders holds a threshold of anybody's shares and
the honest nodes stay connected, and with probability at least ``1 - 2^-20`` enough shares survive the drop-outs.
Source: Bell, Bonawitz, Gascon, Lepoint, Raykova: Secure Single-Server Aggregation with (Poly)Logarithmic Overhead,
CCS 2020, lemmas 3.6 to 3.9; the bounds are those of the same authors' published parameter finder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedscale.errors import PlanError

SECURITY_BITS, FAILURE_BITS = 40, 20
MOST_NODES = 1_000_000
MOST_SILOS = 50
FEWEST = 3
MOST_LOSS = 0.9
# Keeps a product such as 0.1 * 1000 from being rounded to the unsafe side.
SLACK = 1e-14


class Profile(StrEnum):
    """What the server may do: follow the protocol and be curious, or send anything in any order."""

    MALICIOUS = "malicious"
    CURIOUS = "curious"


@dataclass(frozen=True, slots=True)
class Parameters:
    """Neighbours of each node, and how many of a node's shares rebuild its secrets."""

    degree: int
    threshold: int


def _assume(nodes: int, adversarial: float, dropout: float, profile: Profile) -> None:
    """Refuse assumptions under which nothing can be promised."""
    loss = adversarial + dropout * (2 if profile is Profile.MALICIOUS else 1)
    if not FEWEST <= nodes <= MOST_NODES:
        raise PlanError(f"secure aggregation is for {FEWEST} to {MOST_NODES} nodes, not for {nodes}", where="secagg")
    if not (0 <= adversarial < 1 and 0 <= dropout < 1 and loss <= MOST_LOSS):
        raise PlanError(
            f"no graph is safe with {adversarial:g} of the nodes colluding and {dropout:g} dropping out",
            where="secagg",
            why=f"rates lie in [0, 1) and colluders plus drop-outs (twice, under a malicious server) must not pass {MOST_LOSS}",
        )


def complete(nodes: int, adversarial: float, dropout: float, profile: Profile) -> Parameters:
    """Parameters where every node is everybody's neighbour and holds a share of its own secrets too.

    Under a malicious server twice the threshold exceeds the nodes plus the colluders, and it is at least two thirds of the nodes.

    Raises:
        PlanError: impossible rates, too many nodes, or the drop-outs may leave less than the threshold.
    """
    _assume(nodes, adversarial, dropout, profile)
    if nodes > MOST_SILOS:
        raise PlanError(f"the complete graph is for at most {MOST_SILOS} nodes, not for {nodes}", where="secagg", hint="use secagg-graph")
    colluding = math.floor((adversarial + SLACK) * nodes)
    least = {Profile.MALICIOUS: max(-(-2 * nodes // 3), (nodes + colluding) // 2 + 1), Profile.CURIOUS: max(nodes // 2 + 1, colluding + 1)}
    remaining = nodes - math.floor((dropout + SLACK) * nodes)
    if remaining < least[profile]:
        raise PlanError(
            f"{remaining} of {nodes} nodes may remain, the threshold is {least[profile]}",
            where="secagg",
            hint="assume fewer drop-outs or fewer colluders",
        )
    return Parameters(nodes - 1, least[profile])


@lru_cache(maxsize=256)
def find(nodes: int, adversarial: float, dropout: float, profile: Profile) -> Parameters:
    """The smallest even degree, and a threshold, that are safe on a random Harary graph.

    Args:
        nodes: how many take part, 3 to a million.
        adversarial: share of them that may collude with the server.
        dropout: share of them that may drop out.
        profile: what the server may do.

    Raises:
        PlanError: no degree below ``nodes - 1`` is safe, or the rates are impossible.
    """
    _assume(nodes, adversarial, dropout, profile)
    finder = _Finder(nodes, adversarial, dropout, profile)
    for degree in range(2, nodes - 1, 2):
        threshold = finder.threshold(degree)
        if threshold is not None:
            return Parameters(degree, threshold)
    raise PlanError(
        f"no graph on {nodes} nodes is safe for these rates", where="secagg", hint="use secagg-silo, or assume fewer drop-outs or colluders"
    )


class _Finder:
    """Tail bounds for one population; logarithms of factorials are tabled once."""

    def __init__(self, nodes: int, adversarial: float, dropout: float, profile: Profile) -> None:
        self._nodes, self._profile = nodes, profile
        self._colluding = math.floor((adversarial + SLACK) * nodes)
        self._lost = math.floor((dropout + SLACK) * nodes)
        self._surviving = math.ceil((1 - dropout - SLACK) * nodes)
        self._factorial = np.array([math.lgamma(i + 1) for i in range(nodes + 1)])

    def threshold(self, degree: int) -> int | None:
        """A safe threshold for this degree; None when there is none."""
        # Two bad events share the security budget: a graph that falls apart, and too many colluding neighbours.
        allowed = 2.0 ** -(SECURITY_BITS + 1)
        if self._disconnected(degree) >= math.log(allowed):
            return None
        colluders = np.cumsum(self._chances(self._colluding, degree)[::-1])[::-1]
        above = np.append(colluders[1:], 0.0)
        # Colluding neighbours exceed `most` with negligible probability, surviving ones fall below `least` hardly ever.
        most = int(np.argmax(above <= allowed / self._nodes))
        survivors = np.cumsum(self._chances(self._surviving, degree))
        least = int(np.argmax(survivors >= 2.0**-FAILURE_BITS / self._nodes))
        if self._profile is Profile.MALICIOUS:
            # Twice the threshold must exceed the degree plus the colluders: then no two answers can both reach it.
            most = (most + degree) // 2
        # A share that is the secret itself would be none; like the published finder, this does not count the failures anew.
        return max(most + 1, 2) if least > most else None

    def _disconnected(self, degree: int) -> float:
        """Logarithm of a bound on the probability that the honest survivors fall apart: two runs of ``degree / 2`` lost nodes."""
        nodes, bad, table = self._nodes, self._colluding + self._lost, self._factorial
        if degree > bad:
            return -math.inf
        pairs = math.log(nodes) + math.log(nodes - degree - 1) - math.log(2)
        return float(pairs + table[bad] + table[nodes - degree] - table[nodes] - table[bad - degree])

    def _chances(self, marked: int, drawn: int) -> npt.NDArray[np.float64]:
        """Hypergeometric probabilities of 0 to ``drawn`` marked ones among ``drawn`` of the nodes."""
        table, nodes = self._factorial, self._nodes
        chances = np.zeros(drawn + 1)
        hit = np.arange(max(0, drawn - (nodes - marked)), min(drawn, marked) + 1)
        miss = drawn - hit
        ways = table[marked] - table[hit] - table[marked - hit] + table[nodes - marked] - table[miss] - table[nodes - marked - miss]
        chances[hit] = np.exp(ways - (table[nodes] - table[drawn] - table[nodes - drawn]))
        return chances
