"""Writing the files of a simulation: a reader finds the old one or the new one, never half of one, also after a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fedscale import files
from fedscale.errors import ConfigError


def require_folder(path: Path) -> None:
    """Make a folder where it is missing, and see that files can be made in it.

    Raises:
        ConfigError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError("the folder cannot be used", where=str(path), why=error.strerror or type(error).__name__, hint="choose another") from None


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
