"""What of a job's folder goes to the sites: its code, and nothing that a run or a node left beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedscale import bundle
from fedscale.errors import BundleError, PlanError
from fedscale.plan import Plan

RESULTS, HOMES = "runs", ("fedscale-server", "fedscale-node")
SECRET = (".pem", ".key", ".p12", ".pfx", ".env")
SECRET_NAMES = ("id_rsa", "id_ecdsa", "id_ed25519", "credentials.json")


def pack_job(job: Path, plan: Plan) -> bytes:
    """The bundle of the folder that a job file lies in, without the results of earlier runs.

    Raises:
        PlanError: the app that the plan names is not in the folder.
        BundleError: the folder holds keys, is too large, or has names that are not portable.
    """
    folder = job.resolve().parent
    module = plan.job.app.partition(":")[0].replace(".", "/")
    if not any((folder / f"{module}{ending}").is_file() for ending in (".py", "/__init__.py")):
        raise PlanError(f"there is no module for app '{plan.job.app}'", where=f"{job}: job.app", hint=f"write it into {folder / module}.py")
    return pack_folder(folder)


def pack_folder(folder: Path, extra: Mapping[str, str] | None = None) -> bytes:
    """The bundle of a folder, without the results of earlier runs, and of ``extra`` files by name.

    Raises:
        BundleError: as ``pack_job``, or the folder has a file of that name already.
    """
    with tempfile.TemporaryDirectory(prefix="fedscale-") as scratch:
        stage = Path(scratch, "job")
        _copy(folder, stage)
        for name, text in (extra or {}).items():
            if (stage / name).exists():
                raise BundleError(f"the name '{name}' is taken by a file of the app", where=str(folder), hint="rename it")
            (stage / name).write_text(text, encoding="utf-8")
        return bundle.pack(stage)


def _copy(folder: Path, stage: Path) -> None:
    """Copy what belongs to the job, at most as much as a bundle may hold.

    Raises:
        BundleError: it is more, a secret is among it, or a file is none that can be read.
    """
    room = bundle.MAX_BYTES

    def leave_out(inside: str, names: list[str]) -> set[str]:
        nonlocal room
        for path in (Path(inside, name) for name in names if not name.startswith(".")):
            if path.suffix in SECRET or path.name in (*HOMES, *SECRET_NAMES):
                where, hint = path.relative_to(folder), "keep job.toml and its code in a folder of their own"
                raise BundleError("the job's folder holds what must not leave this machine", where=str(where), hint=hint)
            room -= path.lstat().st_size if path.is_file() and not _result(path, folder) else 0
        if room < 0:
            raise BundleError(f"the job's folder holds more than {bundle.MAX_BYTES >> 20} MiB", where=str(folder), hint="keep data out of it")
        return {name for name in names if name.startswith(".") or name == "__pycache__" or _result(Path(inside, name), folder)}

    try:
        shutil.copytree(folder, stage, symlinks=True, ignore=leave_out)
    except shutil.Error as error:
        path, _, why = error.args[0][0]
        hint = "keep what is not code out of the job's folder"
        raise BundleError("a file of the job cannot be read", where=str(Path(path).relative_to(folder)), why=str(why), hint=hint) from None


def _result(path: Path, folder: Path) -> bool:
    return path == folder / RESULTS
