"""One task at a site: what it needs is fetched, the dataset looked up, and a worker put to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from fedscale.errors import Cause, Failure, FedscaleError
from fedscale.learner import Phase
from fedscale_client import answers, declarations, failures, states
from fedscale_client.answers import Answer, Answers
from fedscale_client.cache import Cache
from fedscale_client.connection import Assignment
from fedscale_client.declarations import Declaration
from fedscale_client.gate import Gate, Permit
from fedscale_client.home import NodeHome
from fedscale_client.pipe import Message
from fedscale_client.transfer import Transfer
from fedscale_client.workers import Done, Workers


class Performer:
    """Does tasks with what the site has.

    Args:
        home: what the site offers.
        cache: where models and bundles are.
        kept: where answers go.
        transfer: gets models and bundles.
        workers: do the work.
        gate: lets tasks in.
    """

    def __init__(self, home: NodeHome, cache: Cache, kept: Answers, transfer: Transfer, workers: Workers, gate: Gate) -> None:
        self._home, self._cache, self._kept, self._transfer, self._workers, self._gate = home, cache, kept, transfer, workers, gate

    async def perform(
        self, assignment: Assignment, deadline: float, progress: Callable[[float], None], begin: Callable[[], None] = lambda: None
    ) -> Answer | Failure:
        """What a task comes to.

        Args:
            assignment: the task.
            deadline: when to give up, in the event loop's time.
            progress: called with fractions in [0, 1].
            begin: called when everything is there and a worker is put to it.
        """
        answer = self._kept.place(assignment.key)
        outcome: Done | Failure | None = None
        try:
            with self._cache.hold(assignment.bundle, assignment.task.model):
                declaration = declarations.offered(self._home, assignment.plan.job.data)
                # A masked vector leaves once, for its masks live as long as the node; any other answer is the same bytes when it is asked for again.
                found = None if assignment.plan.secagg.enabled else self._kept.found(assignment, answer)
                async with asyncio.timeout_at(deadline):
                    permit = await self._gate.admit(assignment, declaration, found.digest if found else "")
                if found:
                    outcome = Done(found.digest, found.size, found.schema)
                else:
                    outcome = await self._outcome(permit, declaration, answer, deadline, progress, begin)
        except TimeoutError:
            outcome = Failure(Cause.TIMEOUT, "the privacy of the task was not worked out by its deadline", hint="raise clients.deadline")
        except (FedscaleError, OSError) as error:
            outcome = failures.of_local(error)
        finally:
            if not isinstance(outcome, Done):
                answers.drop(answer)
        return outcome if isinstance(outcome, Failure) else Answer(answer, outcome.digest, outcome.size, outcome.schema)

    async def _outcome(
        self,
        permit: Permit,
        declaration: Declaration,
        answer: Path,
        deadline: float,
        progress: Callable[[float], None],
        begin: Callable[[], None],
    ) -> Done | Failure:
        """What the worker says.

        Raises:
            FedscaleError: the server does not give what it named.
            OSError: the disk refuses.
        """
        assignment = permit.assignment
        try:
            async with asyncio.timeout_at(deadline):
                bundle, model = await self._fetched(assignment)
        except TimeoutError:
            return Failure(Cause.NETWORK, "the app or the model did not arrive by the task's deadline", hint="raise clients.deadline")
        name = assignment.plan.job.data
        key = (assignment.key[0], assignment.bundle, name, declarations.fingerprint(declaration, self._home.path))
        seat = {"bundle": str(bundle), "home": str(self._home.path), "dataset": name, "declaration": declaration.model_dump(mode="json")}
        request = {**_request(assignment), "model": str(model or ""), "answer": str(answer)}
        if assignment.key[1] is Phase.MESSAGE:
            request |= {"envelope": assignment.envelope, "states": str(states.folder_of(self._home.cache, assignment.key[0]))}
        begin()
        done = await self._workers.perform(key, seat, request, deadline, progress)
        permit.spent = isinstance(done, Failure)  # why a worker failed may depend on the data, and is told
        if isinstance(done, Done) and not assignment.plan.secagg.enabled:
            await asyncio.to_thread(self._kept.finish, assignment, Answer(answer, done.digest, done.size, done.schema))
        return done

    async def _fetched(self, assignment: Assignment) -> tuple[Path, Path | None]:
        """Folder of the app and file of the model."""
        bundle, task = await self._transfer.bundle(assignment.bundle), assignment.task
        size = 4 * task.schema.size if task.schema else assignment.size
        return bundle, await self._transfer.model(task.model, size) if task.model else None


def _request(assignment: Assignment) -> Message:
    """A task as the worker reads it."""
    task = assignment.task
    schema = task.schema.to_json() if task.schema else ""
    return {
        "plan": assignment.plan_toml,
        "node": task.node,
        "phase": str(task.phase),
        "number": task.number,
        "terms": assignment.terms,
        "clip": task.layout.clip,
        "schema": schema,
    }
