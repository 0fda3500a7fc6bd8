"""Who watches a run's page and notes when each fault can be read there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

SHOWS = ("failed", "lost", "closed", "finished")


@dataclass
class Witness:
    """The stream that a run's page reads, with the time at which each event came in.

    Args:
        http: somebody who may read.
        run: which run.
    """

    http: httpx.AsyncClient
    run: str
    seen: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    async def watch(self) -> None:
        """Read until the run is over."""
        async with self.http.stream("GET", f"/api/runs/{self.run}/events") as answer:
            async for line in answer.aiter_lines():
                if line == "event: over":
                    return
                if line.startswith("data: "):
                    self.seen.append((time.time(), json.loads(line.removeprefix("data: "))))

    def begun(self) -> asyncio.Task[None]:
        """Watch in the background."""
        return asyncio.create_task(self.watch())

    def read(self, site: str, phase: str = "train") -> tuple[float, bool]:
        """When a site's failure in a phase could first be read, and whether that was before the round was closed."""
        for at, event in self.seen:
            named = event["node"], *event["detail"].get("failures", ()), *event["detail"].get("reason", "").replace(":", " ").split()
            if event["phase"] == phase and event["kind"] in SHOWS and site in named:
                return at, event["kind"] in ("failed", "lost")
        raise AssertionError(f"nothing was told of {site}: {[event['kind'] for _, event in self.seen]}")

    @property
    def reached(self) -> str:
        """The phase that the run ended in."""
        return str(self.seen[-1][1]["phase"])


class Stamps:
    """The moments at which apps went wrong, written down by themselves.

    Args:
        folder: where each fault leaves its time, in a file of its number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, kind: int) -> float:
        """When a fault of this kind happened."""
        return float((self.folder / str(kind)).read_text())


@pytest.fixture
def delayed(record_property: Callable[[str, str], None]) -> Callable[..., None]:
    """Notes the seconds from each fault, by its name, to where a page can read it; none may take as long as the plan waits for a site."""

    def note(within: float, **seconds: float) -> None:
        for name, taken in seconds.items():
            record_property("measured", f"{name} {taken:.2f} s from the fault to the page")
        assert max(seconds.values()) < within, seconds

    return note
