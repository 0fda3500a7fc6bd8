"""What a ServerApp would ask its clients, found out without any: its first model, and the message of every phase of every round.

Deployed, our coordinator leads the rounds and never runs a user's code. So a node's worker plays the ServerApp through once
against a grid on which nobody ever succeeds: every training and evaluation is answered with an error, which Flower's
strategies survive with the model as it was, and what they asked is kept. Other requests, such as a legacy server's for first
parameters, go to the node's own ClientApp.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedscale.causes import attempted
from fedscale.errors import AppError, RunFailed
from fedscale.flower import records, touches
from fedscale.flower.records import ROUND

FIRST_NODE, NODES, MOST_NODES, LOOKS = 2, 32, 1 << 16, 4
MOST_MESSAGES = 1 << 20
SECONDS = 120.0
UNKNOWN = 0  # flwr.common.constant.ErrorCode.UNKNOWN
PHASES = ("train", "evaluate")


@dataclass
class Script:
    """What was asked.

    Args:
        asked: one message's content by phase and round.
    """

    asked: dict[tuple[str, int], RecordDict] = field(default_factory=dict)

    def content(self, phase: str, number: int) -> RecordDict:
        """What to ask in a round: as rehearsed, or as in the last round before it that was, under its own number.

        Raises:
            AppError: the ServerApp never asks for this phase.
        """
        known = [of for kind, of in self.asked if kind == phase]
        if not known:
            hint = "switch evaluation off: --set evaluate.every=0" if phase == "evaluate" else ""
            raise AppError(f"the ServerApp asks its clients for no phase '{phase}'", hint=hint)
        nearest = max((of for of in known if of <= number), default=min(known))
        content = records.apart(self.asked[phase, nearest])
        for record in content.config_records.values():
            if ROUND in record:
                record[ROUND] = number
        return content

    @property
    def first(self) -> tuple[str, ArrayRecord]:
        """Record's name and first model, as the first training is asked with it.

        Raises:
            AppError: the ServerApp asks for no training, or with no model.
        """
        content = self.content("train", 1)
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                return str(name), record
        raise AppError("the ServerApp sends its clients no model to train")


def rehearse(app: ServerApp, context: Context, client: Callable[[Message], Message]) -> Script:
    """Play a ServerApp through.

    Args:
        app: the ServerApp.
        context: what it gets.
        client: answers what is neither training nor evaluation.

    Raises:
        AppError: it fails before it has asked for any training.
    """
    touches.identify(context.run_id)
    grid = _Stage(context.run_id, client)
    ended: list[Any] = []
    # One that waits for something that a rehearsal does not have is left behind.
    lane = threading.Thread(target=lambda: ended.append(attempted(lambda: app(grid, context))), name="flower-rehearsal", daemon=True)
    lane.start()
    lane.join(SECONDS)
    if not any(phase == "train" for phase, _ in grid.script.asked):
        error = ended[0] if ended else TimeoutError(f"it took longer than {SECONDS:g} s")
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else "it asks for no training"
        raise AppError("the ServerApp cannot be rehearsed", why=reason)
    return grid.script


class _Stage(Grid):
    """A grid whose nodes never succeed; there are as many as anybody waits for."""

    def __init__(self, run: int, client: Callable[[Message], Message]) -> None:
        self.script = Script()
        self._run, self._number, self._client = touches.run_facts(run), run, client
        self._nodes, self._looks, self._sent = NODES, 0, 0
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """The run is set already."""

    @property
    def run(self) -> Any:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """More of them where somebody looks again and again, for lack of nodes, before anybody is asked."""
        self._looks += 1
        if self._looks > LOOKS:
            self._nodes = min(2 * self._nodes, MOST_NODES)
        return range(FIRST_NODE, FIRST_NODE + self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep what is asked."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies, each handed out once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002 - Flower's shape
        """Everybody answers at once."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _push(self, message: Message) -> str:
        self._sent, self._looks = self._sent + 1, 0
        name = f"r{self._sent}"
        touches.stamp(message, name, self._number)
        phase = records.phase_of(message)
        if phase not in PHASES:
            self._replies[name] = self._client(message)
            return name
        number = records.round_of(message) or self._next(phase)
        self.script.asked.setdefault((phase, number), records.apart(message.content))
        self._replies[name] = Message(Error(UNKNOWN, "a rehearsal"), reply_to=message)
        return name

    def _next(self, phase: str) -> int:
        """The round of a message that does not say: a loop of an app's own, of which the first round must do.

        Raises:
            RunFailed: the loop goes round and round.
        """
        if self._sent > MOST_MESSAGES:
            raise RunFailed("the rehearsal has no end")
        return max((of for kind, of in self.script.asked if kind == phase), default=1)
