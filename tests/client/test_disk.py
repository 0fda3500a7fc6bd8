"""A node whose disk refuses a single call: the task fails and says so, or is answered all the same, and the next one is answered."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fedscale.errors import Cause, Failure
from fedscale_client.home import NodeHome
from tests.chaos.platter import Platter
from tests.client.conftest import LEARNER, Running, Start
from tests.client.coordinator import MODEL, Coordinator, until

ERRORS = (errno.EIO, errno.ENOSPC)


async def outcome(coordinator: Coordinator, node: Running, app: str, number: int) -> bytes | Failure:
    """What becomes of a round's task; each round has a model of its own."""
    key, _ = coordinator.assign(app, number=number, model=MODEL + np.float32(number))
    found = await until(lambda: [body for other, body, _ in coordinator.answers if other == key] or coordinator._failed(key) or node.task.done())
    if node.task.done():
        node.task.result()
    assert isinstance(found[0], bytes | Failure)
    return found[0]


@pytest.mark.timeout(300)
async def test_whichever_call_a_nodes_disk_refuses_only_that_task_fails(
    coordinator: Coordinator, home: NodeHome, start: Start, tmp_path: Path
) -> None:
    app = coordinator.put_app(tmp_path / "app", app=LEARNER)
    (tmp_path / "grave").mkdir()
    platter, met = Platter(home.path, (".",), tmp_path / "grave"), dict[str, bytes | Failure]()
    async with start() as node:
        session = await coordinator.connected()
        assert isinstance(await outcome(coordinator, node, app, 1), bytes)
        with platter.watched():
            while not met or platter.failed:
                number = len(met) + 1
                platter.refuse(number, ERRORS[number % 2])
                found = await outcome(coordinator, node, app, 2 * number)
                # The last one met no refusal: there are fewer calls than that.
                met[f"{number}: {platter.calls[number - 1] if platter.failed else ''}"] = found
                failed, platter.fail = platter.failed, (0, 0)
                assert isinstance(await outcome(coordinator, node, app, 2 * number + 1), bytes), f"the node does not get over {list(met)[-1]}"
                platter.failed = failed
        assert [session] == coordinator.sessions, "the node stayed connected"
        assert not node.task.done()
    failures = [(found, ERRORS[number % 2]) for number, found in enumerate(met.values(), 1) if isinstance(found, Failure)]
    assert len(failures) > 5
    assert [found for found, code in failures if found.cause is not Cause.DISK or os.strerror(code).lower() not in found.what.lower()] == []
