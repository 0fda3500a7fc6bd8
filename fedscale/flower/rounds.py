"""The rounds of an app that leads them as it likes.

A message says to which round it belongs, by its group or by the ``server-round`` in its config; where it does not, a new
round begins when a client is asked for the same thing again, or trained after an evaluation. Rounds count from one, also
those of an app that counts from zero; where its first training is of round one, an evaluation of round zero before that
changes nothing of it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from fedscale.flower import records
from fedscale.flower.records import Mail
from fedscale.record import PHASES
from fedscale.wire.limits import ROUNDS

TRAIN = "train"


@dataclass(slots=True)
class _Count:
    """How far it is, and who was asked for what since."""

    phase: str = ""
    number: int = 1
    shift: int = 0
    trained: bool = False
    asked: set[str] = field(default_factory=set)


class Rounds:
    """Counts them: training and evaluation together, whatever else is asked, such as queries, for itself."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, _Count] = defaultdict(_Count)

    def of(self, node: str, message: Mail) -> tuple[str, int]:
        """The phase of a message that is about to be sent to a node, and its round, from one on."""
        phase, told = records.phase_of(message), records.round_of(message)
        count = self._counts["" if phase in PHASES else phase]
        if told is not None:
            count.shift = max(0 if phase == TRAIN and not count.trained else count.shift, 1 - told)
        count.trained |= phase == TRAIN
        if told is None or told + count.shift > ROUNDS:
            number = count.number + (node in count.asked if phase == count.phase else phase == TRAIN and count.phase != "")
        else:
            number = told + count.shift
        if (phase, number) != (count.phase, count.number):
            count.phase, count.number, count.asked = phase, number, set()
        count.asked.add(node)
        return phase, number
