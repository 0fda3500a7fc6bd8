"""The half of Flower's Fleet API that a ``flower-supernode`` needs, from bytes to bytes: one supernode, one message at a time.

Its protocol is private to flwr and has moved between releases; what is needed of it stands here alone. A message travels as a
tree of objects named by their SHA-256; the supernode fetches those of ours and sends those of its reply.
Source: flwr 1.28 to 1.41, ``flwr.proto.fleet_pb2`` and ``flwr.supercore.inflatable``.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2, transport_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError

from fedscale.errors import AccessDenied, ProtocolError, Unreachable
from fedscale.flower import touches
from fedscale.flower.directory import Scalar
from fedscale.flower.fab import Parcel

LOOK_SECONDS = 0.5
MOST_BYTES = 1 << 31
NEVER = float("-inf")
# Requests that name their sender by its key; all others by the number that it was given.
BY_KEY = ("RegisterNode", "ActivateNode")


@dataclass(frozen=True)
class Errand:
    """What messages are about.

    Args:
        run: the number of the run, under which the supernode keeps the state of its ClientApp.
        parcel: the app that it runs.
        config: settings that win over the app's own run config.
    """

    run: int
    parcel: Parcel
    config: Mapping[str, Scalar]


@dataclass
class Exchange:
    """A message as it is sent to one supernode, and what has come back of its reply."""

    message: Message
    run: int
    envelope: Any
    tree: Any
    objects: dict[str, bytes]
    pulled: bool = False
    root: str = ""
    missing: set[str] = field(default_factory=set)
    received: dict[str, bytes] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the whole reply is here."""
        return bool(self.root) and not self.missing


class Fleet:
    """One supernode, as far as it is known."""

    def __init__(self) -> None:
        self._errand: Errand | None = None
        self._key, self._node = b"", 0
        self._open: Exchange | None = None
        self._moved = threading.Condition()
        self._seen = NEVER

    def answer(self, call: str, body: bytes, key: bytes) -> bytes:
        """What to say to a call.

        Args:
            call: the method's name.
            body: the request, in protobuf.
            key: the public key with which the caller has signed.

        Raises:
            ProtocolError: there is no such call, or it cannot be read.
            AccessDenied: the caller is not the supernode that is connected.
        """
        if call not in CALLS:
            raise ProtocolError(f"there is no call '{call}'")
        kind, name = CALLS[call]
        try:
            request = kind.FromString(body)
        except DecodeError as error:
            raise ProtocolError(f"a request '{call}' is malformed", why=type(error).__name__) from None
        with self._moved:
            self._admit(call, request, key)
            self._seen = time.monotonic()
            reply: bytes = getattr(self, name)(request).SerializeToString()
            self._moved.notify_all()
        return reply

    def _admit(self, call: str, request: Any, key: bytes) -> None:
        """Let in who has signed with the key of the supernode; without one that is connected, a new one may come."""
        if call in BY_KEY:
            if request.public_key != key or (self._key not in (b"", key) and self._present):
                raise AccessDenied("another supernode is connected here, or the key is not the one that has signed")
            return
        number = request.node.node_id if "node" in request.DESCRIPTOR.fields_by_name else request.node_id
        if number != _number(key) or (key != self._key and self._present):
            raise AccessDenied("this is not the supernode that is connected here")
        if key != self._key:
            # It was welcomed by the gateway of an earlier run and does not say again who it is.
            self._welcome(key)

    @property
    def _present(self) -> bool:
        """Whether the supernode has been heard of lately."""
        return time.monotonic() < self._seen + 90.0

    def ask(self, message: Message, errand: Errand, seconds: float) -> Message:
        """Have the supernode answer a message.

        Raises:
            Unreachable: it has not within so many seconds.
        """
        ends = time.monotonic() + seconds
        with self._moved:
            while not self._node:
                self._wait(ends, "no supernode has connected")
            self._errand, self._open = errand, _prepared(message, errand.run, self._node)
            try:
                # Not the same exchange all the time: a supernode that starts again gets the message anew.
                while not self._open.done:
                    self._wait(ends, "the supernode has not answered")
                exchange = self._open
            finally:
                self._open = None
        reply = inflate_object_from_contents(exchange.root, exchange.received)
        if not isinstance(reply, Message):
            raise ProtocolError(f"the supernode answered with {type(reply).__name__}")
        return reply

    def _wait(self, ends: float, what: str) -> None:
        if time.monotonic() > ends:
            raise Unreachable(what, hint="start it: flower-supernode --insecure --superlink ADDRESS")
        self._moved.wait(LOOK_SECONDS)

    # ------------------------------------------------------------------------------------------------------------ calls

    def register(self, request: Any) -> Any:
        """A supernode is new."""
        self._welcome(request.public_key)
        return fleet_pb2.RegisterNodeFleetResponse(node_id=self._node)

    def activate(self, request: Any) -> Any:
        """It is there."""
        self._welcome(request.public_key)
        return fleet_pb2.ActivateNodeResponse(node_id=self._node)

    def _welcome(self, key: bytes) -> None:
        """Let a supernode be the one that is connected; a message without an answer is for it, under its number."""
        self._key, self._node = key, _number(key)
        waiting = self._open
        if waiting is None or waiting.done:
            return
        if waiting.envelope.metadata.dst_node_id == self._node:
            waiting.pulled = False
        else:
            self._open = _prepared(waiting.message, waiting.run, self._node)

    def leave(self, _: Any) -> Any:
        """It goes; its message waits for the next."""
        self._seen = NEVER
        return fleet_pb2.DeactivateNodeResponse()

    def unregister(self, _: Any) -> Any:
        """It does not come back under this number."""
        self._seen, self._key, self._node = NEVER, b"", 0
        return fleet_pb2.UnregisterNodeFleetResponse()

    def heartbeat(self, _: Any) -> Any:
        """It lives."""
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def pull(self, _: Any) -> Any:
        """What it is asked, once."""
        waiting = self._open
        if waiting is None or waiting.pulled:
            return fleet_pb2.PullMessagesResponse()
        waiting.pulled = True
        return fleet_pb2.PullMessagesResponse(messages_list=[waiting.envelope], message_object_trees=[waiting.tree])

    def fetch(self, request: Any) -> Any:
        """A part of it."""
        content = self._open.objects.get(request.object_id) if self._open is not None else None
        return message_pb2.PullObjectResponse(object_found=content is not None, object_available=content is not None, object_content=content or b"")

    def confirm(self, _: Any) -> Any:
        """It has all parts."""
        return message_pb2.ConfirmMessageReceivedResponse()

    def facts(self, _: Any) -> Any:
        """The run."""
        errand = self._sent
        run = run_pb2.Run(run_id=errand.run, fab_id=errand.parcel.id, fab_version=errand.parcel.version, fab_hash=errand.parcel.digest)
        for name, value in errand.config.items():
            run.override_config[name].CopyFrom(_scalar(value))
        if "series_id" in run.DESCRIPTOR.fields_by_name:
            run.series_id = errand.run
        return run_pb2.GetRunResponse(run=run)

    def bundle(self, request: Any) -> Any:
        """The app."""
        parcel = self._sent.parcel
        if request.hash_str != parcel.digest:
            raise ProtocolError("the supernode asks for another app")
        return fab_pb2.GetFabResponse(fab=fab_pb2.Fab(hash_str=parcel.digest, content=parcel.content))

    @property
    def _sent(self) -> Errand:
        if self._errand is None:
            raise ProtocolError("the supernode asks for a run before it has got a message")
        return self._errand

    def push(self, request: Any) -> Any:
        """The reply is about to come, in parts; one to an older message is taken and forgotten."""
        waiting = self._open
        reply, tree = request.messages_list[0], request.message_object_trees[0]
        names = set(_names(tree))
        if waiting is not None and reply.metadata.reply_to_message_id == waiting.envelope.metadata.message_id:
            waiting.root, waiting.missing = tree.object_id, names - set(waiting.received)
        return fleet_pb2.PushMessagesResponse(results={reply.metadata.message_id: 0}, objects_to_push=sorted(names), session_id="fedscale")

    def store(self, request: Any) -> Any:
        """A part of the reply; what is not of its name is not kept."""
        waiting, content = self._open, request.object_content
        wanted = waiting is not None and request.object_id in waiting.missing and hashlib.sha256(content).hexdigest() == request.object_id
        if waiting is not None and wanted:
            if sum(map(len, waiting.received.values())) + len(content) > MOST_BYTES:
                raise ProtocolError("a reply is too large")
            waiting.received[request.object_id] = content
            waiting.missing.discard(request.object_id)
        return message_pb2.PushObjectResponse(stored=True)


def _number(key: bytes) -> int:
    """The number of the supernode with a key, the same in every run."""
    return int.from_bytes(hashlib.sha256(key).digest()[:7]) + 2


def _prepared(message: Message, run: int, node: int) -> Exchange:
    """A message as the objects that it is sent in."""
    message.metadata.__dict__["_dst_node_id"] = node
    touches.stamp(message, "", run)
    with no_object_id_recompute():
        touches.stamp(message, message.object_id, run)
        objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        envelope = message_to_proto(message)
        # Empty but there: what a message holds comes object by object.
        envelope.content.Clear()
        envelope.content.SetInParent()
        return Exchange(message, run, envelope, get_object_tree(message), objects)


def _names(tree: Any) -> Iterator[str]:
    """All objects of a tree."""
    yield tree.object_id
    for child in tree.children:
        yield from _names(child)


def _scalar(value: Scalar) -> Any:
    """A setting as Flower sends it."""
    kinds = {bool: "bool", int: "sint64", float: "double", str: "string"}
    made = transport_pb2.Scalar()
    setattr(made, kinds[type(value)], value)
    return made


CALLS: Mapping[str, tuple[Any, str]] = {
    "RegisterNode": (fleet_pb2.RegisterNodeFleetRequest, "register"),
    "ActivateNode": (fleet_pb2.ActivateNodeRequest, "activate"),
    "DeactivateNode": (fleet_pb2.DeactivateNodeRequest, "leave"),
    "UnregisterNode": (fleet_pb2.UnregisterNodeFleetRequest, "unregister"),
    "SendNodeHeartbeat": (heartbeat_pb2.SendNodeHeartbeatRequest, "heartbeat"),
    "PullMessages": (fleet_pb2.PullMessagesRequest, "pull"),
    "PushMessages": (fleet_pb2.PushMessagesRequest, "push"),
    "GetRun": (run_pb2.GetRunRequest, "facts"),
    "GetFab": (fab_pb2.GetFabRequest, "bundle"),
    "PushObject": (message_pb2.PushObjectRequest, "store"),
    "PullObject": (message_pb2.PullObjectRequest, "fetch"),
    "ConfirmMessageReceived": (message_pb2.ConfirmMessageReceivedRequest, "confirm"),
}
