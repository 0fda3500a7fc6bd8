"""Where the curves of a run go besides its own report: TensorBoard, MLflow or a plain table, behind one protocol.

A sink is told each phase of a round as it closes, and the whole record when the run is over. What it needs of other
packages is loaded when it is opened.
"""

from __future__ import annotations

from fedscale.sinks.tracking import Tracker, Tracking, chosen, read, track

__all__ = ["Tracker", "Tracking", "chosen", "read", "track"]
