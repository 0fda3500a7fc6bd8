"""A job that was sent from a browser: its files by name, or one zip archive of its folder, become a plan and a bundle."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fedscale import bundle
from fedscale.errors import BundleError, PlanError
from fedscale.plan import Plan
from fedscale_server.packing import pack_job


@dataclass(frozen=True, slots=True)
class Job:
    """A plan, and all files of the folder that its job file lies in; ``name`` is the job file's."""

    plan: Plan
    name: str
    files: Mapping[str, bytes]


def plan_of(sent: Mapping[str, bytes]) -> Job:
    """The job among the files that were sent.

    Raises:
        PlanError: there is no job file, more than one, or it is not valid.
        BundleError: an archive that cannot be read, or a name that leads elsewhere.
    """
    name = next(iter(sent), "")
    files = _unzipped(sent[name]) if len(sent) == 1 and name.lower().endswith(".zip") else dict(sent)
    files = _unwrapped({_plain(path): content for path, content in files.items()})
    jobs = sorted(path for path in files if "/" not in path and path.endswith(".toml"))
    if len(jobs) != 1:
        found = ", ".join(jobs) or "none"
        raise PlanError("the files hold not exactly one job file", why=f"found {found}", hint="send job.toml with its app.py, or a zip of the folder")
    try:
        text = files[jobs[0]].decode("utf-8")
    except UnicodeDecodeError:
        raise PlanError("the job file is not UTF-8", where=jobs[0]) from None
    return Job(Plan.from_toml(text, file=jobs[0]), jobs[0], files)


def bundle_of(job: Job) -> bytes:
    """The bundle of a job, the same bytes that ``fedscale run submit`` makes of the same folder.

    Raises:
        PlanError: the app that the plan names is not among the files.
        BundleError: keys, too large, or names that are not portable.
    """
    with tempfile.TemporaryDirectory(prefix="fedscale-") as scratch:
        folder = Path(scratch, "job")
        for name, content in job.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return pack_job(folder / job.name, job.plan)


def _unzipped(content: bytes) -> dict[str, bytes]:
    """The files of an archive, as long as they stay within what a bundle may hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry in entries) > bundle.MAX_BYTES or len(entries) > bundle.MAX_FILES:
                raise BundleError("the archive is too large", why=f"the limit is {bundle.MAX_BYTES >> 20} MiB and {bundle.MAX_FILES} files")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError):
        raise BundleError("the archive cannot be read", hint="send a plain zip file of the job's folder") from None


def _plain(name: str) -> str:
    """A name that stays inside the folder.

    Raises:
        BundleError: it does not.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or any(part in ("..", ".") for part in parts):
        raise BundleError("a file has a name that is not allowed", where=ascii(name[: bundle.MAX_NAME]))
    return "/".join(parts)


def _unwrapped(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the one folder that all files lie in, as archives and folders from a browser have it."""
    tops = {name.partition("/")[0] for name in files}
    wrapped = len(tops) == 1 and all("/" in name for name in files)
    return {name.partition("/")[2] if wrapped else name: content for name, content in files.items()}
