"""A Flower app as the archive in which Flower sends it to supernodes; without flwr."""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fedscale.errors import ConfigError
from fedscale.flower.directory import FILE

KINDS = (".py", ".toml", ".md", ".txt", ".json", ".yaml", ".yml")
MANIFEST, LONG_AGO = ".info/CONTENT", (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Parcel:
    """An app on its way.

    Args:
        id: ``publisher/name``.
        version: the project's.
        content: the archive.
    """

    id: str
    version: str
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the archive, in hex."""
        return hashlib.sha256(self.content).hexdigest()


def pack(folder: Path) -> Parcel:
    """The archive of an app's directory: the same bytes for the same files.

    Raises:
        ConfigError: Flower would not take it, for it has no publisher, name or version.
    """
    tree = tomllib.loads((folder / FILE).read_text(encoding="utf-8"))
    project, app = tree.get("project", {}), tree["tool"]["flwr"]["app"]
    facts = {"publisher": app.get("publisher"), "name": project.get("name"), "version": project.get("version")}
    if absent := [name for name, value in facts.items() if not isinstance(value, str)]:
        why = "a supernode takes no app without it"
        raise ConfigError(f"the app has no {absent[0]}", where=str(folder / FILE), why=why, hint='[project] version = "1.0.0"')
    tree["tool"]["flwr"].pop("federations", None)
    files = {FILE: tomli_w.dumps(tree).encode()}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in KINDS)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if name != FILE and not any(part.startswith((".", "__pycache__")) for part in name.split("/")):
            files[name] = path.read_bytes()
    lines = [f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}" for name, content in files.items()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*files.items(), (MANIFEST, "\n".join(lines).encode())):
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content, zipfile.ZIP_DEFLATED)
    return Parcel(f"{facts['publisher']}/{facts['name']}", str(facts["version"]), out.getvalue())
