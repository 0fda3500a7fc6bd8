"""``fedscale node doctor``: whether a site has what it needs to take part."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc

from fedscale.cli.doctor import FAULT, FINE, WARNING, Finding, certificates, disk, packages, tell
from fedscale.cli.options import Json
from fedscale.errors import FedscaleError
from fedscale_client import facts, policy
from fedscale_client.datasets import check
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.options import HOME, HomeFolder, opened

REACH_SECONDS = 5.0
NOTHING = "/fedscale.v1.Node/Nothing"


def doctor(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Check this node: certificate, coordinator, datasets, room."""
    node = opened(home)
    findings = [*certificates(home, datetime.now(UTC)), _coordinator(node), *_datasets(node), disk(home), *_posture(node)]
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


def _posture(node: NodeHome) -> Iterator[Finding]:
    """What protects this site's data, and what does not yet."""
    status = facts.status(node)
    rules = policy.load(node)
    if status["paused"]:
        yield Finding("paused", WARNING, "nothing begins and nothing leaves", "go on: fedscale node resume")
    readable = [path for path in (node.key_file, node.identity_file) if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    hint = f"chmod -R go= {node.path}" if readable else ""
    yield Finding("keys", FAULT if readable else FINE, "others on this machine can read them" if readable else "only their owner can read them", hint)
    if node.ledger.exists():
        problem, _ = reading.verify(node)
        yield Finding("ledger", FAULT if problem else FINE, problem or "verifies", "see: fedscale privacy ledger --verify" if problem else "")
    advice = "" if rules.require_secagg else "fedscale node policy set require_secagg=true"
    sums = "answers leave by secure aggregation only" if rules.require_secagg else "single updates may be readable by the coordinator"
    yield Finding("updates", FINE if rules.require_secagg else WARNING, sums, advice)
    for name in status["datasets"]:
        cap = rules.of(name).cap
        found = f"at most epsilon {cap.epsilon:g} for each {cap.unit}" if cap else "no cap on what it gives away"
        yield Finding(f"budget {name}", FINE if cap else WARNING, found, "" if cap else f"fedscale node policy set datasets.{name}.epsilon=4")
    apps = f"{len(rules.apps)} approved" if rules.apps else "any may run"
    yield Finding("apps", FINE if rules.apps else WARNING, apps, "" if rules.apps else "approve them one by one: fedscale node console")


def _datasets(node: NodeHome) -> Iterator[Finding]:
    """Whether each declared dataset can be read and trained on."""
    offered = sorted(listed(node))
    if not offered:
        yield Finding("datasets", WARNING, "none is declared", "declare one: fedscale node data add NAME --path FILE.csv --label COLUMN")
    for name in offered:
        try:
            problems = check(node, name)
        except FedscaleError as error:
            yield Finding(f"dataset {name}", FAULT, f"{error.where}: {error.what}" if error.where else error.what, error.hint)
        else:
            yield Finding(f"dataset {name}", WARNING if problems else FINE, "; ".join(problems) or "can be trained on")
