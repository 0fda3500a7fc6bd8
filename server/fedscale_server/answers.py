"""What a coordinator answers to those who steer it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Site:
    """A site as the coordinator knows it; ``last_seen`` in seconds since the epoch, 0 for never."""

    name: str
    project: str
    connected: bool
    datasets: tuple[str, ...]
    last_seen: float
    version: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class Project:
    """A project with its numbers of sites and runs."""

    name: str
    nodes: int
    runs: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run and where it stands; times in seconds since the epoch, ``finished`` 0 while it goes on."""

    run: str
    project: str
    name: str
    status: str
    reason: str
    phase: str
    number: int
    rounds: int
    created: float
    finished: float


@dataclass(frozen=True, slots=True)
class Detail:
    """A run with what it left: its record as JSON, and digest and schema of its newest model."""

    info: RunInfo
    record: str
    model: str
    schema: str


@dataclass(frozen=True, slots=True)
class Status:
    """A coordinator, the sites it knows and the runs it drives.

    It leads in ``epoch`` until ``leads_until``, in seconds since the epoch, unless it renews its lease; 0 for ever. ``replicas``
    are the addresses of all coordinators of the federation, none where there is one.
    """

    version: str
    federation: str
    address: str
    enrolment: str
    nodes: tuple[Site, ...]
    runs: tuple[RunInfo, ...]
    epoch: int = 0
    leads_until: float = 0.0
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Invitation:
    """A one-time ticket and when it expires, in seconds since the epoch."""

    ticket: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run; ``at`` in seconds since the epoch, ``detail`` depends on the kind."""

    sequence: int
    at: float
    kind: str
    node: str
    phase: str
    number: int
    detail: dict[str, Any]
