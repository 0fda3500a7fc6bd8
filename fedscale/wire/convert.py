"""Between the core's values and protobuf messages: every field is checked here, nothing is trusted beyond."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedscale.errors import Cause, Failure, ProtocolError
from fedscale.learner import Phase
from fedscale.letters import Letter
from fedscale.plan import Plan
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.task import Task, layout_for
from fedscale.vector import Schema
from fedscale.wire.limits import TOLD, TOLD_PART

Key = tuple[str, Phase, int]
LONGEST = 4000


def key_text(key: Key) -> str:
    """A task's key as metadata: ``run/phase/number``."""
    return "/".join((key[0], str(key[1]), str(key[2])))


def key_from_text(text: str) -> Key:
    """Read ``run/phase/number``.

    Raises:
        ProtocolError: anything else.
    """
    parts = text.split("/")
    if len(parts) != 3 or not re.fullmatch(r"[0-9]{1,10}", parts[2]) or parts[1] not in set(Phase):
        raise ProtocolError("a task key is malformed")
    return parts[0], Phase(parts[1]), int(parts[2])


def key_to_proto(key: Key) -> pb.TaskKey:
    """A task's key as a message."""
    return pb.TaskKey(run=key[0], phase=str(key[1]), number=key[2])


def key_from_proto(message: pb.TaskKey) -> Key:
    """Read a task's key.

    Raises:
        ProtocolError: an unknown phase.
    """
    if message.phase not in set(Phase):
        raise ProtocolError("a task key names an unknown phase")
    return message.run, Phase(message.phase), message.number


def assignment_to_proto(
    run: str, task: Task, plan_toml: str, bundle: str, deadline: float, signed: tuple[bytes, bytes] = (b"", b"")
) -> pb.Assignment:
    """A task as the server sends it; the layout travels as plan and ``terms`` and is rebuilt at the node.

    Under secure aggregation the signed roster and the statement of whoever signed it go with it.
    """
    return pb.Assignment(
        key=key_to_proto((run, task.phase, task.number)),
        plan=plan_toml,
        bundle=bundle,
        schema=task.schema.to_json() if task.schema else "",
        model=task.model,
        terms=task.layout.terms,
        clip=task.layout.clip,
        deadline_seconds=deadline,
        roster=signed[0],
        authority=signed[1],
    )


def letter_to_proto(run: str, letter: Letter, plan_toml: str, bundle: str, seconds: float) -> pb.Assignment:
    """A message of a led run as the server sends it."""
    return pb.Assignment(
        key=key_to_proto((run, Phase.MESSAGE, letter.number)),
        plan=plan_toml,
        bundle=bundle,
        model=letter.content,
        terms=1,
        deadline_seconds=seconds,
        envelope=letter.envelope,
        size=letter.size,
    )


def proposal_to_proto(key: Key, plan_toml: str, bundle: str, nodes: int) -> pb.ServerMessage:
    """The question whether a node would do a step of a run that so many are asked for."""
    return pb.ServerMessage(proposal=pb.Proposal(key=key_to_proto(key), plan=plan_toml, bundle=bundle, nodes=nodes))


def assignment_from_proto(message: pb.Assignment, node: str) -> tuple[str, Plan, Task]:
    """Run, plan and task behind an assignment, everything recomputed from the plan.

    Raises:
        ProtocolError: fields that contradict each other.
        PlanError: the plan is not valid.
    """
    run, phase, number = key_from_proto(message.key)
    plan = Plan.from_toml(message.plan, file=f"plan of run {run}")
    if (phase in (Phase.INIT, Phase.MESSAGE)) != (not message.schema) or (phase is Phase.INIT) != (not message.model):
        raise ProtocolError("an assignment lacks the model, or carries one where the first is asked for", where=f"run {run}")
    if (phase is Phase.MESSAGE) != plan.strategy.build().led:
        raise ProtocolError("an assignment asks for what its plan does not", where=f"run {run}")
    schema = Schema.from_json(message.schema) if message.schema else None
    layout = layout_for(plan, phase, schema.size if schema else 0, message.terms, message.clip)
    return run, plan, Task(node, phase, number, layout, schema, message.model)


def failure_to_proto(key: Key, failure: Failure) -> pb.Failed:
    """A failure as a node reports it."""
    return pb.Failed(
        key=key_to_proto(key), cause=failure.cause, what=failure.what, where=failure.where, hint=failure.hint, traceback=failure.traceback
    )


def failure_from_proto(message: pb.Failed) -> Failure:
    """A reported failure, texts cut to ``LONGEST`` characters; an unknown cause becomes ``worker``."""
    cause = Cause(message.cause) if message.cause in set(Cause) else Cause.WORKER
    texts = (message.what, message.where, message.hint, message.traceback)
    what, where, hint, traceback = (t[:LONGEST] for t in texts)
    return Failure(cause, what, where, hint, traceback)


def told_to_proto(key: Key, step: str, data: bytes) -> Iterator[pb.Told]:
    """A message of secure aggregation, in as many parts as it takes."""
    for start in range(0, max(len(data), 1), TOLD_PART):
        yield pb.Told(key=key_to_proto(key), step=step, data=data[start : start + TOLD_PART], more=start + TOLD_PART < len(data))


@dataclass(slots=True)
class Parts:
    """Puts messages of secure aggregation together."""

    so_far: bytearray = field(default_factory=bytearray)

    def whole(self, part: pb.Told) -> bytes | None:
        """The message that ends with this part; nothing while there is more of it to come.

        Raises:
            ProtocolError: it is longer than any.
        """
        if len(self.so_far) + len(part.data) > TOLD:
            raise ProtocolError("a message of secure aggregation is too long", why=f"it has more than {TOLD} bytes")
        self.so_far += part.data
        if part.more:
            return None
        whole, self.so_far = bytes(self.so_far), bytearray()
        return whole
