"""``fedscale run card``: what there is to say about a run's model, to be filled in, printed and kept beside it."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import ConfigError
from fedscale.record import RunRecord
from fedscale.report import card_files, model_card
from fedscale_server.left import detail_of, left_in
from fedscale_server.options import ProfileFolder, RunOrFolder

MOST = 1 << 20


def card(
    run: RunOrFolder,
    *,
    statement: Annotated[
        list[Path] | None, typer.Option(help="What a site states, from: fedscale privacy statement RUN --json. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; runs/RUN by default, or the folder itself.")] = None,
    json: Json = False,
    profile: ProfileFolder = None,
) -> None:
    """Write a run's model card as a page, as Markdown and as JSON."""
    statements = [_statement(path) for path in statement or ()]
    told = model_card(RunRecord.from_json(detail_of(run, profile).record), statements)
    files = card_files(told, out or left_in(run))
    console.emit({name: str(path) for name, path in files.items()}, "\n".join(map(str, files.values())), as_json=json)


def _statement(path: Path) -> Mapping[str, Any]:
    """A site's statement from its file, with or without the envelope it was printed in.

    Raises:
        ConfigError: it is none.
    """
    hint = "at the site: fedscale privacy statement RUN --json > site.json"
    try:
        with path.open("rb") as file:
            found = json_.loads(file.read(MOST))
    except OSError as error:
        raise ConfigError("a statement cannot be read", where=str(path), why=error.strerror or "", hint=hint) from None
    except (ValueError, RecursionError):
        raise ConfigError("this is no statement of a site", where=str(path), hint=hint) from None
    told = found.get("data", found) if isinstance(found, dict) else None
    if not isinstance(told, dict) or not {"run", "site"} <= set(told):
        raise ConfigError("this is no statement of a site", where=str(path), hint=hint)
    return told
