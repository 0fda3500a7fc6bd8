"""How many units of privacy a declared dataset holds, and which data it is: counted by the node's own code.

Counting takes place in a process of its own, ``python -m fedscale_client.census``, which never sees an app: the node stays
small, and no code of a job can say how many patients there are.
"""

from __future__ import annotations

import json
import os
import sys
from asyncio import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.data import Dataset
from fedscale.errors import DataError, FedscaleError
from fedscale.privacy.units import units_of
from fedscale_client import datasets, failures
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome, open_private

COMMAND = (sys.executable, "-P", "-m", "fedscale_client.census")


@dataclass(frozen=True, slots=True)
class Census:
    """How many units a dataset holds, and the SHA-256 of its values."""

    units: int
    data: str


async def census(home: NodeHome, declaration: Declaration, unit: str) -> Census:
    """Count a declared dataset.

    Raises:
        DataError: it cannot be read or counted.
        OSError: no process can be started.
    """
    files.private_folder(home.log_file.parent)
    with open_private(home.log_file, os.O_WRONLY | os.O_APPEND) as log:
        process = await subprocess.create_subprocess_exec(*COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    asked = {"home": str(home.path), "declaration": declaration.model_dump(mode="json"), "unit": unit}
    try:
        out, _ = await process.communicate(json.dumps(asked).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        told = json.loads(out)
    except ValueError:
        raise DataError("the dataset could not be counted", hint="the site finds what led to it in the log of its worker") from None
    if "what" in told:
        raise DataError(told["what"], where=told["where"], hint=told["hint"])
    return Census(**told)


def count(home: Path, declaration: Declaration, unit: str) -> dict[str, Any]:
    """The census of a dataset as plain values, or the scrubbed failure that kept it from being taken; a loader's own errors pass through."""
    context = failures.Context(Path(os.devnull), "", tuple(map(str, declaration.files(home))), loading=True)
    try:
        data = datasets.read(declaration, home)
        return {"units": units_of(data, unit), "data": data.digest if isinstance(data, Dataset) else ""}
    except (FedscaleError, OSError) as error:
        failure = asdict(failures.of_error(error, context))
        return {name: failure[name] for name in ("what", "where", "hint")}


def main() -> None:
    """Count what is asked for on standard input; whatever a loader prints goes to the log."""
    asked, out = json.load(sys.stdin), os.dup(1)
    os.dup2(2, 1)
    told = count(Path(asked["home"]), Declaration(**asked["declaration"]), asked["unit"])
    with os.fdopen(out, "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    main()
