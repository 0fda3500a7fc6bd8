"""What can happen to a run, and what a run asks of the world: the whole interface of the state machines.

Events are facts and go to the journal before they are handled; effects are requests and are repeated after a crash.
Both are plain frozen values, so a run can be logged, replayed, tested with generated lists and drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from fedscale.errors import Cause, Failure, ProtocolError
from fedscale.ring import Pieces, Words
from fedscale.task import Tasks
from fedscale.vector import Schema, Vector


@dataclass(frozen=True, slots=True)
class Roster:
    """These nodes are connected and offer the dataset; for secure aggregation with their identity keys, in hex."""

    nodes: Sequence[str]
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Initialized:
    """A node delivered the first model. The journal keeps the digest; the blob store keeps the model."""

    node: str
    schema: str
    digest: str
    model: Vector | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """A node's answer passed all checks and is stored. The journal keeps the digest; the spool keeps the words."""

    node: str
    digest: str
    words: Pieces | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Summed:
    """The answers of several nodes, already added up: only where nobody needs to see them apart, as in a simulation."""

    nodes: tuple[str, ...]
    words: Words | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Spoke:
    """A node answered a message of secure aggregation; ``data`` is base64."""

    node: str
    step: str
    data: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A node reported, or was found to have, a failure that ends its part in the round."""

    node: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection to a node broke."""

    node: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A lost node is connected again."""

    node: str


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer that the run armed has run out."""

    timer: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is to end now: somebody asked for it, or it has ``failed``, for the sites that are there would not do it."""

    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Somebody asked not to begin another round."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Somebody asked to go on."""


Event: TypeAlias = Roster | Initialized | Answered | Summed | Spoke | Failed | Lost | Returned | Fired | Stop | Pause | Resume


@dataclass(frozen=True, slots=True)
class Gather:
    """Send a ``Roster`` as soon as at least so many nodes are there."""

    at_least: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Give nodes their tasks."""

    tasks: Tasks


@dataclass(frozen=True, slots=True)
class Tell:
    """Give a node a message of secure aggregation; ``step`` says what its answer is to."""

    node: str
    number: int
    phase: str
    step: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Release:
    """The round goes on without this node; it may drop the task."""

    node: str
    number: int
    phase: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Send ``Fired(timer)`` after so many seconds."""

    timer: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The pure facts of a closed round.

    Args:
        number: the round.
        phase: ``train`` or ``evaluate``.
        answered: who is in the sum, sorted.
        failures: who was asked and is not, with the reason.
        metrics: pooled over all answers, none where these are too few.
        sites: each site's own metrics where the plan shows them.
        weight: summed weight, 0 where it is not told.
    """

    number: int
    phase: str
    answered: tuple[str, ...]
    failures: dict[str, Failure]
    metrics: dict[str, float]
    sites: dict[str, dict[str, float]]
    weight: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Store the checkpoint the run now holds; with an outcome except for the first model."""

    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: ``completed``, ``failed`` or ``stopped``."""

    status: str
    reason: str


Effect: TypeAlias = Gather | Assign | Tell | Release | Arm | Commit | Finish

EVENTS: dict[str, type[Any]] = {
    t.__name__.lower(): t for t in (Roster, Initialized, Answered, Summed, Spoke, Failed, Lost, Returned, Fired, Stop, Pause, Resume)
}
PAYLOADS = ("model", "words")


def to_row(event: Event) -> tuple[str, dict[str, Any]]:
    """An event as it stands in the journal: its kind and a JSON value, without the payload."""
    row = {f.name: getattr(event, f.name) for f in fields(event) if f.name not in PAYLOADS}
    if isinstance(event, Failed):
        row["failure"] = asdict(event.failure)
    if isinstance(event, Roster) and not event.keys:
        del row["keys"]
    if isinstance(event, Stop) and not event.failed:
        del row["failed"]
    return type(event).__name__.lower(), row


def from_row(kind: str, row: dict[str, Any]) -> Event:
    """An event read back from the journal; whoever replays attaches the payload.

    Raises:
        ProtocolError: the row is not one this version wrote.
    """
    try:
        values = dict(row)
        if kind in ("roster", "summed"):
            values["nodes"] = tuple(values["nodes"])
        if kind == "failed":
            values["failure"] = failure_of(values["failure"])
        event: Event = EVENTS[kind](**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the journal holds an event '{kind}' that cannot be read", why=type(error).__name__) from None
    return event


def failure_of(row: dict[str, Any]) -> Failure:
    """A failure from its JSON form."""
    return Failure(**{**row, "cause": Cause(row["cause"])})


def outcome_of(row: dict[str, Any]) -> Outcome:
    """An outcome from its JSON form."""
    return Outcome(**{**row, "answered": tuple(row["answered"]), "failures": {n: failure_of(f) for n, f in row["failures"].items()}})


def model_bytes(model: Vector) -> memoryview:
    """A model as it is stored and sent: little-endian float32, not copied where it is that already."""
    return np.ascontiguousarray(model, "<f4").view(np.uint8).data


def schema_of(event: Initialized) -> Schema:
    """The schema an ``Initialized`` event carries."""
    return Schema.from_json(event.schema)
