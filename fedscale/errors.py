"""Every error raised on purpose, in one tree.

Whose fault it is stands in the class name: ``PlanError`` and ``ConfigError`` are the caller's, ``UpdateRejected`` and
``ProtocolError`` are the peer's, ``PolicyRefusal`` is the site owner's decision. A message says what happened, where,
why and what to do next; it never carries a value of the data.

``FedscaleError``
    ``ConfigError`` ``PlanError`` ``BundleError`` ``DataError`` ``AppError`` ``UpdateRejected`` ``ProtocolError``
    ``TicketError`` ``AccessDenied`` ``PolicyRefusal`` ``Unreachable`` ``Busy`` ``NotFound`` ``Conflict`` ``RunFailed``
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class FedscaleError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what happened, one sentence without a final full stop.
        where: file:line, node, run or message it concerns.
        why: the reason, when ``what`` does not already say it.
        hint: the next step for the reader, usually a command.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.hint = what, where, why, hint

    def __str__(self) -> str:
        """``where: what (why); hint`` with the empty parts left out."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        head = f"{head} ({self.why})" if self.why else head
        return f"{head}; {self.hint}" if self.hint else head


class ConfigError(FedscaleError):
    """A setting, argument or local file is wrong."""

    exit_code = 2


class PlanError(FedscaleError):
    """A plan is malformed or asks for something impossible."""

    exit_code = 2


class BundleError(FedscaleError):
    """An app bundle cannot be packed, read or trusted."""

    exit_code = 2


class DataError(FedscaleError):
    """A dataset is missing, malformed or does not fit the app."""

    exit_code = 2


class AppError(FedscaleError):
    """The user's app failed or returned something that is not an answer."""

    exit_code = 1


class UpdateRejected(FedscaleError):
    """A node's answer fails a check and is not counted."""

    exit_code = 1


class ProtocolError(FedscaleError):
    """A peer sent a message that the protocol does not allow."""

    exit_code = 1


class TicketError(FedscaleError):
    """An enrolment ticket is malformed, unknown, used or expired."""

    exit_code = 4


class AccessDenied(FedscaleError):
    """The caller's certificate does not allow this call."""

    exit_code = 4


class PolicyRefusal(FedscaleError):
    """The owner of a site does not allow what a job asks."""

    exit_code = 5


class Unreachable(FedscaleError):
    """The other side cannot be reached or does not answer in time."""

    exit_code = 3


class Busy(FedscaleError):
    """The server has no room just now and says when to come back.

    Args:
        seconds: how long to wait.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "", seconds: float = 0.0) -> None:
        super().__init__(what, where=where, why=why, hint=hint)
        self.seconds = seconds


class NotFound(FedscaleError):
    """No such run, node, project, dataset or blob."""

    exit_code = 6


class Conflict(FedscaleError):
    """The thing exists already or is in a state that forbids the request."""

    exit_code = 6


class RunFailed(FedscaleError):
    """A run ended without reaching its goal."""

    exit_code = 1


class Cause(StrEnum):
    """Why a node did not contribute to a round: the typed reason every coordinator sees."""

    DATA = "data"
    CODE = "code"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"
    POLICY = "policy"
    TIMEOUT = "timeout"
    DIVERGED = "diverged"
    REJECTED = "rejected"
    LOST = "lost"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Failure:
    """A node's failure as it travels: no data values, only types, places and advice.

    Args:
        cause: the typed reason.
        what: one sentence.
        where: file:line in the bundle, dataset name or phase.
        hint: what the site or the coordinator should do next.
        traceback: scrubbed frames, one a line, innermost last.
    """

    cause: Cause
    what: str
    where: str = ""
    hint: str = ""
    traceback: str = ""

    def __str__(self) -> str:
        """``cause: where: what; hint``."""
        place = f"{self.where}: " if self.where else ""
        return f"{self.cause}: {place}{self.what}" + (f"; {self.hint}" if self.hint else "")
