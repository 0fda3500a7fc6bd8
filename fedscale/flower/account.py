"""What the messages of a led run count for: the phase and round of each, and the metrics that the replies amount to."""

from __future__ import annotations

import re
import threading
from typing import TypeAlias

from fedscale.flower import records
from fedscale.flower.records import Mail
from fedscale.flower.witness import Outcome

Key: TypeAlias = tuple[str, int]

TRAIN = "train"


class Account:
    """Keeps the account of one run.

    A message says to which round it belongs, by its group or by the ``server-round`` in its config; where it does not, a new
    round begins when a site is asked for the same thing again, or trained after anything else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Key = ("", 1)
        self._asked: set[str] = set()
        self._of: dict[str, Key] = {}
        self._sums: dict[Key, dict[str, list[float]]] = {}

    def sent(self, node: str, message: Mail) -> Key:
        """The phase and round of a message that is about to be sent."""
        phase, number = re.sub("[^a-z0-9_]", "_", records.phase_of(message).lower())[:32], records.round_of(message)
        with self._lock:
            before, count = self._now
            if number is None:
                again = node in self._asked if phase == before else phase == TRAIN and before != ""
                number = count + again
            key = phase, max(number, 1)
            if key != self._now:
                self._now, self._asked = key, set()
            self._asked.add(node)
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

    def metrics(self, outcome: Outcome) -> list[tuple[str, int, dict[str, float]]]:
        """Means over the examples by phase and round, and what the app's own strategy made of them, which counts."""
        with self._lock:
            means = {key: {name: total / weight for name, (total, weight) in sums.items() if weight > 0} for key, sums in self._sums.items()}
        rows = {key: values for key, values in means.items() if key[0] in ("train", "evaluate")}
        for (phase, number), values in outcome.metrics.items():
            if number and values:  # what a strategy measures before the first round belongs to none
                rows[phase, number] = {**rows.get((phase, number), {}), **values}
        return [(phase, number, values) for (phase, number), values in sorted(rows.items(), key=lambda row: (row[0][1], row[0][0] != TRAIN))]
