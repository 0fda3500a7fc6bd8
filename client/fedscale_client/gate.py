"""The gate of a site: each task passes its policy and its privacy ledger before a worker gets it, each answer before it leaves.

``admit`` reserves what a task will cost, ``release`` is durable before the first byte of the answer is sent, ``commit`` notes
that it has arrived. ``close`` gives back what was set aside for a task of which nothing left, not even why it failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Lock
from typing import Any, TypeVar

from fedscale.clock import Clock
from fedscale.errors import ConfigError, FedscaleError, PolicyRefusal
from fedscale.learner import Phase
from fedscale.privacy.events import Spend
from fedscale.privacy.rounds import answers_over, spend_of, spends_over
from fedscale.vector import Schema
from fedscale.wire.convert import Key
from fedscale_client import declarations, policy
from fedscale_client.answers import Answer
from fedscale_client.census import Census, census
from fedscale_client.connection import Assignment, Proposal
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap, Claim, Parcel
from fedscale_client.ledger.head import Head
from fedscale_client.policy import Policy

OWN = "the site's owner looks with: fedscale node policy show, fedscale privacy ledger --verify"
BROKEN = "the privacy ledger of this site cannot be used"

LOOK_SECONDS = 0.5
# How long a run keeps its room when nobody says that it is over: as long as its plan may take, a day for pauses, and never longer than a month.
SPARE, LONGEST = timedelta(days=1), timedelta(days=30)
PHASES = 2  # of a round, each with the plan's deadline: training and evaluation
T = TypeVar("T")


@dataclass(slots=True)
class Permit:
    """A task that was let in.

    Args:
        assignment: the task.
        reserving: sets aside in the ledger what it will cost; its thread goes on when the task is dropped meanwhile.
        spent: whether something that depends on the data has left, or is about to.
        counts: the reservation under which what left counts.
    """

    assignment: Assignment
    reserving: asyncio.Task[int]
    spent: bool = False
    counts: int = 0


class Gate:
    """Keeps a node's answers within what its site allows.

    Args:
        home: where policy and ledger are.
        clock: for the ledger's entries.
    """

    def __init__(self, home: NodeHome, clock: Clock) -> None:
        self._home, self._clock, self._settings = home, clock, home.settings()
        self._ledger: Ledger | None = None
        self._opening = Lock()
        self._permits: dict[Key, Permit] = {}
        self._counted: tuple[tuple[str, str], Census] | None = None
        self._noted = ""

    async def admit(self, assignment: Assignment, declaration: Declaration, kept: str = "") -> Permit:
        """Let a task in, or not.

        Args:
            assignment: the task.
            declaration: of its dataset.
            kept: digest of the answer that is there already, if any.

        Raises:
            PolicyRefusal: the policy does not allow the task, or it or what its run has planned would pass a cap.
            DataError: the dataset cannot be counted.
            PlanError: the plan's privacy cannot be made.
            OSError: the disk refuses.
        """
        rules, claim, run = await self._allowed(assignment, assignment.key, declaration)
        reserving = asyncio.create_task(asyncio.to_thread(self._reserve, claim, run, rules, kept))
        permit = self._permits[assignment.key] = Permit(assignment, reserving)
        await asyncio.shield(reserving)
        return permit

    async def consider(self, proposal: Proposal, phase: Phase, declaration: Declaration) -> None:
        """Refuse what ``admit`` would refuse by now of a run's round; nothing is set aside.

        Args:
            proposal: the run and its round.
            phase: of the task that would come.
            declaration: of its dataset.

        Raises:
            FedscaleError: as ``admit``.
            OSError: the disk refuses.
        """
        key = (proposal.key[0], phase, proposal.key[2])
        rules, claim, run = await self._allowed(proposal, key, declaration)
        rules.check_sum(proposal.plan, proposal.nodes)
        await asyncio.to_thread(_trusted, lambda: self._open().consider(claim, _cap(claim, rules), run))

    async def _allowed(self, asked: Assignment | Proposal, key: Key, declaration: Declaration) -> tuple[Policy, Claim, tuple[Spend, ...]]:
        """The policy, which lets a task in whatever it costs, and what it claims, see ``_claim``."""
        await self._require_noted()
        rules = _rules(self._home)
        rules.check(asked.plan, key[1], self._settings.project, asked.bundle)
        return rules, *await self._claim(asked, key, declaration, rules)

    async def anchored(self, text: str) -> str:
        """Compare this site's ledger with the end of it that the coordinator has noted; what is wrong, empty when nothing is.

        A ledger that was put back to an older copy, head and all, does not have that entry any more. Nothing leaves until it is seen to
        have it; before each task it is looked at again, for the disk may have refused for a moment.

        Raises:
            ConfigError: the ledger cannot be read now.
        """
        self._noted = text
        try:
            known = Head.parsed(text)
        except ConfigError as error:
            return error.what
        try:
            problem = await asyncio.to_thread(lambda: self._open().lacks(known))
        except OSError as error:
            raise ConfigError("the privacy ledger of this site cannot be read", why=error.strerror or "") from None
        self._noted = text if problem else ""
        return problem

    async def _require_noted(self) -> None:
        """Let nothing in as long as the ledger is not seen to have what the coordinator has noted.

        Raises:
            PolicyRefusal: it is not.
        """
        with suppress(ConfigError):
            if not self._noted or not await self.anchored(self._noted):
                return
        raise PolicyRefusal(BROKEN, hint=OWN)

    async def release(self, key: Key, answer: Answer, *, masked: bool = False) -> Head:
        """Note that an answer leaves; durable when it returns, with the end of the ledger, which has it.

        Raises:
            PolicyRefusal: the site was paused meanwhile, or the ledger cannot be trusted.
        """
        permit = self._permits[key]
        _rules(self._home).going()
        permit.spent = True
        parcel = Parcel(answer.digest, answer.size, _parts(permit.assignment, answer), masked)
        permit.counts = await asyncio.to_thread(_trusted, lambda: self._open().release(permit.reserving.result(), parcel))
        return self._open().end

    async def passing(self, leaving: Coroutine[Any, Any, T]) -> T:
        """What lets an answer leave, to its end, or broken off as soon as the owner pauses the site; what has left by then stays spent.

        Raises:
            PolicyRefusal: the site was paused meanwhile.
        """
        sending = asyncio.create_task(leaving)
        try:
            while not (await asyncio.wait({sending}, timeout=LOOK_SECONDS))[0]:
                _rules(self._home).going()
            return await sending
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def commit(self, key: Key, verdict: str, reason: str) -> None:
        """Note what became of an answer; that it left is on record already, so a ledger that fails now is told of before the next task."""
        permit = self._permits[key]
        with suppress(ConfigError, OSError):
            await asyncio.to_thread(lambda: self._open().commit(permit.counts, verdict, reason))

    async def close(self, key: Key) -> None:
        """The task is over; what it did not spend is given back, or stays spent if that fails."""
        permit = self._permits.pop(key, None)
        if permit and not permit.spent:
            await asyncio.shield(self._refund(permit.reserving))

    async def over(self, run: str) -> None:
        """A run asks nothing more: others may have the room it keeps, or will when its time is over, if the ledger fails now."""
        with suppress(ConfigError, OSError):
            await asyncio.to_thread(lambda: self._open().free(run, "the run is over") if self._home.ledger.exists() else None)

    async def waiting(self) -> tuple[str, ...]:
        """The runs that keep room here, of whose end this site has not heard; none where the ledger cannot be read."""
        with suppress(ConfigError, OSError):
            kept = await asyncio.to_thread(lambda: self._open().holds() if self._home.ledger.exists() else ())
            return tuple(hold.run for hold in kept)
        return ()

    async def _refund(self, reserving: asyncio.Task[int]) -> None:
        """Give back what was, or is just being, set aside; what was refused has cost nothing."""
        with suppress(FedscaleError, OSError):
            reservation = await reserving
            await asyncio.to_thread(lambda: self._open().refund(reservation, "nothing left this site"))

    async def _claim(self, asked: Assignment | Proposal, key: Key, declaration: Declaration, rules: Policy) -> tuple[Claim, tuple[Spend, ...]]:
        """What a task claims, and what its run would cost from there to its end, all of it computed here."""
        plan, (name_of_run, phase, number) = asked.plan, key
        dp, name = plan.privacy, plan.job.data
        claim = Claim(
            run=name_of_run,
            phase=str(phase),
            number=number,
            dataset=name,
            population=rules.population(name),
            spends=None,
            plan=plan.digest,
            app=asked.bundle,
            coordinator=f"{self._settings.federation} at {self._settings.address}",
        )
        if dp is None:
            return claim, ()
        rounds, masked = plan.strategy.rounds, plan.secagg.enabled
        if number > rounds:
            raise PolicyRefusal(f"round {number} is beyond the {rounds} rounds of the plan", where="strategy.rounds")
        counted = await self._census(declaration, dp.unit)
        claim = replace(claim, unit=dp.unit, delta=dp.delta, data=counted.data)
        if phase is Phase.EVALUATE:
            return claim, ()  # metrics of the rows held out leave as they are: no noise covers them
        spend = await asyncio.to_thread(spend_of, dp, plan.train, rounds, Phase.TRAIN, counted.units, masked=masked)
        left = rounds - max(number, 1) + 1
        run = spends_over(spend, left) if spend else ()
        if spend is None or phase is not Phase.TRAIN:
            # The first model comes from the app alone and costs nothing; whoever makes it is asked for all the rounds after it.
            return replace(claim, spends=()), run
        until = self._clock.now() + min(SPARE + timedelta(seconds=PHASES * left * plan.clients.deadline), LONGEST)
        return replace(claim, spends=(spend,), answers=answers_over(spend, left), until=until.isoformat(timespec="seconds")), run

    async def _census(self, declaration: Declaration, unit: str) -> Census:
        """The census of a dataset, taken again when its declaration or files have changed."""
        key = (declarations.fingerprint(declaration, self._home.path), unit)
        if self._counted is None or self._counted[0] != key:
            self._counted = (key, await census(self._home, declaration, unit))
        return self._counted[1]

    def _reserve(self, claim: Claim, run: tuple[Spend, ...], rules: Policy, kept: str) -> int:
        """Set the claim aside in the ledger."""
        return _trusted(lambda: self._open().reserve(claim, _cap(claim, rules), kept, run))

    def _open(self) -> Ledger:
        """The ledger, opened when it is first needed."""
        with self._opening:
            if self._ledger is None:
                self._ledger = Ledger.open(self._home, self._clock.now)
            return self._ledger


def _rules(home: NodeHome) -> Policy:
    """The site's policy; one that cannot be read allows nothing."""
    try:
        return policy.load(home)
    except ConfigError:
        raise PolicyRefusal("the policy of this site cannot be read", hint=OWN) from None


def _cap(claim: Claim, rules: Policy) -> Cap | None:
    """The cap that a claim must not pass; of metrics under a private plan the policy has decided already."""
    return None if claim.unit and claim.spends is None else rules.of(claim.dataset).cap


def _trusted(step: Callable[[], T]) -> T:
    """A step of the ledger; one that cannot be used allows nothing."""
    try:
        return step()
    except ConfigError:
        raise PolicyRefusal(BROKEN, hint=OWN) from None


def _parts(assignment: Assignment, answer: Answer) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of what an answer holds."""
    task = assignment.task
    if task.phase is Phase.MESSAGE:
        return ()  # what an app answers only the app can read
    schema = Schema.from_json(answer.schema) if answer.schema else task.schema
    tensors = schema.tensors if schema is not None and task.phase is not Phase.EVALUATE else ()
    model = tuple((tensor.name, tensor.shape) for tensor in tensors)
    if task.phase is Phase.INIT:
        return model
    return (*model, ("weight", ()), *((metric.name, (metric.width,)) for metric in task.layout.metrics))
