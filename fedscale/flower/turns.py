"""A legacy server that asks one client after the other; its own asks several at once and adds up what they reply in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fedscale.causes import attempted
from fedscale.flower import touches


@contextmanager
def in_turn(lane: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Let legacy servers ask in turn inside the ``with`` block, and take the replies in the same order.

    Args:
        lane: does in its thread, and to the end, what a phase of theirs comes to.
    """

    def waited(fs: Iterable[_Later], **_: Any) -> tuple[list[_Later], set[_Later]]:
        futures = sorted(fs, key=lambda future: future.place)
        lane(lambda: _done(futures))
        return futures, set()

    with mock.patch.object(touches.server(), touches.POOLS, SimpleNamespace(futures=SimpleNamespace(ThreadPoolExecutor=_InTurn, wait=waited))):
        yield


class _Later(Future[Any]):
    """What is done when it is waited for.

    Args:
        place: the how-manieth.
        work: what is to do.
    """

    def __init__(self, place: int, work: Callable[[], Any]) -> None:
        super().__init__()
        self.place, self.work = place, work


class _InTurn(Executor):
    """Keeps what it is given until somebody waits for it."""

    def __init__(self, **_workers: int | None) -> None:
        self._given = 0

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> _Later:
        """Keep it."""
        self._given += 1
        return _Later(self._given, lambda: work(*arguments, **named))


def _done(futures: Iterable[_Later]) -> None:
    """Do what is to do, in order."""
    for future in futures:
        result = attempted(future.work)
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
