"""What the console shows, as plain values, and the two things it may change; everything is read from the home when asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedscale.errors import NotFound
from fedscale_client import chronicle, facts, policy, spending
from fedscale_client.chronicle import Asked
from fedscale_client.declarations import Declaration, listed
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.ledger.accounts import Account, uncovered

SHOWN_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Source:
    """One file of an app as it was unpacked here; ``text`` is empty where it is too large or no text."""

    name: str
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class Desk:
    """The console's view of one home."""

    home: NodeHome

    def status(self) -> dict[str, Any]:
        """Who this node is and how it does; ``connected`` is when the coordinator was found, or ``None``.

        Raises:
            ConfigError: a file of the home cannot be read.
        """
        found = facts.status(self.home)
        last: dict[str, Any] = next(
            (event for event in reversed(chronicle.read(self.home)) if event["event"] in ("connected", "disconnected", "stopped")), {}
        )
        there = found["running"] and last.get("event") == "connected"
        return found | {"connected": last["at"] if there else None, "trouble": "" if there else last.get("error", "")}

    def datasets(self) -> dict[str, Declaration]:
        """What this site offers."""
        return listed(self.home)

    def asked(self) -> list[Asked]:
        """What each run has asked, the newest first."""
        return chronicle.asked(chronicle.read(self.home))

    def asked_by(self, run: str) -> Asked:
        """What one run has asked.

        Raises:
            NotFound: nothing.
        """
        found = next((one for one in self.asked() if one.run == run), None)
        if found is None:
            raise NotFound("no such run has asked anything of this site")
        return found

    def sources(self, app: str) -> list[Source]:
        """The files of an app, as far as it still lies in the node's cache."""
        folder = self.home.cache / "bundles" / app
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if app.isalnum() and folder.is_dir() else []
        return [_source(path, path.relative_to(folder).as_posix()) for path in paths]

    def receipts(self) -> list[dict[str, Any]]:
        """What left this site, the newest first."""
        return spending.receipts(self.home)[::-1]

    def accounts(self) -> list[Account]:
        """What this site has spent, against its caps."""
        return spending.spent(self.home, spending.items(self.home))

    def uncovered(self) -> int:
        """How many answers no epsilon covers."""
        return len(uncovered(spending.items(self.home)))

    def ledger(self) -> dict[str, Any]:
        """Whether the ledger verifies, and where it ends; ``head`` is what to note elsewhere."""
        if not self.home.ledger.exists():
            return {"problem": "", "head": "", "entries": 0}
        problem, head = reading.verify(self.home, chronicle.noted(self.home))
        if problem:
            return {"problem": problem, "head": "", "entries": 0}
        return {"problem": "", "head": f"{head.seq}:{head.digest}", "entries": head.seq}

    def policy(self) -> dict[str, Any]:
        """What this site allows."""
        return policy.load(self.home).model_dump(mode="json")

    def pause(self, *, paused: bool) -> dict[str, Any]:
        """Pause the site, or let it go on; its status afterwards."""
        facts.pause(self.home, paused=paused)
        return self.status()

    def approve(self, app: str, *, approved: bool) -> dict[str, Any]:
        """Put an app on the list of those that may run, or take it off; the policy afterwards."""
        facts.approve(self.home, app, approved=approved)
        return self.policy()

    def failures(self) -> Counter[str]:
        """How many tasks failed, by cause."""
        return Counter(str(failure.cause) for one in self.asked() for failure in one.failures)

    def marks(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever something that the console shows has changed."""
        return tuple(_marks(self.home))

    def attention(self) -> list[tuple[str, str, str]]:
        """What the owner should look at: how bad it is, what, and what to do."""
        return [*_attention(self)]


def _attention(desk: Desk) -> Iterator[tuple[str, str, str]]:
    status, rules = desk.status(), policy.load(desk.home)
    if status["paused"]:
        yield "warn", "this site is paused: nothing begins and nothing leaves", "go on: fedscale node resume"
    if not status["running"]:
        yield "warn", "the node is not running", "start it: fedscale node start"
    elif status["connected"] is None:
        yield "bad", f"the coordinator is not there: {status['trouble'] or 'not yet reached'}", "see: fedscale node doctor"
    if not status["datasets"]:
        yield "warn", "no dataset is declared", "declare one: fedscale node data add NAME --path FILE.csv --label COLUMN"
    if not any(rules.of(name).cap or rules.of(name).require_dp for name in status["datasets"]) and not rules.require_dp:
        yield "info", "no dataset has a cap for its privacy", "set one: fedscale node policy set datasets.NAME.epsilon=4"
    if problem := desk.ledger()["problem"]:
        yield "bad", f"the privacy ledger does not verify: {problem}", "see: fedscale privacy ledger --verify"


def _marks(home: NodeHome) -> Iterator[tuple[str, int, int]]:
    """Time and size of every file that is shown."""
    for path in (home.policy_file, home.datasets_file, home.ledger_head, chronicle.file_of(home), home.certificate_file):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        yield path.name, found.st_mtime_ns, found.st_size


def _source(path: Path, name: str) -> Source:
    size = path.stat().st_size
    try:
        return Source(name, size, path.read_text(encoding="utf-8") if size <= SHOWN_BYTES else "")
    except ValueError:
        return Source(name, size, "")


def plain(one: Asked) -> dict[str, Any]:
    """What a run has asked, as JSON has it."""
    return asdict(one) | {"failures": [asdict(failure) for failure in one.failures]}
