"""What of flwr is not public, all in one place, and a test of whether the installed flwr still has it.

Everything else in this package uses ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and ``flwr.server``, whose public
names have only grown since 1.22.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import flwr
from flwr.app import Message, RecordDict

T = TypeVar("T")

SERVER = 1
# Where each of them was, newest first.
IDENTITY = ("flwr.supercore.task_identity",)
RUN = ("flwr.supercore.run", "flwr.common.typing")
SERVERS, POOLS = "flwr.server.server", "concurrent"
PARAMETERS, READER = ("flwr.compat.common.parameter", "flwr.common.parameter"), "bytes_to_ndarray"
STAMPS = NAME, *_ = ("_message_id", "_run_id", "_src_node_id")
METADATA = "_metadata"
HELD = {"_check_key_fn", "_check_value_fn", "_data"}
# The dictionary under all records, and the kind of those that show the records of one kind out of several.
TYPED, VIEW = RecordDict.__mro__[1], type(RecordDict().array_records)


def found(name: str, modules: tuple[str, ...]) -> Any:
    """An attribute out of the first module that is there and has it; ``None`` where none does."""
    return next((getattr(module, name) for module in map(_module, modules) if hasattr(module, name)), None)


def _module(name: str) -> Any:
    """A module; ``None`` where there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def identify(run: int) -> None:
    """Let this process be a run's server: since 1.39 ``Message(content, node, kind)`` asks a process-wide identity."""
    identity = found("TaskIdentity", IDENTITY)
    if identity is not None:
        identity.task_id, identity.run_id, identity.node_id = SERVER, run, SERVER


def run_facts(run: int) -> Any:
    """Flower's description of a run, which knows no more than its number."""
    return found("Run", RUN).create_empty(run)


def stamp(message: Message, name: str, run: int) -> None:
    """Give a message its name and sender, as a grid does when it sends one."""
    message.metadata.__dict__.update(zip(STAMPS, (name, run, SERVER), strict=True))


def server() -> Any:
    """The module of the legacy server, which asks its clients from a pool of threads out of ``POOLS``."""
    return importlib.import_module(SERVERS)


def parameters() -> Any:
    """The module of legacy parameters, which reads each array by ``READER``."""
    return next(module for module in map(_module, PARAMETERS) if hasattr(module, READER))


def twin(made: T, **changes: Any) -> T:
    """A shallow copy of one of Flower's objects, all of which keep what they are in ``__dict__``."""
    other = object.__new__(type(made))
    other.__dict__.update(made.__dict__, **changes)
    return other


def entries(record: Any) -> dict[str, Any]:
    """What a record holds, unguarded by its rules about types."""
    held: dict[str, Any] = record.__dict__["_data"]
    return held


def put(record: Any, name: str, value: Any) -> None:
    """Set an entry by a record's rules."""
    own = record.__dict__
    own["_check_key_fn"](name)
    own["_check_value_fn"](value)
    own["_data"][name] = value


@contextmanager
def muted(level: int = logging.WARNING) -> Iterator[None]:
    """Keep what Flower itself logs to what is at least of this level inside the ``with`` block; what an app says by Flower's logger stays."""
    home = str(Path(str(flwr.__file__)).parent)

    def kept(record: logging.LogRecord) -> bool:
        return record.levelno >= level or not record.pathname.startswith(home)

    log = logging.getLogger("flwr")
    log.addFilter(kept)
    try:
        yield
    finally:
        log.removeFilter(kept)


def missing() -> Iterator[str]:
    """What this package needs of flwr beyond its public names and the installed one no longer has, in words."""
    if found("Run", RUN) is None or not hasattr(found("Run", RUN), "create_empty"):
        yield "Run.create_empty"
    identify(SERVER)
    message = Message(RecordDict(), SERVER + 1, "train")
    stamp(message, "name", SERVER)
    if (message.metadata.message_id, message.metadata.run_id, message.metadata.src_node_id) != ("name", SERVER, SERVER):
        yield "the name and sender of a message"
    if found(POOLS, (SERVERS,)) is None:
        yield "the pools of threads of the legacy server"
    if found(READER, PARAMETERS) is None:
        yield "how legacy parameters are read"
    if not HELD.issubset(RecordDict().__dict__):
        yield "what a record holds"
