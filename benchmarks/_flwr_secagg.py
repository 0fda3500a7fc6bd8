"""Flower's SecAgg+ driven by its own workflow and its own client mod in one process, without network: what it costs."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.task_identity import TaskIdentity

from benchmarks import Cost
from fedscale.vector import Vector

EXAMPLES, MAX_WEIGHT = 100, 1000.0
clock = time.process_time
CONFIGS = "secaggplus_configs"


def _fit_result(vector: Vector) -> RecordDict:
    parameters = ndarrays_to_parameters([vector])
    return compat.fitres_to_recorddict(FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {}), keep_input=True)


@dataclass
class Wire:
    """Hands each message to the real client mod and books the time that it takes."""

    vectors: Mapping[int, Vector]
    dropped: frozenset[int]
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    uploaded: int = 0

    def __post_init__(self) -> None:
        self.contexts = {node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in self.vectors}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002 - Flower's shape
        """What Flower's grid does."""
        return [reply for message in messages if (reply := self._deliver(message)) is not None]

    def _deliver(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        stage = str(message.content.config_records[CONFIGS]["stage"])
        late = stage in {Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK}
        if late and node in self.dropped:
            return None
        # A copy as from a wire, because the mod takes the content apart.
        content = RecordDict({name: ConfigRecord(dict(record)) for name, record in message.content.config_records.items()})
        for name, record in message.content.array_records.items():
            content.array_records[name] = record
        message.content = content
        # Training and serialising its result are no part of secure aggregation.
        trained = Message(_fit_result(self.vectors[node]), reply_to=message)
        began = clock()
        reply: Message = secaggplus_mod(message, self.contexts[node], lambda *_: trained)
        self.seconds[stage].append(clock() - began)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            masked: Any = reply.content.config_records[CONFIGS]["masked_params"]
            self.uploaded = sum(map(len, masked))
        reply.metadata._src_node_id = node  # noqa: SLF001 - the grid's part
        return reply


class _Strategy:
    """Asks all nodes and keeps what was aggregated."""

    def __init__(self, nodes: Iterable[int], parameters: Any) -> None:
        self.nodes, self.parameters, self.mean = list(nodes), parameters, np.zeros(0, np.float32)

    def configure_fit(self, *_: object, **__: object) -> list[tuple[Any, FitIns]]:
        return [(SimpleNamespace(node_id=node, cid=str(node)), FitIns(self.parameters, {})) for node in self.nodes]

    def aggregate_fit(self, _: int, results: Any, __: Any) -> tuple[None, dict[str, Any]]:
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


def measure_round(vectors: list[Vector], degree: int, threshold: int, drops: int) -> Cost:
    """One round of Flower 1.41 over these vectors, the first ``drops`` of which never arrive."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    nodes = {1000 + 7 * place: vector for place, vector in enumerate(vectors)}
    wire = Wire(nodes, frozenset(list(nodes)[:drops]))
    parameters = ndarrays_to_parameters([np.zeros(1, np.float32)])
    strategy, state = _Strategy(nodes, parameters), RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(parameters, keep_input=True)
    history = SimpleNamespace(add_metrics_distributed_fit=lambda *_, **__: None)
    manager = SimpleNamespace(num_available=lambda: len(nodes))
    context: Any = SimpleNamespace(state=state, strategy=strategy, client_manager=manager, history=history)
    work, current = SecAggPlusWorkflow(num_shares=degree + 1, reconstruction_threshold=threshold, max_weight=MAX_WEIGHT), WorkflowState()
    began, grid = clock(), wire
    stages: Any = (work.setup_stage, work.share_keys_stage, work.collect_masked_vectors_stage, work.unmask_stage)
    assert all(stage(grid, context, current) for stage in stages), "Flower's round failed"
    elapsed = clock() - began
    client = sum(min(times) for times in wire.seconds.values())
    server = elapsed - sum(map(sum, wire.seconds.values()))
    return Cost(client, server, wire.uploaded, strategy.mean)
