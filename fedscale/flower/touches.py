"""What of flwr is not public, all in one place, and a test of whether the installed flwr still has it.

Everything else in this package uses ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and ``flwr.server``, whose public
names have only grown since 1.22.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, RecordDict

SERVER = 1
# Where each of them was, newest first.
IDENTITY = ("flwr.supercore.task_identity",)
RUN = ("flwr.supercore.run", "flwr.common.typing")
STAMPS = ("_message_id", "_run_id", "_src_node_id")


def found(name: str, modules: tuple[str, ...]) -> Any:
    """An attribute out of the first module that is there and has it; ``None`` where none does."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
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


@contextmanager
def muted(level: int = logging.WARNING) -> Iterator[None]:
    """Keep Flower's own log to what is at least of this level inside the ``with`` block."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(max(level, before))
    try:
        yield
    finally:
        log.setLevel(before)


def missing() -> Iterator[str]:
    """What this package needs of flwr beyond its public names and the installed one no longer has, in words."""
    if found("Run", RUN) is None or not hasattr(found("Run", RUN), "create_empty"):
        yield "Run.create_empty"
    identify(SERVER)
    message = Message(RecordDict(), SERVER + 1, "train")
    stamp(message, "name", SERVER)
    if (message.metadata.message_id, message.metadata.run_id, message.metadata.src_node_id) != ("name", SERVER, SERVER):
        yield "the name and sender of a message"
