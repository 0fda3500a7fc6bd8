"""The grid under a ServerApp: messages go to virtual supernodes in this process, one after the other, without a copy of an array.

Clients work one at a time in a thread of their own, so that an app's code never runs twice at once, as in a Flower actor, and
finds no event loop, gradient mode or random numbers of the ServerApp's.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedscale.causes import attempted
from fedscale.errors import RunFailed
from fedscale.flower import records, touches
from fedscale.flower.chance import Chance
from fedscale.flower.nodes import Nodes

T = TypeVar("T")

RAISED, UNAVAILABLE = 2, 3  # flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION and MESSAGE_UNAVAILABLE
# Who looks so often for so long without asking anybody waits for nodes that will never come.
LEADER, LANE = "flower-server", "flower-client"
LOOKS, WAIT_SECONDS = 15, 15.0


class Watch(Protocol):
    """Is told what goes on; answers come from one thread at a time, requests from any."""

    def asked(self, messages: list[Message]) -> None:
        """These were sent."""

    def answered(self, message: Message, reply: Message | Exception) -> None:
        """A client replied, or its code raised."""

    def late(self, message: Message) -> None:
        """A message was given up when the ServerApp's time was over."""


class LocalGrid(Grid):
    """A grid whose supernodes are here.

    Args:
        nodes: do the work.
        run: the run's number.
        watch: is told of every message.
    """

    def __init__(self, nodes: Nodes, run: int, watch: Watch) -> None:
        self._nodes, self._number, self._watch = nodes, run, watch
        self._run = touches.run_facts(run)
        self._lane = ThreadPoolExecutor(max_workers=1, thread_name_prefix=LANE)
        self._names, self._closed, self._chance = itertools.count(1), threading.Event(), Chance()
        self._open: dict[str, tuple[Message, Future[Message]]] = {}
        self._looks, self._since = 0, time.monotonic()

    def close(self) -> None:
        """Ask nobody any more and wait for whoever is at work."""
        self._closed.set()
        self._lane.shutdown(wait=True, cancel_futures=True)

    def among_clients(self, work: Callable[[], T]) -> T:
        """Do something where clients work: in their thread, with their random numbers."""
        return work() if _in(LANE) else self._lane.submit(self._apart, work).result()

    def set_run(self, run: Any) -> None:
        """The run is set already."""

    @property
    def run(self) -> Any:
        """Flower's description of the run."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message to a node; Flower itself calls this deprecated."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The numbers of all supernodes.

        Raises:
            RunFailed: the ServerApp waits for more of them than there are.
        """
        idle = all(future.done() for _, future in self._open.values())
        self._looks += idle and _in(LEADER)
        if self._looks > LOOKS and time.monotonic() > self._since + WAIT_SECONDS:
            count = len(self._nodes.places)
            hint = "raise --clients, or lower min_available_nodes"
            raise RunFailed(f"the ServerApp waits for more than the {count} clients that there are", hint=hint)
        return list(self._nodes.places)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, to be done in the background; those to nobody are dropped, as Flower does.

        Raises:
            RunFailed: the run was stopped.
        """
        sent = self._sent(messages)
        self._open |= {message.metadata.message_id: (message, self._later(message)) for message in self._in_order(sent)}
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, each handed out once, in the order in which they came."""
        asked = set(message_ids)
        names = [name for name, (_, future) in self._open.items() if name in asked and future.done()]
        return [self._open.pop(name)[1].result() for name in names]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies, those that arrive in time, in the order of the nodes.

        Raises:
            RunFailed: the run was stopped.
        """
        ends = math.inf if timeout is None else time.monotonic() + timeout
        asked = self._in_order(self._sent(messages))
        return self.among_clients(lambda: self._replies(asked, ends))

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        """Messages to those that there are, named."""
        if self._closed.is_set():
            raise RunFailed("the run was stopped")
        sent = [message for message in messages if message.metadata.dst_node_id in self._nodes.places]
        for message in sent:
            touches.stamp(message, f"m{next(self._names)}", self._number)
        self._looks, self._since = 0, time.monotonic()
        return sent

    def _in_order(self, sent: list[Message]) -> list[Message]:
        """In the order of the nodes, each as its node gets it: Flower draws and adds up in any order, here the same app comes to the same bits."""
        places = self._nodes.places
        parcels = [records.parcel(message) for message in sorted(sent, key=lambda message: places[message.metadata.dst_node_id])]
        self._watch.asked(parcels)
        return parcels

    def _replies(self, messages: list[Message], ends: float) -> list[Message]:
        """The replies that came in time."""
        replies = []
        for message in messages:
            reply = self._work(message) if time.monotonic() < ends else None
            if reply is not None and time.monotonic() < ends:
                replies.append(reply)
            else:
                self._watch.late(message)
        return replies

    def _later(self, message: Message) -> Future[Message]:
        """One client's reply, when it is its turn."""
        return self._lane.submit(self._apart, lambda: self._work(message))

    def _apart(self, work: Callable[[], T]) -> T:
        with self._chance.of_clients():
            return work()

    def _work(self, message: Message) -> Message:
        """One client's reply, with records that nobody else has, or Flower's error.

        Raises:
            RunFailed: the run was stopped.
        """
        if self._closed.is_set():
            raise RunFailed("the run was stopped")
        done = attempted(lambda: self._nodes.work(message))
        self._watch.answered(message, done)
        if isinstance(done, Exception):
            done = Message(Error(RAISED, f"{type(done).__name__}: {done}"), reply_to=message)
        elif time.time() > message.metadata.created_at + message.metadata.ttl:
            self._watch.late(message)
            done = Message(Error(UNAVAILABLE, "the message's time to live was over"), reply_to=message)
        return records.parcel(done, f"r{message.metadata.message_id}")


def _in(thread: str) -> bool:
    """Whether the current thread is one of those that go by this name."""
    return threading.current_thread().name.startswith(thread)
