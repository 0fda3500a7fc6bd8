"""Curves for TensorBoard: ``tensorboard --logdir FOLDER``; scalars are named ``phase/metric`` and ``phase/metric/site``."""

from __future__ import annotations

import time
from pathlib import Path

from fedscale.record import RoundRecord, RunRecord
from fedscale.sinks.protocol import values, writing


class TensorBoard:
    """An event file in a folder.

    Args:
        folder: made if need be; what an earlier run wrote there is not shown any longer.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat import tf
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._fault = Event, Summary, tf.errors.OpError
        with writing("tensorboard", self._fault):
            self._writer = EventFileWriter(str(folder))
            # A resumed run tells all its rounds again: without this mark each earlier one would stand in the curves twice.
            self._writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    def take(self, row: RoundRecord) -> None:
        """Write the scalars of a round."""
        named = {f"{row.phase}/{name}/{site}" if site else f"{row.phase}/{name}": value for site, name, value in values(row)}
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in named.items()]
        with writing("tensorboard", self._fault):
            self._writer.add_event(self._event(wall_time=time.time(), step=row.number, summary=self._summary(value=scalars)))
            self._writer.flush()

    def close(self, record: RunRecord | None) -> None:  # noqa: ARG002 - the protocol's shape
        """Close the file."""
        with writing("tensorboard", self._fault):
            self._writer.close()
