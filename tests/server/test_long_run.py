"""A run of thousands of rounds: its record is larger than any message, and comes all the same."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from fedscale.proto.v1 import control_pb2 as pb
from fedscale.record import RunRecord
from fedscale.wire.limits import MESSAGE, RECORD_PART
from fedscale_server.answers import Detail
from fedscale_server.control import Control
from fedscale_server.profile import Profile
from tests.fedscale.sample_run import large_run
from tests.server.running import Running, plan_text

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LONG = large_run(50, 1_700)


def finished(server: Running, record: RunRecord) -> None:
    """Let a run have ended with this record."""
    store = server.engine.store
    store.create_run(record.run, "ward", record.name, plan_text(), record.plan_hash, "0" * 64, "", NOW)
    store.finish(record.run, "completed", "", json.loads(record.to_json()), NOW)


async def test_a_record_larger_than_any_message_comes_in_parts_and_is_put_together(server: Running) -> None:
    text = LONG.to_json()
    assert len(text) > MESSAGE
    finished(server, LONG)
    parts = [part async for part in server.admin.control.GetRun(pb.GetRunRequest(run=LONG.run))]
    assert max(part.ByteSize() for part in parts) < RECORD_PART + 4096
    assert "".join(part.record for part in parts) == text
    assert [part.info.run for part in parts] == [LONG.run, *[""] * (len(parts) - 1)]

    def asked() -> Detail:
        with Control(Profile.load(server.path / "admin")) as control:
            return control.run(LONG.run)

    detail = await asyncio.to_thread(asked)
    assert (detail.info.status, detail.record) == ("completed", text)


async def test_a_short_record_is_one_message_as_it_always_was(server: Running) -> None:
    run = await server.submit(plan_text())
    parts = [part async for part in server.admin.control.GetRun(pb.GetRunRequest(run=run))]
    assert [(part.info.run, json.loads(part.record)["run"]) for part in parts] == [(run, run)]
