"""Writing files so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

from fedscale.errors import ConfigError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, making its folder where it is missing.

    Raises:
        ConfigError: the file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError("a file cannot be written", where=str(path), why=error.strerror or type(error).__name__) from error
