"""Bundles to a coordinator, models from it: raw frames over the connection of a ``Control``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fedscale.errors import BundleError, ProtocolError
from fedscale.proto.v1 import bulk_pb2 as pb
from fedscale.wire.codec import DIGEST_KEY, FETCH, PUT, RUN_KEY, SIZE_KEY, digest_of, frames, intact, sealed, unsealed
from fedscale_server.control import Control

BASE_SECONDS, SLOWEST = 30.0, 64 << 10


def put(control: Control, bundle: bytes, progress: Callable[[float], None] = lambda _: None, *, run: str = "") -> str:
    """Store a bundle at the coordinator, once for each content; returns its digest.

    Args:
        control: the connection.
        bundle: what ``fedscale.bundle.pack`` gave.
        progress: called with the fraction that was sent.
        run: the led run whose letter this is the content of; empty for a bundle.

    Raises:
        BundleError: the coordinator does not accept it.
    """
    digest = digest_of(bundle)
    metadata = ((DIGEST_KEY, digest), (SIZE_KEY, str(len(bundle))), *(((RUN_KEY, run),) if run else ()))

    def send() -> Any:
        call: Any = control.channel.stream_unary(PUT, request_serializer=sealed, response_deserializer=pb.Receipt.FromString)
        return call(_told(frames(bundle), len(bundle), progress), timeout=_limit(len(bundle)), metadata=metadata)

    receipt = control.ask(send)
    if receipt.verdict not in (pb.Receipt.ACCEPTED, pb.Receipt.DUPLICATE):
        raise BundleError("the coordinator does not accept the bundle", why=receipt.reason)
    return digest


def fetch(control: Control, digest: str, size: int) -> bytes:
    """A blob of the coordinator, checked against its name.

    Args:
        control: the connection.
        digest: its SHA-256, in hex.
        size: how many bytes it has.

    Raises:
        ProtocolError: another size or content.
    """

    def receive() -> bytearray:
        call: Any = control.channel.unary_stream(FETCH, request_serializer=pb.FetchRequest.SerializeToString, response_deserializer=unsealed)
        received = bytearray()
        for frame in call(pb.FetchRequest(digest=digest), timeout=_limit(size)):
            received += intact(frame)
            if len(received) > size:
                break
        return received

    received = control.ask(receive)
    if len(received) != size or digest_of(received) != digest:
        raise ProtocolError("the coordinator sent another content than asked for", where=f"blob {digest[:12]}")
    return bytes(received)


def _told(parts: Iterable[bytes], size: int, progress: Callable[[float], None]) -> Iterator[bytes]:
    """The parts, telling how far they are."""
    sent = 0
    for part in parts:
        yield part
        sent += len(part)
        progress(sent / size)


def _limit(size: int) -> float:
    """Seconds within which so many bytes must have passed, on the slowest line that still makes sense."""
    return BASE_SECONDS + size / SLOWEST
