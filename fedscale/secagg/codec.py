"""Bytes of messages: one canonical form for each value, every length checked before it is believed.

A codec writes a value and reads it back; what it reads, it would write in exactly the same bytes. Nothing is ever
executed, and nothing is allocated for a length that the message does not hold.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Protocol

from fedscale.errors import ProtocolError

LENGTH = struct.Struct(">I")
MOST_SEATS = 1 << 20


class Reader:
    """A message being read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            ProtocolError: the message is shorter.
        """
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise ProtocolError("a message is cut short")
        self._at += size
        return piece

    def length(self, most: int) -> int:
        """A length of four bytes.

        Raises:
            ProtocolError: more than ``most``.
        """
        value = int(LENGTH.unpack(self.take(LENGTH.size))[0])
        if value > most:
            raise ProtocolError("a part of a message is too long", why=f"{value} is above {most}")
        return value

    def end(self) -> None:
        """Nothing may be left.

        Raises:
            ProtocolError: something is.
        """
        if self._at != len(self._data):
            raise ProtocolError("a message is longer than its content")


class Codec(Protocol):
    """Writes and reads values of one kind."""

    def write(self, value: Any) -> bytes:
        """The canonical bytes."""

    def read(self, reader: Reader) -> Any:
        """The value, or a ``ProtocolError``."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Exactly ``size`` bytes."""

    size: int

    def write(self, value: bytes) -> bytes:
        """The bytes themselves."""
        if len(value) != self.size:
            raise ProtocolError(f"a part of {len(value)} bytes", why=f"it must have {self.size}")
        return value

    def read(self, reader: Reader) -> bytes:
        """The bytes themselves."""
        return reader.take(self.size)


@dataclass(frozen=True, slots=True)
class Blob:
    """Up to ``most`` bytes behind their length."""

    most: int

    def write(self, value: bytes) -> bytes:
        """Length and bytes."""
        if len(value) > self.most:
            raise ProtocolError("a part of a message is too long", why=f"{len(value)} is above {self.most}")
        return LENGTH.pack(len(value)) + value

    def read(self, reader: Reader) -> bytes:
        """The bytes."""
        return reader.take(reader.length(self.most))


@dataclass(frozen=True, slots=True)
class Text:
    """Up to ``most`` bytes of UTF-8."""

    most: int

    def write(self, value: str) -> bytes:
        """Length and bytes."""
        return Blob(self.most).write(value.encode())

    def read(self, reader: Reader) -> str:
        """The text."""
        try:
            return Blob(self.most).read(reader).decode()
        except UnicodeDecodeError:
            raise ProtocolError("a name in a message is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number of eight bytes."""

    def write(self, value: int) -> bytes:
        """Eight bytes, big-endian."""
        return value.to_bytes(8, "big")

    def read(self, reader: Reader) -> int:
        """The number."""
        return int.from_bytes(reader.take(8), "big")


@dataclass(frozen=True, slots=True)
class Rate:
    """A float of eight bytes; -0.0, infinities and NaN are refused, so that equal values have equal bytes."""

    def write(self, value: float) -> bytes:
        """IEEE 754, big-endian."""
        return struct.pack(">d", value)

    def read(self, reader: Reader) -> float:
        """The number."""
        data = reader.take(8)
        value = float(struct.unpack(">d", data)[0])
        if not 0 <= value <= 1 or self.write(value + 0.0) != data:
            raise ProtocolError("a rate in a message does not lie in [0, 1]")
        return value


@dataclass(frozen=True, slots=True)
class Seats:
    """A set of small numbers as a bit map."""

    def write(self, value: frozenset[int]) -> bytes:
        """Length and bits; the last byte is never zero."""
        bits = bytearray(max(value, default=-8) // 8 + 1)
        for seat in value:
            bits[seat >> 3] |= 1 << (seat & 7)
        return Blob(MOST_SEATS // 8).write(bytes(bits))

    def read(self, reader: Reader) -> frozenset[int]:
        """The set."""
        data = Blob(MOST_SEATS // 8).read(reader)
        if data and not data[-1]:
            raise ProtocolError("a set of nodes is not in its shortest form")
        return frozenset(8 * at + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1)


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few texts, given back as what ``kind`` makes of it."""

    kind: Callable[[str], Any]

    def write(self, value: str) -> bytes:
        """Length and bytes."""
        return Text(32).write(value)

    def read(self, reader: Reader) -> Any:
        """The member."""
        text = Text(32).read(reader)
        try:
            return self.kind(text)
        except ValueError:
            raise ProtocolError(f"a message speaks of an unknown {self.kind.__name__.lower()}") from None


@dataclass(frozen=True, slots=True)
class Many:
    """Any number of values of one kind, as a tuple."""

    item: Codec

    def write(self, value: Sequence[Any]) -> bytes:
        """Count and items."""
        return LENGTH.pack(len(value)) + b"".join(map(self.item.write, value))

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """The items."""
        return tuple(self.item.read(reader) for _ in range(reader.length(MOST_SEATS)))


class Rows:
    """Any number of values that are a number and some pieces of bytes of fixed sizes, as a tuple of what ``kind`` makes of them."""

    def __init__(self, kind: Callable[..., Any], **sizes: int) -> None:
        self._kind, self._sizes = kind, tuple(sizes.items())
        self._row = struct.Struct(">Q" + "".join(f"{size}s" for size in sizes.values()))

    def write(self, value: Sequence[Any]) -> bytes:
        """Count and rows."""
        rows = [(item.seat, *(getattr(item, name) for name, _ in self._sizes)) for item in value]
        # struct would cut or pad without a word.
        if any(len(piece) != size for row in rows for piece, (_, size) in zip(row[1:], self._sizes, strict=True)):
            raise ProtocolError("a part of a message has a wrong size")
        return LENGTH.pack(len(rows)) + b"".join(self._row.pack(*row) for row in rows)

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """The values."""
        data = reader.take(reader.length(MOST_SEATS) * self._row.size)
        return tuple(starmap(self._kind, self._row.iter_unpack(data)))


@dataclass(frozen=True, slots=True)
class Record:
    """A frozen dataclass, field by field."""

    kind: Callable[..., Any]
    fields: tuple[tuple[str, Codec], ...]

    def write(self, value: object) -> bytes:
        """The fields in order."""
        return b"".join(codec.write(getattr(value, name)) for name, codec in self.fields)

    def read(self, reader: Reader) -> Any:
        """The value."""
        return self.kind(**{name: codec.read(reader) for name, codec in self.fields})


def record(kind: Callable[..., Any], **fields: Codec) -> Record:
    """The codec of a dataclass, by the codecs of its fields."""
    return Record(kind, tuple(fields.items()))


def whole(codec: Codec, data: bytes) -> Any:
    """The value that ``data`` is from the first byte to the last.

    Raises:
        ProtocolError: it is not.
    """
    reader = Reader(data)
    value = codec.read(reader)
    reader.end()
    return value
