"""``fedscale node doctor``: whether a site has what it needs to take part."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc

from fedscale.cli.doctor import FAULT, FINE, WARNING, Finding, certificates, disk, packages, tell
from fedscale.cli.options import Json
from fedscale.errors import FedscaleError
from fedscale_client.datasets import check
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome
from fedscale_client.options import HOME, HomeFolder, opened

REACH_SECONDS = 5.0
NOTHING = "/fedscale.v1.Node/Nothing"


def doctor(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Check this node: certificate, coordinator, datasets, room."""
    node = opened(home)
    findings = [*certificates(home, datetime.now(UTC)), _coordinator(node), *_datasets(node), disk(home)]
    tell([*findings, *(finding for finding in packages() if finding.name in {"grpc", "torch"})], as_json=json)


def _coordinator(node: NodeHome) -> Finding:
    """Whether the coordinator answers and takes this node's certificate."""
    settings, credentials = node.settings(), node.credentials()
    secure = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
    override = [("grpc.ssl_target_name_override", settings.server_name)] if settings.server_name else []
    with grpc.secure_channel(settings.address, secure, override) as channel:
        # No coordinator knows this method; that it says so is the sign of life.
        ask: Any = channel.unary_unary(NOTHING)
        try:
            ask(b"", timeout=REACH_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                hint = "check the address, the network and the firewall; only an outbound connection to that port is needed"
                return Finding("coordinator", FAULT, f"no answer from {settings.address} within {REACH_SECONDS:g} s", hint)
    return Finding("coordinator", FINE, f"{settings.address} answers")


def _datasets(node: NodeHome) -> Iterator[Finding]:
    """Whether each declared dataset can be read and trained on."""
    offered = sorted(listed(node))
    if not offered:
        yield Finding("datasets", WARNING, "none is declared", "declare one: fedscale node data add NAME --path FILE.csv --label COLUMN")
    for name in offered:
        try:
            problems = check(node, name)
        except FedscaleError as error:
            yield Finding(f"dataset {name}", FAULT, str(error), error.hint)
        else:
            yield Finding(f"dataset {name}", WARNING if problems else FINE, "; ".join(problems) or "can be trained on")
