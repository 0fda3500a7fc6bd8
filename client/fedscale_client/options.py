"""What the commands of a node share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedscale_client.home import NodeHome

HOME = Path("fedscale-node")
HomeFolder: TypeAlias = Annotated[Path, typer.Option("--home", envvar="FEDSCALE_NODE_HOME", help="The node's folder.")]


def opened(folder: Path) -> NodeHome:
    """The home of a node that has joined.

    Raises:
        ConfigError: it has not.
    """
    home = NodeHome(folder.absolute())
    home.settings()
    return home
