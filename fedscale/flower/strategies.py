"""Flower's strategies in a native plan: they combine the answers of a round, our rounds do all the rest.

A strategy sees each answer by itself, as replies from nodes without names, and the model as one array. It is made anew, or
set back, for every round from what the round before left in its slot, so that a checkpoint holds all of its state and a
round that is taken again comes to the same model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import flwr.server.strategy as legacy_kinds
import flwr.serverapp.strategy as message_kinds
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.serverapp import Grid

from fedscale.aggregate import Each
from fedscale.causes import attempted
from fedscale.errors import PlanError, RunFailed
from fedscale.flower import touches
from fedscale.flower.keeping import foreign_of, held, kept
from fedscale.optimizers import Optimizer, Slots, Step
from fedscale.strategy import STRATEGIES, Strategy, Weighting
from fedscale.tables import suggest
from fedscale.vector import Vector

Kind: TypeAlias = message_kinds.Strategy | legacy_kinds.Strategy
Make: TypeAlias = Callable[[Vector], Kind]

RUN, FIRST_NODE, MOST_NODES = 1, 2, 1 << 16
MODEL, SLOT = "model", "flower"
AWAITED = ("min_available_nodes", "min_train_nodes", "min_available_clients", "min_fit_clients")
KINDS: Mapping[str, tuple[Any, type]] = {
    "messages": (message_kinds, message_kinds.Strategy),
    "legacy": (legacy_kinds, legacy_kinds.Strategy),
}


def strategy(of: str | Kind, *, api: str = "messages", weighting: Weighting = "examples", **arguments: Any) -> Strategy:
    """A strategy of Flower's for a native plan.

    Args:
        of: its name, with its ``arguments``: such a one can be submitted as well; or one that was made in Python, for simulations.
        api: by name, ``messages`` for those of ``flwr.serverapp.strategy``, ``legacy`` for ``flwr.server.strategy``.
        weighting: whether a node counts by its examples or all count the same.
        arguments: of a strategy that is given by its name.

    Raises:
        PlanError: there is none of that name, or it does not take these arguments.
    """
    if isinstance(of, str):
        named(of, api, arguments)
        return STRATEGIES["flower"](of=of, api=api, arguments=arguments, weighting=weighting)
    if arguments or not isinstance(of, message_kinds.Strategy | legacy_kinds.Strategy):
        raise PlanError(f"of type {type(of).__name__} is no strategy of Flower's", hint='strategy(FedMedian()), or strategy("FedAdam", eta=0.1)')
    proximal = float(getattr(of, "proximal_mu", 0.0))
    # What it was when it was given is where each run begins.
    begins = kept(of)
    return Strategy(Optimizer((), _step(lambda _: of, begins)), Each(), weighting=weighting, proximal=proximal)


def named(of: str, api: str, arguments: Mapping[str, Any]) -> Step:
    """The server's step of a strategy by its name.

    Raises:
        PlanError: as ``strategy``.
    """
    _made(of, api, arguments, np.zeros(1, np.float32))
    return _step(lambda model: _made(of, api, arguments, model))


def _made(of: str, api: str, arguments: Mapping[str, Any], model: Vector) -> Kind:
    """A new strategy; the legacy ones that begin with a model get ours."""
    if api not in KINDS:
        raise PlanError(f"Flower has no '{api}' strategies", where="strategy.api", hint="use messages or legacy")
    module, base = KINDS[api]
    known = {name: kind for name in module.__all__ if inspect.isclass(kind := getattr(module, name)) and issubclass(kind, base) and kind is not base}
    if of not in known:
        raise PlanError(f"Flower has no strategy '{of}'", where="strategy.of", hint=suggest(of, known))
    first = {"initial_parameters": ndarrays_to_parameters([model])} if api == "legacy" else {}
    with touches.muted(logging.ERROR):
        made = attempted(lambda: known[of](**first, **arguments))
    if isinstance(made, Exception):
        raise PlanError(f"'{of}' cannot be made", where="strategy.arguments", why=f"{type(made).__name__}: {made}")
    return made


def _step(make: Make, begins: Vector | None = None) -> Step:
    """The server's step: all answers and the model in, the new model and the strategy's state out."""

    def update(rows: Vector, model: Vector, slots: Slots, number: int) -> tuple[Vector, Slots]:
        made = make(model)
        before = slots.get(SLOT, begins)
        if before is not None:
            held(made, before)
        foreign = foreign_of(made)
        with touches.muted(logging.ERROR):
            combined = attempted(lambda: _combined(made, rows, model, number))
        if isinstance(combined, Exception):
            raise RunFailed(f"Flower's {type(made).__name__} failed", where=f"round {number}", why=f"{type(combined).__name__}: {combined}")
        return (model if combined is None else combined), {SLOT: kept(made, foreign)}

    return update


def _combined(made: Kind, rows: Vector, model: Vector, number: int) -> Vector | None:
    """The new model, ``None`` where the strategy makes none of these answers."""
    models, facts = rows[:, : model.size] + model, rows[:, model.size :].astype(np.float64)
    if isinstance(made, message_kinds.Strategy):
        arrays = _by_messages(made, models, facts, model, number)
    else:
        arrays = _by_results(made, models, facts, model, number)
    if arrays is None:
        return None
    (combined,) = arrays
    return np.asarray(combined, np.float32).reshape(model.shape)


def _by_messages(made: message_kinds.Strategy, models: Vector, facts: Any, model: Vector, number: int) -> list[Any] | None:
    """As Flower's own loop does: what was asked first, for there some look at the model, and then the replies."""
    touches.identify(RUN)
    made.configure_train(number, _record(model), ConfigRecord(), _Stage(max(len(models), _awaited(made))))
    replies = []
    for place, (array, row) in enumerate(zip(models, facts, strict=True)):
        asked = Message(RecordDict(), FIRST_NODE + place, "train")
        touches.stamp(asked, f"m{place}", RUN)
        content = RecordDict({"arrays": _record(array), "metrics": MetricRecord({"num-examples": float(row[0]), **_loss(row)})})
        replies.append(Message(content, reply_to=asked))
    record, _ = made.aggregate_train(number, replies)
    return None if record is None else record.to_numpy_ndarrays()


def _by_results(made: legacy_kinds.Strategy, models: Vector, facts: Any, model: Vector, number: int) -> list[Any] | None:
    """The same for a legacy strategy."""
    manager = SimpleClientManager()
    proxies = [_Proxy(str(place)) for place in range(max(len(models), _awaited(made)))]
    for proxy in proxies:
        manager.register(proxy)
    # Those that step from the model as they know it must know it as it is.
    for name, value in (("current_weights", [model]), ("initial_parameters", ndarrays_to_parameters([model]))):
        if hasattr(made, name):
            setattr(made, name, value)
    made.configure_fit(number, ndarrays_to_parameters([model]), manager)
    results = [
        (proxy, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([array]), max(1, round(row[0])), _loss(row)))
        for proxy, array, row in zip(proxies, models, facts, strict=False)
    ]
    parameters, _ = made.aggregate_fit(number, results, [])
    return None if parameters is None else parameters_to_ndarrays(parameters)


def _record(array: Vector) -> ArrayRecord:
    return ArrayRecord({MODEL: Array(np.array(array, np.float32, order="C"))})


def _loss(row: Any) -> dict[str, Any]:
    """The mean training loss, by the names under which strategies look for it; nothing where it stays at the sites."""
    return dict.fromkeys(("loss", "train_loss"), float(row[1] / row[0])) if len(row) > 1 else {}


def _awaited(made: Any) -> int:
    """How many nodes a strategy, or one that it wraps, waits for."""
    inner = getattr(made, "strategy", None)
    return max(_awaited(inner) if inner is not None else 0, *(int(getattr(made, name, 0)) for name in AWAITED))


class _Proxy(ClientProxy):
    """A node that has answered already."""

    def _answered(self, *_: Any, **__: Any) -> Any:
        raise RunFailed("a strategy asks a node by itself")

    get_properties = get_parameters = fit = evaluate = reconnect = _answered


class _Stage(Grid):
    """A grid that sends nothing; it has as many nodes as anybody waits for."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        return touches.run_facts(RUN)

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All of them, and twice as many when somebody asks again."""
        there, self._nodes = self._nodes, min(2 * self._nodes, MOST_NODES)
        return range(FIRST_NODE, FIRST_NODE + there)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Nobody is asked."""
        return [_unsent(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nobody answers."""
        return [_unsent(name) for name in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002 - Flower's shape
        """Nobody is asked, and nobody answers."""
        return [_unsent(message) for message in messages]


def _unsent(_: object) -> Any:
    raise RunFailed("a strategy sends messages of its own")
