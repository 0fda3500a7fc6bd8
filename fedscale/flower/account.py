"""What the messages of a led run count for: the phase and round of each, and the metrics that the replies amount to."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fedscale.flower import records
from fedscale.flower.records import Mail
from fedscale.flower.rounds import TRAIN, Rounds
from fedscale.flower.witness import Outcome
from fedscale.wire.limits import METRIC_NAME, METRICS, ROUNDS

Key: TypeAlias = tuple[str, int]
Row: TypeAlias = tuple[str, int, dict[str, float]]


class Account:
    """Keeps the account of one run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rounds = Rounds()
        self._of: dict[str, Key] = {}
        self._sums: dict[Key, dict[str, list[float]]] = {}

    def sent(self, node: str, message: Mail) -> Key:
        """The phase and round of a message that is about to be sent."""
        with self._lock:
            phase, number = self._rounds.of(node, message)
            key = re.sub("[^a-z0-9_]", "_", phase.lower())[:32], number
            self._of[message.metadata.message_id] = key
        return key

    def got(self, message: Mail, reply: Mail) -> None:
        """A reply: every single number that it reports, weighted with its examples."""
        examples, values = records.measured(reply.content)
        with self._lock:
            sums = self._sums.setdefault(self._of[message.metadata.message_id], {})
            for name, value in values.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + examples * value, total[1] + examples

    def metrics(self, outcome: Outcome) -> list[Row]:
        """Means over the examples by phase and round, and what the app's own strategy made of them, which counts.

        Numbers that are none, names beyond 200 characters and, of very many rounds, the first are left out: a record has no place for them.
        """
        with self._lock:
            means = {key: {name: total / weight for name, (total, weight) in sums.items() if weight > 0} for key, sums in self._sums.items()}
        rows = {key: values for key, values in means.items() if key[0] in ("train", "evaluate")}
        for (phase, number), values in outcome.metrics.items():
            if 0 < number <= ROUNDS and values:  # what a strategy measures before the first round belongs to none
                rows[phase, number] = {**rows.get((phase, number), {}), **values}
        return _fitting([(*key, _sound(rows[key])) for key in sorted(rows, key=lambda key: (key[1], key[0] != TRAIN))])


def _sound(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics that a record has a place for; a loss that diverged is none."""
    return {name: value for name, value in values.items() if math.isfinite(value) and 0 < len(name) <= METRIC_NAME}


def _fitting(rows: Sequence[Row]) -> list[Row]:
    """The last rows, as many as the coordinator takes."""
    sizes = itertools.accumulate(len(json.dumps(row)) + 2 for row in reversed(rows))
    count = sum(size <= METRICS - 2 for size in sizes)
    return list(rows[len(rows) - count :])
