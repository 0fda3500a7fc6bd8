"""Faults of the network: every node reaches the coordinator through a proxy of its own."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from fedscale_simulations.chaos.proxy import CALM, Proxy, Weather
from fedscale_simulations.chaos.troupe import Troupe

T = TypeVar("T")

LONGEST_FAULT, ANSWER_SECONDS = 6.0, 30.0


class Break(StrEnum):
    """What can be wrong with a network."""

    PARTITION = "partition"
    LATENCY = "latency"
    BANDWIDTH = "bandwidth"
    RESET = "reset"
    HALF_CLOSE = "half-close"
    FLIP = "flip"


WEATHER = {
    Break.PARTITION: Weather(blackhole=True),
    Break.LATENCY: Weather(latency=0.3),
    Break.BANDWIDTH: Weather(bandwidth=20e3),
    Break.FLIP: Weather(flip=2_000),
}


@dataclass
class Network:
    """Proxies in a thread of their own."""

    loop: asyncio.AbstractEventLoop
    proxies: dict[str, Proxy]

    def do(self, action: Callable[[], T]) -> T:
        """Do something where the proxies live."""

        async def done() -> T:
            return action()

        return _answer(asyncio.run_coroutine_threadsafe(done(), self.loop))

    def change(self, proxies: Iterable[Proxy], weather: Weather) -> None:
        """Let bytes travel otherwise."""

        def changed() -> None:
            for proxy in proxies:
                proxy.change(weather)

        self.do(changed)


@contextmanager
def network(troupe: Troupe) -> Iterator[Network]:
    """Lead every node of a federation that is open, and whose nodes are not started, through a proxy."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxies", daemon=True)
    thread.start()
    stack = AsyncExitStack()
    made = Network(loop, {})
    try:
        for node in troupe.job.nodes:
            made.proxies[node] = Proxy(troupe.port)
            troupe.reroute(node, _call(loop, stack.enter_async_context(made.proxies[node].serve())))
        yield made
    finally:
        _call(loop, stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(ANSWER_SECONDS)
        loop.close()


def _call(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return _answer(asyncio.run_coroutine_threadsafe(work, loop))


def _answer(future: Future[T]) -> T:
    return future.result(ANSWER_SECONDS)


@dataclass(frozen=True, slots=True)
class Storm:
    """The network breaks for some of the nodes, for a while.

    Args:
        net: their network.
        kinds: what may happen.
        longest: seconds that it lasts at most.
    """

    net: Network
    kinds: Sequence[Break] = tuple(Break)
    longest: float = LONGEST_FAULT

    def inflict(self, troupe: Troupe, chance: random.Random) -> str:
        """Break it for a random part of the nodes, then mend it."""
        kind, most = chance.choice(tuple(self.kinds)), len(troupe.job.nodes)
        proxies = [self.net.proxies[node] for node in chance.sample(troupe.job.nodes, chance.randint(1, most))]
        if kind in WEATHER:
            self.net.change(proxies, WEATHER[kind])
            time.sleep(chance.uniform(0.05, self.longest))
            self.net.change(proxies, CALM)
        else:
            self.net.do(lambda: [proxy.reset() if kind is Break.RESET else proxy.half_close() for proxy in proxies])
        return str(kind)


@contextmanager
def storm(troupe: Troupe, kinds: Sequence[Break], longest: float) -> Iterator[Storm]:
    """A storm for a federation that is open."""
    with network(troupe) as net:
        yield Storm(net, kinds, longest)
