"""What the commands that call a coordinator share: whom to call, and how they show times."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedscale_server.control import Control
from fedscale_server.profile import Profile

ProfileFolder: TypeAlias = Annotated[
    Path | None, typer.Option("--profile", envvar="FEDSCALE_PROFILE", help="Folder with the key and certificate to call a coordinator with.")
]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
RunOrFolder: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the folder a simulation left, with a slash: runs/NAME.")]


def connect(folder: Path | None) -> Control:
    """A connection with the profile in a folder, by default the operator's own."""
    return Control(Profile.load(folder))


def moment(seconds: float) -> str:
    """A time of day in UTC, as all times are told; ``never`` for 0."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else "never"
