"""What a strategy remembers from round to round, as a vector for a checkpoint: its attributes as plain values and arrays.

Functions, classes and whatever else a strategy was made with stay with it; they are no state as long as they stay the same.
Source of the format: safetensors, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common import Parameters
from safetensors.numpy import load, save

from fedscale.errors import RunFailed
from fedscale.vector import Arrays, Vector

Foreign: TypeAlias = Mapping[str, int]
Plain: TypeAlias = bool | int | float | str | None

INNER = "strategy"
FACTS, LENGTH = "facts", 8
NO_PLACE = "there is no place for it in a checkpoint"


def foreign_of(made: Any) -> Foreign:
    """The attributes that cannot be written down, by path: which object each is."""
    return {path: id(value) for path, value in _attributes(made) if not _plain(value)}


def kept(made: Any, foreign: Foreign | None = None) -> Vector:
    """All that can be written down of a strategy, and of one that it wraps, as a vector of any length.

    Args:
        made: the strategy.
        foreign: what ``foreign_of`` said of it before the round.

    Raises:
        RunFailed: something else changed in the round.
    """
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for path, value in _attributes(made):
        try:
            facts[path] = _written(value, arrays)
        except TypeError:
            if foreign is not None and foreign.get(path) != id(value):
                raise RunFailed(f"Flower's {type(made).__name__} keeps a {type(value).__name__} as its '{path}'", why=NO_PLACE) from None
    content = save(arrays | {FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    head = len(content).to_bytes(LENGTH, "little")
    return np.frombuffer(head + content + bytes(-len(content) % 4), "<f4")


def held(made: Any, vector: Vector) -> None:
    """Set a strategy back to what ``kept`` saw."""
    content = np.ascontiguousarray(vector, "<f4").tobytes()
    arrays = load(content[LENGTH : LENGTH + int.from_bytes(content[:LENGTH], "little")])
    facts = json.loads(arrays.pop(FACTS).tobytes())
    for path, value in facts.items():
        *through, name = path.split(".")
        owner = made
        for each in through:
            owner = getattr(owner, each)
        setattr(owner, name, _read(value, arrays))


def _attributes(made: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a strategy has of its own, a wrapped strategy's under that one's name."""
    for name, value in vars(made).items():
        if name == INNER:
            yield from _attributes(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> bool:
    """Whether a value can be written down."""
    try:
        _written(value, {})
    except TypeError:
        return False
    return True


def _written(value: Any, arrays: dict[str, Any]) -> Any:
    """A value as JSON; its arrays go to ``arrays``, by number. TypeError for what is no state."""
    if isinstance(value, Plain):
        return value
    if isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biuf":
        name = str(len(arrays))
        arrays[name] = np.array(value, order="C")
        return {"array": name}
    if isinstance(value, ArrayRecord):
        return {"record": [[name, _written(array.numpy(), arrays)] for name, array in value.items()]}
    if isinstance(value, Parameters):
        return {"parameters": [_written(np.frombuffer(each, np.uint8), arrays) for each in value.tensors], "type": value.tensor_type}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_written(each, arrays) for each in value]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": [[name, _written(each, arrays)] for name, each in value.items()]}
    raise TypeError("no state")


def _read(value: Any, arrays: Arrays) -> Any:
    """The value that was written down."""
    if not isinstance(value, dict):
        return value
    kind, body = next(iter(value.items()))
    if kind == "array":
        return arrays[body]
    if kind == "record":
        return ArrayRecord({name: Array(np.asarray(_read(each, arrays))) for name, each in body})
    if kind == "parameters":
        return Parameters([_read(each, arrays).tobytes() for each in body], value["type"])
    if kind == "dict":
        return {name: _read(each, arrays) for name, each in body}
    return (tuple if kind == "tuple" else list)(_read(each, arrays) for each in body)
