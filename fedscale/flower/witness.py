"""What Flower's own loops come to: the results that ``Strategy.start`` and the legacy server return to an app, seen from outside.

An app may do with them what it likes, usually print them; here they become the metrics and the model that a run leaves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.server import History, Server
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp.strategy import Result, Strategy

from fedscale.causes import attempted
from fedscale.flower import quick
from fedscale.vector import Arrays

# Metrics by phase, round and name.
Metrics: TypeAlias = dict[tuple[str, int], dict[str, float]]

# Of https://github.com/safetensors/safetensors, those that numpy has.
STORED = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "complex64"}
SERVER, MODEL = "server_", "parameters"  # flwr.server.workflow.constant.MAIN_PARAMS_RECORD


@dataclass
class Outcome:
    """What a ServerApp's strategy came to.

    Args:
        metrics: by ``(phase, round)``: those that the strategy made of the clients', and under ``server_`` those of its own evaluation.
        arrays: the model; empty where there is none.
    """

    metrics: Metrics = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)

    def note(self, phase: str, number: int, values: Mapping[str, Any], prefix: str = "") -> None:
        """Keep what is a single number, of Python's or of numpy's."""
        numbers = {f"{prefix}{name}": float(value) for name, value in values.items() if isinstance(value, Real)}
        self.metrics.setdefault((phase, number), {}).update(numbers)

    def of_strategy(self, result: Any) -> None:
        """Take a ``Result`` of Flower's."""
        for phase, prefix, rounds in (
            ("train", "", result.train_metrics_clientapp),
            ("evaluate", "", result.evaluate_metrics_clientapp),
            ("evaluate", SERVER, result.evaluate_metrics_serverapp),
        ):
            for number, values in rounds.items():
                self.note(phase, number, values, prefix)
        self.of_model(result.arrays or ArrayRecord())

    def of_server(self, server: Any, history: History) -> None:
        """Take what a legacy server holds after its last round, and its ``History``."""
        self.of_history(history)
        named = enumerate(server.parameters.tensors)
        self.of_model(ArrayRecord(dict(_arrays(named, server.parameters.tensor_type))))

    def of_model(self, model: ArrayRecord) -> None:
        """Take a model, where there is one."""
        self.arrays = _held(model) or self.arrays

    def of_history(self, history: History) -> None:
        """Take a legacy ``History``."""
        for phase, prefix, losses, metrics in (
            ("train", "", [], history.metrics_distributed_fit),
            ("evaluate", "", history.losses_distributed, history.metrics_distributed),
            ("evaluate", SERVER, history.losses_centralized, history.metrics_centralized),
        ):
            for number, loss in losses:
                self.note(phase, number, {"loss": loss}, prefix)
            for name, values in metrics.items():
                for number, value in values:
                    self.note(phase, number, {name: value}, prefix)


def _held(model: ArrayRecord) -> Arrays:
    """The arrays of a model; of those that are in no format of numpy's, or of a type that no file of models has, the bytes."""
    read = {name: quick.numpy(array) if array.stype == quick.KIND else None for name, array in model.items() if array.data}
    return {
        name: np.frombuffer(model[name].data, np.uint8) if values is None or values.dtype.name not in STORED else values
        for name, values in read.items()
    }


def _arrays(named: Iterator[tuple[int, bytes]], kind: str) -> Iterator[tuple[str, Any]]:
    """Legacy parameters, which have no names, by their numbers."""
    return ((str(at), Array(dtype="", shape=(), stype=kind, data=data)) for at, data in named)


@contextmanager
def witnessed(outcome: Outcome) -> Iterator[None]:
    """See what the loops of Flower's strategies, and those that an app has put in their place, return inside the ``with`` block."""

    def of_strategy(_strategy: Any, _arguments: Any, result: Any) -> None:
        if isinstance(result, Result):
            outcome.of_strategy(result)

    def of_server(server: Any, _arguments: Any, result: Any) -> None:
        history = result[0] if isinstance(result, tuple) else result
        if isinstance(history, History):
            outcome.of_server(server, history)

    def of_workflow(_workflow: Any, arguments: Any, _result: Any) -> None:
        context = arguments[1]
        outcome.of_history(context.history)
        outcome.of_model(context.state.array_records.get(MODEL, ArrayRecord()))

    with ExitStack() as stack:
        for base, name, tell in ((Strategy, "start", of_strategy), (Server, "fit", of_server), (DefaultWorkflow, "__call__", of_workflow)):
            for kind in _kinds(base):
                if name in vars(kind):
                    stack.enter_context(_seen(kind, name, tell))
        yield


def _kinds(base: type) -> set[type]:
    """A class and all that inherit from it."""
    return {base}.union(*map(_kinds, base.__subclasses__()))


def _seen(kind: type, name: str, tell: Callable[[Any, Any, Any], None]) -> Any:
    """A method of a class with its arguments and results told to somebody."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def told(self: Any, *arguments: Any, **named: Any) -> Any:
        result = method(self, *arguments, **named)
        # An app may keep and return what it likes; what nobody can read here must not end it.
        attempted(lambda: tell(self, arguments, result))
        return result

    return mock.patch.object(kind, name, told)
