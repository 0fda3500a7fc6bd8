"""Virtual supernodes: who they are, what they remember, and the ClientApp at work for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedscale.flower import apps, records
from fedscale.flower.directory import Scalar
from fedscale.names import Numbered

IDS = (2, 2**62)


def numbers(run: int, count: int) -> list[int]:
    """Flower's numbers for so many supernodes of a run: the same ones every time."""
    drawn = dict.fromkeys(np.random.default_rng(run).integers(*IDS, size=count + 8).tolist())
    return list(drawn)[:count]


class Nodes:
    """Supernodes by Flower's numbers for them, and the state that each keeps from message to message.

    Args:
        app: does the work.
        config: the run config.
        count: how many supernodes.
        run: the run's number, from which theirs are drawn: the same ones every time.
    """

    def __init__(self, app: ClientApp, config: Mapping[str, Scalar], count: int, run: int) -> None:
        self.names: Sequence[str] = Numbered(count)
        self._app, self._config, self._run = app, dict(config), run
        self.places = {number: place for place, number in enumerate(numbers(run, count))}
        self._states: dict[int, RecordDict] = {}

    def name(self, node: int) -> str:
        """What people call a supernode."""
        return self.names[self.places[node]]

    @property
    def server_context(self) -> Context:
        """What the ServerApp gets."""
        return Context(run_id=self._run, node_id=0, node_config={}, state=RecordDict(), run_config=dict(self._config))

    def work(self, message: Message) -> Message:
        """What the ClientApp replies; whatever it raises passes through, and then its state is as if it had not been asked.

        Raises:
            AppError: it returned no message.
        """
        node = int(message.metadata.dst_node_id)
        context = self._context(node)
        reply = apps.asked(self._app, message, context)
        self._states[node] = context.state
        return reply

    def _context(self, node: int) -> Context:
        """A context with a state of its own, as in Flower, where it travels to the client and back."""
        state = self._states.get(node)
        place = {"partition-id": self.places[node], "num-partitions": len(self.places)}
        state = RecordDict() if state is None else records.apart(state)
        return Context(run_id=self._run, node_id=node, node_config=place, state=state, run_config=dict(self._config))
