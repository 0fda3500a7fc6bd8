"""Who shares masks with whom: the graph that everybody computes from one seed.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova: Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedscale.errors import PlanError
from fedscale.secagg.parameters import Parameters
from fedscale.secagg.transcript import digest


@dataclass(frozen=True, slots=True)
class Graph:
    """A Harary graph: nodes on a ring in a random order, each joined to the ``degree / 2`` before and after it, or to all.

    Args:
        order: the nodes along the ring.
        place: where on the ring each node stands.
        degree: neighbours of each node.
        digest: what identifies the graph in a transcript.
    """

    order: tuple[int, ...]
    place: tuple[int, ...]
    degree: int
    digest: bytes
    _near: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree == len(self.order) - 1

    def neighbours(self, node: int) -> tuple[int, ...]:
        """The nodes that share a mask with ``node``, ascending."""
        if node not in self._near:
            self._near[node] = self._around(node)
        return self._near[node]

    def _around(self, node: int) -> tuple[int, ...]:
        if self.complete:
            return (*range(node), *range(node + 1, len(self.order)))
        at, size, half = self.place[node], len(self.order), self.degree // 2
        return tuple(sorted(self.order[(at + step) % size] for step in range(-half, half + 1) if step))

    def holders(self, node: int) -> tuple[int, ...]:
        """The nodes that hold a share of the secrets of ``node``, ascending; on the complete graph itself among them."""
        return tuple(range(len(self.order))) if self.complete else self.neighbours(node)


def build(nodes: int, parameters: Parameters, seed: bytes) -> Graph:
    """The graph that everybody computes from the same 32-byte ``seed``.

    Raises:
        PlanError: the degree is neither even nor that of the complete graph.
    """
    degree = parameters.degree
    if not (0 < degree < nodes and (degree % 2 == 0 or degree == nodes - 1)):
        raise PlanError(f"no Harary graph has {nodes} nodes of degree {degree}", where="secagg")
    stream = Cipher(algorithms.AES(digest("graph order", seed)), modes.CTR(bytes(16))).encryptor().update(bytes(8 * nodes))
    order = np.argsort(np.frombuffer(stream, "<u8"), kind="stable")
    place = np.argsort(order, kind="stable")
    return Graph(tuple(order.tolist()), tuple(place.tolist()), degree, digest("graph", seed, nodes, degree, parameters.threshold))
