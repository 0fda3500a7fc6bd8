"""``fedscale run export``: a run's model in a file that every framework reads."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from fedscale import console, files
from fedscale.cli.options import Json
from fedscale.errors import ConfigError, Conflict
from fedscale.record import RunRecord
from fedscale.report.units import data_size
from fedscale.vector import Schema
from fedscale_server.answers import Detail
from fedscale_server.control import OVER
from fedscale_server.left import coordinator_of, folder_of
from fedscale_server.options import ProfileFolder, RunId
from fedscale_server.parcels import fetch
from fedscale_server.weights import safetensors_of


def export(
    run: RunId,
    *,
    out: Annotated[Path | None, typer.Option(help="The file; RUN.safetensors by default.")] = None,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Write a run's newest model as safetensors."""
    if (folder := folder_of(run)) is not None:
        what = "a simulation leaves its model in its folder"
        raise ConfigError(what, where=run, hint=f"take {folder / 'model.safetensors'}, which is such a file")
    with coordinator_of(run, profile) as control:
        detail = control.run(run)
        if not detail.model:
            raise _without(detail)
        schema = Schema.from_json(detail.schema)
        content = fetch(control, detail.model, 4 * schema.size)
    path = out or Path(f"{detail.info.run}.safetensors")
    replace_file(path, safetensors_of(detail.info.run, detail.model, schema, content))
    tensors = len(schema.tensors)
    data = {"path": str(path), "digest": detail.model, "tensors": tensors, "bytes": len(content)}
    console.emit(data, str(path), as_json=json)
    console.note(f"{tensors} tensors, {data_size(len(content))}, SHA-256 {detail.model}")


def _without(detail: Detail) -> Conflict:
    """Why a run has no model."""
    run = detail.info.run
    if tomllib.loads(RunRecord.from_json(detail.record).plan_toml)["strategy"]["name"] == "led":
        hint = f"it lies where the leader was started: runs/{run}/model.safetensors, or in the folder of its --out"
        return Conflict(f"the coordinator has no model of run {run}", why="the leader of a run keeps what it makes of the replies", hint=hint)
    if detail.info.status in OVER:
        return Conflict(f"run {run} has no model", why=f"it {detail.info.status} before the first round", hint=f"see: fedscale run show {run}")
    return Conflict(f"run {run} has no model yet", hint=f"follow it: fedscale run watch {run}")


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, making its folder where it is missing; OSError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content, mode=files.SHARED)
