"""``fedscale doctor``: what this machine has of what fedscale needs."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from fedscale import console
from fedscale.cli.options import Json
from fedscale.errors import ConfigError

ROOM_BYTES = 1 << 30
MEMBER_PORT, TICKET_PORT = 8470, 8471
DRIVER = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
DRIVER_SECONDS = 10.0
FOREVER = 9999  # the year in which the lease of a coordinator alone ends
FINE, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing; ``hint`` says what to do unless it is fine."""

    name: str
    state: str
    found: str
    hint: str = ""


def doctor(
    *,
    server_home: Annotated[Path, typer.Option(envvar="FEDSCALE_SERVER_HOME", help="A coordinator's folder.")] = Path("fedscale-server"),
    node_home: Annotated[Path, typer.Option(envvar="FEDSCALE_NODE_HOME", help="A node's folder.")] = Path("fedscale-node"),
    json: Json = False,
) -> None:
    """Check what fedscale needs on this machine."""
    findings = [_python(), *packages(), *gpus(), disk(Path.cwd()), *_ports(), *database(server_home)]
    findings += [finding for home in (server_home, node_home) for finding in certificates(home, datetime.now(UTC))]
    tell(findings, as_json=json)


def tell(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found.

    Raises:
        ConfigError: something is at fault.
    """
    faults = [finding for finding in findings if finding.state == FAULT]
    data = {"healthy": not faults, "checks": [asdict(finding) for finding in findings]}
    problem = ConfigError(f"{len(faults)} of {len(findings)} checks failed", where=faults[0].name, hint=faults[0].hint) if faults else None
    if as_json and problem:
        raise typer.Exit(console.refuse(problem, as_json=True, data=data))
    rows = [(finding.name, finding.state, finding.found, finding.hint) for finding in findings]
    console.emit(data, console.table(("what", "state", "found", "next"), rows), as_json=as_json)
    if problem:
        raise problem


def _python() -> Finding:
    state = FINE if sys.version_info >= (3, 11) else FAULT
    return Finding("python", state, platform.python_version(), "" if state == FINE else "install Python 3.11 or newer")


def packages() -> Iterator[Finding]:
    """The packages that not every machine has, by what needs them; none of them is imported."""
    needs = {
        "grpc": ("grpcio", FAULT, "pip install fedscale-fl"),
        "torch": ("torch", WARNING, "to train or simulate: pip install 'fedscale-fl[torch]'"),
        "scikit-learn": ("scikit-learn", WARNING, "for the demo: pip install 'fedscale-fl[demo]'"),
        "psycopg": ("psycopg", FINE, "for PostgreSQL: pip install 'fedscale-fl[postgres]'"),
    }
    for name, (distribution, severity, hint) in needs.items():
        try:
            yield Finding(name, FINE, importlib.metadata.version(distribution))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, severity, "not installed", hint)


def gpus() -> Iterator[Finding]:
    """The GPUs that the driver knows, with their memory, and whether torch is a build that computes on them; torch is not imported."""
    if shutil.which(DRIVER[0]) is None:
        yield Finding("gpu", FINE, "none; what is trained here is trained on the processor")
        return
    try:
        told = subprocess.run(DRIVER, capture_output=True, text=True, check=True, timeout=DRIVER_SECONDS).stdout
        cards = [[part.strip() for part in line.split(",")] for line in told.splitlines()]
        found = [f"{name}, {int(total) / 1024:.0f} GiB, {int(free) / 1024:.0f} GiB free" for name, total, free in cards]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        yield Finding("gpu", WARNING, f"the driver does not answer: {type(error).__name__}", f"look at: {DRIVER[0]}")
        return
    # Builds of torch name what they compute on behind their version; that of no name has CUDA.
    idle = any(finding.name == "torch" and finding.found.endswith("+cpu") for finding in packages())
    hint = "this build of torch uses the processor only: install one with CUDA" if idle else ""
    for at, card in enumerate(found):
        yield Finding(f"gpu {at}", WARNING if idle else FINE, card, hint)


def disk(folder: Path) -> Finding:
    """Whether a folder's disk has room for models and bundles."""
    free = shutil.disk_usage(folder).free
    state = FINE if free >= ROOM_BYTES else WARNING
    return Finding("disk", state, f"{free / 1e9:.1f} GB free in {folder}", "" if state == FINE else "models and bundles need room; free some")


def _ports() -> Iterator[Finding]:
    """Whether this machine can talk to itself, and whether a coordinator's usual ports are free."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), timeout=2.0):
            yield Finding("loopback", FINE, "127.0.0.1 answers")
    except OSError as error:
        yield Finding("loopback", FAULT, error.strerror or type(error).__name__, "allow connections to 127.0.0.1")
    taken = [str(port) for port in (MEMBER_PORT, TICKET_PORT) if _taken(port)]
    found = f"{' and '.join(taken)} taken" if taken else f"{MEMBER_PORT} and {TICKET_PORT} are free"
    yield Finding(
        "ports", WARNING if taken else FINE, found, "a coordinator runs already, or choose others: fedscale server init --port" if taken else ""
    )


def _taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def database(home: Path) -> Iterator[Finding]:
    """The coordinator's database where there is a coordinator, else whether SQLite can do what one needs."""
    url = _database_url(home)
    if url.startswith("postgresql"):
        yield from _postgres(url)
        return
    stored = home / "server.db"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(url.removeprefix("sqlite:///")) if url else stored if stored.exists() else Path(scratch, "try.db")
        try:
            with closing(sqlite3.connect(path, timeout=2.0)) as connection:
                mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                sound = connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            yield Finding("database", FAULT, str(error), f"check {path}")
            return
    state = FINE if (mode, sound) == ("wal", "ok") else FAULT
    yield Finding("database", state, f"SQLite {sqlite3.sqlite_version}, {mode}, {sound}", "" if state == FINE else "use a local disk")


def _database_url(home: Path) -> str:
    """What ``server.toml`` says; empty where there is none."""
    try:
        return str(tomllib.loads((home / "server.toml").read_text(encoding="utf-8")).get("database", ""))
    except (OSError, ValueError):
        return ""


def _postgres(url: str) -> Iterator[Finding]:
    """Whether a database answers, and which of several coordinators leads."""
    import psycopg

    try:
        with psycopg.connect(url.replace("+psycopg", ""), connect_timeout=3) as connection:
            yield Finding("database", FINE, f"PostgreSQL {connection.info.server_version // 10_000}")
            if connection.execute("SELECT to_regclass('lease')").fetchone() != (None,):
                lease = "SELECT holder, extract(epoch FROM lease_until)::float8, lease_until > clock_timestamp() FROM lease WHERE epoch > 0"
                yield from (_leader(*row) for row in connection.execute(lease))
    except psycopg.Error as error:
        yield Finding("database", FAULT, type(error).__name__, "is the database running, and its URL in server.toml right?")


def _leader(holder: str, until: float, lasts: bool) -> Finding:  # noqa: FBT001 - the columns of a row
    """Who leads and until when; a coordinator alone leads until a time that no calendar needs."""
    if not lasts:
        return Finding("leader", WARNING, f"nobody; {holder} was the last", "start a coordinator: fedscale server start")
    end = datetime.fromtimestamp(until, UTC)
    return Finding("leader", FINE, holder if end.year == FOREVER else f"{holder} until {end:%Y-%m-%d %H:%M:%S} UTC, unless it renews its lease")


def certificates(home: Path, now: datetime) -> Iterator[Finding]:
    """How long each certificate in a home is valid; those that renew themselves only matter once they have expired."""
    for path in sorted(home.rglob("*.pem")):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError):
            continue
        left = certificate.not_valid_after_utc - now
        if certificate.not_valid_before_utc > now:
            when = f"valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
            yield Finding(f"certificate {path}", FAULT, when, "set this machine's clock")
            continue
        state = FAULT if left <= timedelta() else WARNING if left < timedelta(hours=2) else FINE
        when = f"{'expired' if state == FAULT else 'valid until'} {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        hint = "" if state == FINE else "start the coordinator or the node to renew it; once expired, and by a right clock, join with a new ticket"
        yield Finding(f"certificate {path}", state, when, hint)
