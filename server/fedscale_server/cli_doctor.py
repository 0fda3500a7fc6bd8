"""``fedscale server doctor``: whether a coordinator is sound, and what protects it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedscale.cli.doctor import FAULT, FINE, WARNING, Finding, certificates, database, disk, packages, tell
from fedscale.cli.options import Json
from fedscale.errors import ConfigError, RunFailed
from fedscale.web.serving import is_loopback
from fedscale_server.cli_start import DEFAULT_HOME, ServerHome
from fedscale_server.home import Home, closing, exposed
from fedscale_server.settings import Settings, load
from fedscale_server.trail import Trail


def doctor(*, home: ServerHome = DEFAULT_HOME, json: Json = False) -> None:
    """Check this coordinator: certificates, database, audit trail, what is open to whom."""
    Home.load(home)
    settings = load(home, {})
    findings = [*certificates(home, datetime.now(UTC)), *database(home), disk(home), _trail(home), _private(home), *_posture(settings)]
    tell([*findings, *(finding for finding in packages() if finding.name == "grpc")], as_json=json)


def _trail(home: Path) -> Finding:
    """Whether the audit trail verifies."""
    try:
        lines, _ = Trail(home, lambda: datetime.now(UTC)).verify()
    except (RunFailed, ConfigError) as error:
        return Finding("audit trail", FAULT, error.why or error.what, error.hint)
    return Finding("audit trail", FINE, f"{lines} lines verify")


def _private(home: Path) -> Finding:
    """Whether only the owner can read what proves something."""
    if (path := exposed(home)) is None:
        return Finding("keys", FINE, f"only their owner can read them in {home}")
    return Finding("keys", FAULT, f"others on this machine can read {path}", closing(home))


def _posture(settings: Settings) -> Iterator[Finding]:
    """What is open to whom; each line says what it protects from."""
    yield Finding("wire", FINE, "mutual TLS on both ports, which cannot be turned off")
    here = is_loopback(settings.host)
    yield Finding("reach", FINE, f"listens at {settings.host}, {'this machine only' if here else 'other machines may connect'}")
    if not settings.web:
        yield Finding("dashboard", FINE, "is not served")
    elif is_loopback(settings.web_host):
        yield Finding("dashboard", FINE, "this machine only; logins are slowed, sessions end after 12 hours")
    else:
        yield Finding("dashboard", WARNING, f"open at {settings.web_host}, over TLS, with passwords", "let only a trusted network reach that port")
    encrypted = not settings.database.startswith("postgresql") or "sslmode=" in settings.database or "localhost" in settings.database
    state, hint = (FINE, "") if encrypted else (WARNING, "add ?sslmode=verify-full to the URL of the database")
    yield Finding("database line", state, "stays on this machine or is encrypted" if encrypted else "may be read on its way", hint)
