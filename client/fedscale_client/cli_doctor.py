"""``fedscale node doctor``: whether a site has what it needs to take part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime

from fedscale.cli.doctor import FAULT, FINE, WARNING, Finding, certificates, disk, gpus, packages, tell
from fedscale.cli.options import Json
from fedscale.errors import FedscaleError, Unreachable
from fedscale_client import chronicle, facts, policy
from fedscale_client.datasets import check
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome
from fedscale_client.ledger import reading
from fedscale_client.ledger.claims import to_set
from fedscale_client.options import HOME, HomeFolder, opened
from fedscale_client.standing import REJOIN, refusal

REACH_SECONDS = 5.0


def doctor(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Check this node: certificate, coordinator, datasets, room."""
    node = opened(home)
    findings = [*certificates(home, datetime.now(UTC)), _coordinator(node), *_datasets(node), disk(home), *_writable(node), *_posture(node)]
    tell([*findings, *(finding for finding in packages() if finding.name in {"grpc", "torch"}), *gpus()], as_json=json)


def _coordinator(node: NodeHome) -> Finding:
    """Whether the coordinator answers and takes this node's certificate."""
    address, problem = node.settings().address, refusal(node, REACH_SECONDS)
    if isinstance(problem, Unreachable):
        return Finding("coordinator", FAULT, f"no answer from {problem.where or address}: {problem.why or problem.what}", problem.hint)
    if problem is not None:
        return Finding("coordinator", FAULT, f"{address} does not accept this node: {problem.what}", REJOIN)
    return Finding("coordinator", FINE, f"{address} answers and accepts this node")


def _writable(node: NodeHome) -> Iterator[Finding]:
    """Whether whoever asks could run the node: it keeps its ledger, answers and log in its home."""
    if not os.access(node.path, os.W_OK | os.X_OK):
        yield Finding("home", FAULT, f"this user cannot write to {node.path}", "run as its owner, or give the folder to this user")


def _posture(node: NodeHome) -> Iterator[Finding]:
    """What protects this site's data, and what does not yet."""
    status = facts.status(node)
    rules = policy.load(node)
    if status["paused"]:
        yield Finding("paused", WARNING, "nothing begins and nothing leaves", "go on: fedscale node resume")
    for name, problem in facts.exposed(node).items():
        sound = f"only their owner can {'read' if name == 'keys' else 'change'} them"
        yield Finding(name, FAULT if problem else FINE, problem or sound, facts.closing(node) if problem else "")
    if node.ledger.exists():
        problem, _ = reading.verify(node, chronicle.noted(node))
        yield Finding("ledger", FAULT if problem else FINE, problem or "verifies", "see: fedscale privacy ledger --verify" if problem else "")
    advice = "" if rules.require_secagg else "fedscale node policy set require_secagg=true"
    sums = "answers leave by secure aggregation only" if rules.require_secagg else "single updates may be readable by the coordinator"
    yield Finding("updates", FINE if rules.require_secagg else WARNING, sums, advice)
    for name in status["datasets"]:
        cap = rules.of(name).cap
        found = f"at most epsilon {cap.epsilon:g} for each {cap.unit}" if cap else "no cap on what it gives away"
        yield Finding(f"budget {name}", FINE if cap else WARNING, found, "" if cap else to_set(name, epsilon=4, units='["record"]'))
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
