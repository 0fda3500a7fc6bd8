"""What the sites of a run say to its next round before anybody is asked for anything: who would refuse, and why.

A site that would not do its part is left out before others spend work and privacy on a round that it would make fail. What
a site says binds nobody; one that says nothing is asked as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedscale.causes import listed
from fedscale.errors import Failure
from fedscale.events import Event, Failed, Roster, Stop
from fedscale.learner import Phase
from fedscale.wire.convert import proposal_to_proto
from fedscale_server.sessions import Session, Sessions

if TYPE_CHECKING:
    from fedscale_server.logbook import Logbook

MOST_SECONDS = 30.0
DOING = {Phase.TRAIN: "train", Phase.EVALUATE: "evaluate"}


@dataclass(slots=True)
class Stances:
    """Those of one run.

    Args:
        book: the run.
        sessions: who is connected.
        number: the round they are about.
        patient: whether answers are still waited for.
        asked: the session in which each was asked.
        due: whose answer has not come yet.
        refused: what each that has answered would refuse; empty for one that would do all.
        silent: sessions that once said nothing in time; until they do, nobody waits for them again.
    """

    book: Logbook
    sessions: Sessions
    number: int = -1
    patient: bool = True
    asked: dict[str, Session] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    refused: dict[str, Mapping[Phase, Failure]] = field(default_factory=dict)
    silent: set[Session] = field(default_factory=set)

    def ask(self, nodes: Collection[str]) -> bool:
        """Ask of the next round whoever answers such questions and was not asked in the session it has now; whether there is anybody."""
        plan, row, (phase, number) = self.book.plan, self.book.row, self._step()
        if number != self.number:
            self.number, self.patient, self.asked, self.due, self.refused = number, True, {}, set(), {}
        proposal = proposal_to_proto((row.id, phase, number), row.plan, row.bundle, plan.clients.asked(len(nodes))[0])
        found = [session for node in nodes if (session := self.sessions.get(node)) and session.proposals and self.asked.get(node) is not session]
        for session in found:
            self.asked[session.node] = session
            self.refused.pop(session.node, None)
            if session not in self.silent:
                self.due.add(session.node)
            session.send(proposal)
        return self.waiting and bool(found)

    @property
    def waiting(self) -> bool:
        """Whether somebody has yet to answer."""
        return self.patient and bool(self.due)

    def hurry(self) -> None:
        """Wait for nobody any longer in this round."""
        self.patient = False
        self.silent = {session for session in (*self.silent, *(self.asked[node] for node in self.due)) if self.sessions.get(session.node) is session}

    def take(self, node: str, number: int, refused: Mapping[Phase, Failure]) -> None:
        """Note an answer; what nobody has asked for is nothing."""
        if (session := self.asked.get(node)) is None or self.sessions.get(node) is not session:
            return
        self.silent.discard(session)
        if number == self.number and node not in self.refused:
            self.due.discard(node)
            self.refused[node] = refused

    def settled(self, nodes: Collection[str], able: Collection[str], keys: Mapping[str, str], needed: int) -> list[Event]:
        """The roster without those that would refuse, and why they are not in it; or the run's end, where too few are left.

        Args:
            nodes: who is there.
            able: who of these may be asked.
            keys: their identity keys, under secure aggregation.
            needed: fewest that the roster must name: at first perhaps more than a round needs, and then nobody is left out before round 1.
        """
        plan, (phase, _) = self.book.plan, self._step()
        phases = (phase, Phase.EVALUATE) if phase is Phase.TRAIN and plan.evaluate.every else (phase,)
        refused = self._against(able, phase)
        told: list[Event] = [Failed(node, failure) for node, failure in sorted(refused.items())]
        if reason := self._shortage(able, phases):
            return [*told, Stop(reason, failed=True)]
        out = refused if len(able) - len(refused) >= needed else {}
        roster = Roster(tuple(node for node in nodes if node not in out), {node: key for node, key in keys.items() if node not in out})
        return [roster, *([] if self.book.run.phase is Phase.INIT else told)]

    def _step(self) -> tuple[Phase, int]:
        """The next step that costs a site anything: the first model comes from the app alone."""
        run = self.book.run
        return (Phase.TRAIN, 1) if run.phase is Phase.INIT else (run.phase, run.number)

    def _against(self, nodes: Collection[str], phase: Phase) -> dict[str, Failure]:
        """Who of these would refuse that phase of the round, and why."""
        return {node: told[phase] for node in nodes if phase in (told := self.refused.get(node, {}))}

    def _shortage(self, nodes: Collection[str], phases: Collection[Phase]) -> str:
        """Why the round cannot succeed; empty where enough would do each phase of it, as far as they have said."""
        least = self.book.plan.clients.min_per_round
        for phase in phases:
            refused = self._against(nodes, phase)
            if refused and len(nodes) - len(refused) < least:
                return f"round {self.number}: fewer than {least} of {len(nodes)} nodes would {DOING[phase]}: {listed(refused)}"
        return ""
