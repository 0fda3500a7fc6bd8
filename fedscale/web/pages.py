"""Templates and static files: what is common lies here, each house adds folders of its own."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from fastapi.responses import FileResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

import fedscale
from fedscale import report
from fedscale.errors import NotFound
from fedscale.report.figures import FULL_NAMES, metric_title
from fedscale.report.units import data_size, duration, number

HERE = Path(__file__).parent
MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def moment(seconds: float) -> str:
    """A time of day in UTC; ``never`` for 0."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" if seconds else "never"


def environment(folder: Path, pages: tuple[tuple[str, str], ...], **more: object) -> Environment:
    """The templates of a house: its own in ``folder`` before the common ones.

    Args:
        folder: where its templates lie.
        pages: address and name of each page in its bar.
        more: what all its templates know besides.
    """
    made = Environment(
        loader=FileSystemLoader([folder, HERE / "templates"]), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {"number": number, "data_size": data_size, "duration": duration, "moment": moment, "metric_title": metric_title}
    made.globals |= {"pages": pages, "version": fedscale.__version__, "phase_names": FULL_NAMES, **more}
    return made


def static_files(*folders: Path) -> dict[str, Path]:
    """Style sheets, scripts and images by name: the common ones, the reports' style, and those of these folders."""
    found = [path for folder in (HERE / "static", *folders) for path in folder.iterdir()]
    return {path.name: path for path in (*found, Path(report.__file__).with_name("style.css"))}


def static_file(files: dict[str, Path], name: str) -> Response:
    """One of them.

    Raises:
        NotFound: there is none of that name.
    """
    path = files.get(name)
    if path is None:
        raise NotFound("there is no such file")
    return FileResponse(path, media_type=MEDIA[path.suffix], headers={"cache-control": "no-cache"})


def inside(address: str) -> str:
    """Where to go on after a login: a page of ours, whatever was asked for."""
    # Browsers leave out tabs and line ends, and take a backslash for a slash.
    return address if re.fullmatch(r"/(?![/\\])[!-~]*", address) else "/"
