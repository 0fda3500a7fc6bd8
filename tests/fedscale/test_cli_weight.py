"""What a command must not import, because whoever types it waits for that: times depend on the machine, imports do not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedscale import report

HEAVY = {"torch", "flwr", "sqlmodel", "sqlalchemy", "alembic", "sklearn", "pandas"}
LIGHT = {
    "fedscale.cli": {"numpy", "grpc", "pydantic", "asyncio", "structlog", "cryptography", "rich.progress", "fedscale.report.page"},
    "fedscale_client.cli": {"numpy", "grpc", "asyncio", "structlog", "fedscale.plan"},
    "fedscale_client.cli_data": {"numpy", "grpc", "asyncio", "structlog", "cryptography", "fedscale.plan"},
    "fedscale_client.cli_policy": {"numpy", "grpc", "asyncio", "structlog", "cryptography", "fedscale.plan"},
    "fedscale_client.cli_privacy": {
        "scipy",
        "grpc",
        "asyncio",
        "structlog",
        "cryptography.x509",
        "fedscale.plan",
        "fedscale.vector",
        "fedscale.tables",
    },
    "fedscale_client.cli_ledger": {"numpy", "grpc", "asyncio", "structlog", "cryptography.x509", "fedscale.plan"},
    "fedscale_client.join": {"numpy", "structlog", "rich.progress", "fedscale.plan", "fedscale.vector"},
    "fedscale_client.cli_doctor": {"rich.progress", "fedscale.plan", "fedscale.vector"},
    "fedscale_server.cli_start": {"numpy", "grpc", "structlog", "fedscale.plan"},
    "fedscale_server.cli_server": {"numpy", "pydantic", "structlog"},
    "fedscale_server.cli_project": {"numpy", "pydantic", "structlog"},
    "fedscale_server.cli_run": {"numpy", "pydantic", "structlog", "fedscale.report.page"},
    "fedscale_server.cli_submit": {"structlog", "cryptography", "rich.progress", "fedscale.data", "fedscale.report.page", "fedscale_server.follow"},
    "fedscale_server.cli_export": {"pydantic", "structlog", "fedscale.report.page"},
    "fedscale_server.control": {"numpy", "pydantic", "cryptography", "fedscale.letters"},
    "fedscale.plan": {"grpc", "asyncio", "cryptography", "fedscale.data"},
    "fedscale.wire.codec": {"numpy", "grpc"},
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_command_imports_no_more_than_it_needs(module: str) -> None:
    program = f"import sys, {module}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert (HEAVY | LIGHT[module]) & set(done.stdout.split()) == set()


def test_the_report_is_still_where_it_is_looked_for() -> None:
    assert callable(report.write)
    with pytest.raises(AttributeError, match="'fedscale.report' has no attribute 'wirte'"):
        report.wirte  # noqa: B018 - looking is the test
