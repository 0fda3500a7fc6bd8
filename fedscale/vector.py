"""A model as one flat float32 array and the layout that names its parts.

Inside the core nothing knows layers: clipping is one norm, aggregation one addition, transfer one buffer. Names and
shapes matter only at the learner and in checkpoints, through ``Schema.pack`` and ``Schema.unpack``.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.errors import ProtocolError, UpdateRejected

Vector: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

FLOAT32 = np.dtype(np.float32)
FLOATS = ("float16", "float32", "float64", "bfloat16")
MAX_TENSORS = 65_536
MAX_COORDINATES = 1 << 40
PIECE = 1 << 18
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named part of a model: its name, shape and the dtype the learner holds it in."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Schema:
    """The ordered parts of a model and where each lies in the flat vector."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> Schema:
        """The layout of named arrays, in their order; each must be of a floating-point dtype."""
        for name, array in arrays.items():
            if str(array.dtype) not in FLOATS:
                raise UpdateRejected(
                    f"tensor '{name}' is of dtype {array.dtype}",
                    why="only floating-point tensors can be averaged",
                    hint="leave integer buffers out of the answer",
                )
        return cls(tuple(Tensor(name, tuple(a.shape), str(a.dtype)) for name, a in arrays.items()))

    @cached_property
    def size(self) -> int:
        """Number of coordinates of the flat vector."""
        return sum(t.size for t in self.tensors)

    @cached_property
    def places(self) -> dict[str, tuple[Tensor, int]]:
        """Each part by name and where it begins."""
        starts = itertools.accumulate((t.size for t in self.tensors), initial=0)
        return {t.name: (t, at) for t, at in zip(self.tensors, starts, strict=False)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON form, in hex: two models fit together when their digests are equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def zeros(self) -> Vector:
        """A vector of zeros, shape ``(size,)``."""
        return np.zeros(self.size, np.float32)

    def read(self, data: bytes | memoryview) -> Vector:
        """A model from its bytes, read-only, without a copy.

        Raises:
            ProtocolError: not four bytes a coordinate.
        """
        if len(data) != 4 * self.size:
            raise ProtocolError(f"a model of {len(data)} bytes", why=f"the schema has {self.size} coordinates of 4 bytes")
        return np.frombuffer(data, "<f4")

    def pack(self, arrays: Arrays) -> Vector:
        """Copy named arrays into one flat vector.

        Raises:
            UpdateRejected: a tensor is missing, unknown or of another shape; nothing is ever broadcast.
        """
        if missing := [name for name in self.places if name not in arrays]:
            raise UpdateRejected(f"tensor '{missing[0]}' is missing from the answer", hint="return every tensor of the model")
        if unknown := [name for name in arrays if name not in self.places]:
            raise UpdateRejected(f"tensor '{unknown[0]}' is not part of the model", hint="return only the model's tensors")
        flat = np.empty(self.size, np.float32)
        for tensor, at in self.places.values():
            array = arrays[tensor.name]
            if tuple(array.shape) != tensor.shape:
                raise UpdateRejected(f"tensor '{tensor.name}' has shape {tuple(array.shape)}, the model has {tensor.shape}")
            here = flat[at : at + tensor.size]
            if array.dtype == FLOAT32:
                here[:] = array.reshape(-1)
                continue
            if str(array.dtype) not in FLOATS:
                raise UpdateRejected(f"tensor '{tensor.name}' is of dtype {array.dtype}, the model has {tensor.dtype}")
            # What is too large for float32 becomes infinite, which the ring refuses by name and place.
            with np.errstate(over="ignore"):
                here[:] = np.ravel(array)
        return flat

    def flat(self, arrays: Arrays) -> Vector:
        """One flat vector of named arrays, not to be changed: without a copy where they already lie in one.

        Raises:
            UpdateRejected: as ``pack``.
        """
        return arrays.vector if isinstance(arrays, Packed) and arrays.schema == self else self.pack(arrays)

    def unpack(self, vector: Vector) -> Packed:
        """Named views into ``vector``, each of its tensor's shape; no copy.

        Raises:
            UpdateRejected: the vector has another length than the schema.
        """
        if vector.shape != (self.size,):
            raise UpdateRejected(f"vector of shape {vector.shape} does not fit a model of {self.size} coordinates")
        return Packed(self, vector)

    def locate(self, coordinate: int) -> str:
        """The name of the tensor that holds a flat coordinate, for messages people read."""
        for tensor in self.tensors:
            if coordinate < tensor.size:
                return tensor.name
            coordinate -= tensor.size
        return "?"

    def to_json(self) -> str:
        """Canonical JSON: ``[[name, [shape], dtype], ...]`` without spaces."""
        return json.dumps([[t.name, list(t.shape), t.dtype] for t in self.tensors], separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read the canonical form back, trusting nothing.

        Raises:
            ProtocolError: not the canonical form, or beyond the limits.
        """
        try:
            rows = json.loads(text)
            tensors = tuple(Tensor(str(name), tuple(int(n) for n in shape), str(dtype)) for name, shape, dtype in rows)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ProtocolError("a model schema is malformed", why=type(error).__name__) from None
        names = {t.name for t in tensors}
        sound = all(n >= 0 for t in tensors for n in t.shape) and all(t.dtype in FLOATS for t in tensors)
        if len(tensors) > MAX_TENSORS or len(names) != len(tensors) or not sound:
            raise ProtocolError(
                "a model schema is malformed", why="too many or repeated names, a negative size or a dtype that is not floating point"
            )
        schema = cls(tensors)
        if schema.to_json() != text:
            raise ProtocolError("a model schema is malformed", why="not in canonical form")
        if schema.size > MAX_COORDINATES:
            raise ProtocolError(f"a model schema asks for {schema.size} coordinates", why=f"the limit is {MAX_COORDINATES}")
        return schema


def finite(vector: Vector) -> bool:
    """Whether every coordinate is a number; looked at in pieces."""
    return all(np.isfinite(vector[part]).all() for part in pieces(vector))


def pieces(*vectors: Vector) -> Iterator[slice]:
    """The parts by which long vectors of one length are read.

    Of those that are files, mapped, a part is in memory while it is its turn: only then, for a model need not be there whole, and all of
    it, for touching a page that the disk refuses, or that was cut off, would end the process.

    Raises:
        OSError: a file cannot be read.
    """
    mappings = [mapping for vector in vectors if (mapping := _mapping(vector)) is not None]
    size, width = len(vectors[0]), vectors[0].itemsize
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        for mapping in mappings:
            _read_in(mapping, width * start, width * (stop - start))
        yield slice(start, stop)
        for mapping in mappings:
            mapping.madvise(mmap.MADV_DONTNEED, width * start, width * (stop - start))


def _mapping(vector: Vector) -> mmap.mmap | None:
    """The file that a vector is; ``None`` for one that lies in memory."""
    base: object = vector.base
    mapping = base.obj if isinstance(base, memoryview) else None
    return mapping if isinstance(mapping, mmap.mmap) else None


def _read_in(mapping: mmap.mmap, start: int, length: int) -> None:
    """Have part of a file in memory, so that nothing can go wrong when it is touched."""
    try:
        mapping.madvise(POPULATE_READ, start, length)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that cannot: there the first touch reads
            raise OSError(errno.EIO, "a file that is mapped cannot be read") from error


@dataclass(frozen=True, slots=True, eq=False)
class Packed(Mapping[str, Vector]):
    """Named arrays that lie one after the other in one vector; whoever knows that can take them all in one go.

    Args:
        schema: names and shapes.
        vector: all coordinates, shape ``(schema.size,)``.
    """

    schema: Schema
    vector: Vector

    def __getitem__(self, name: str) -> Vector:
        """A view of one array, in its shape; KeyError when there is none, as mappings have it."""
        tensor, at = self.schema.places[name]
        return self.vector[at : at + tensor.size].reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        """Names in order."""
        return iter(self.schema.places)

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self.schema.places)
