"""Writing the files of a simulation: a reader finds the old one or the new one, never half of one, also after a power cut."""

from __future__ import annotations

from pathlib import Path

from fedscale import files
from fedscale.errors import ConfigError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, making its folder where it is missing.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content, mode=files.SHARED)
    except OSError as error:
        raise ConfigError("a file cannot be written", where=str(path), why=error.strerror or type(error).__name__) from error
