"""A ServerApp that does the same in every life: what it would leave to chance is settled."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from fedscale.flower import touches

ASKING = ("fit_clients", "evaluate_clients")  # of the legacy server


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Let chance, and the order in which the legacy server adds up, be the same every time inside the ``with`` block."""
    random.seed(seed)
    legacy = touches.server()
    with ExitStack() as stack:
        for name in ASKING:
            stack.enter_context(mock.patch.object(legacy, name, _in_order(getattr(legacy, name))))
        yield


def _in_order(ask: Callable[..., tuple[list[Any], list[Any]]]) -> Callable[..., tuple[list[Any], list[Any]]]:
    """A function of the legacy server that asks all clients, with its results in the order of the nodes instead of any."""

    @functools.wraps(ask)
    def asked(*given: Any, **named: Any) -> tuple[list[Any], list[Any]]:
        results, failures = ask(*given, **named)
        return sorted(results, key=lambda pair: int(pair[0].cid)), failures

    return asked
