"""Runs by their id at a coordinator, or by the folder that a simulation or a report has left."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedscale.cli.lazy import later
from fedscale.errors import ConfigError, Conflict, FedscaleError
from fedscale.record import RunRecord, closed_rounds
from fedscale_server.answers import Detail, RunInfo
from fedscale_server.control import Control
from fedscale_server.options import connect


def folder_of(run: str) -> Path | None:
    """The folder that is meant, for no id has a slash; ``None`` for an id."""
    return Path(run) if "/" in run else None


def left_in(run: str) -> Path:
    """Where what is made of a run goes unless somebody says otherwise: the folder it left, or one of its name in ``runs``."""
    return folder_of(run) or Path("runs", run)


def detail_of(run: str, profile: Path | None) -> Detail:
    """A run that a coordinator knows, or that has left a folder.

    Raises:
        NotFound: there is no such run.
        ConfigError: there is no profile to call a coordinator with, or the record in the folder is damaged.
    """
    folder = folder_of(run)
    if folder is not None:
        return detail_in(folder)
    with coordinator_of(run, profile) as control:
        return control.run(run)


def coordinator_of(run: str, profile: Path | None) -> Control:
    """A connection to a run's coordinator, for what nothing but a coordinator can do.

    Raises:
        ConfigError: there is no profile to call it with, or the run is a folder.
    """
    if folder_of(run) is not None:
        hint = f"see: fedscale run show {shlex.quote(run)}"
        raise ConfigError("a folder holds what a run has left, and no run that goes on", where=run, hint=hint)
    return coordinator(profile, f"the folder of that name is shown by: fedscale run show {shlex.quote(run)}/" if Path(run).is_dir() else "")


def coordinator(profile: Path | None, instead: str = "") -> Control:
    """A connection to a coordinator.

    Args:
        profile: whom to call and as whom.
        instead: what else there is to do for somebody who has none.

    Raises:
        ConfigError: there is no profile.
    """
    try:
        return connect(profile)
    except ConfigError as error:
        error.hint = f"{error.hint}; {instead}" if instead else error.hint
        raise


def detail_in(folder: Path) -> Detail:
    """What the run in a folder left, as a coordinator would tell it; the moments are not known.

    Raises:
        NotFound, Conflict, ConfigError: there is none, or it is not over, or its record is damaged.
    """
    record: RunRecord = later("fedscale.cli.compare:read")(folder)
    rounds = closed_rounds(record)
    info = RunInfo(str(folder), "", record.name, record.status, record.reason, "", rounds, rounds, 0.0, 0.0)
    return Detail(info, record.to_json(), record.model_digest, "")


def runs_in(folder: Path) -> list[RunInfo]:
    """The runs that left something in a folder, or in the folders in it, by name."""
    held = {path.parent for name in later("fedscale.cli.compare:LEFT") for path in (*folder.glob(name), *folder.glob(f"*/{name}"))}
    return [_info(place) for place in sorted(held)]


def _info(folder: Path) -> RunInfo:
    """A run in a folder, whatever may be wrong with it."""
    try:
        return detail_in(folder).info
    except FedscaleError as error:
        status = "not over" if isinstance(error, Conflict) else "damaged"
        return RunInfo(str(folder), "", "", status, f"{error.what}; {error.hint}", "", 0, 0, 0.0, 0.0)
