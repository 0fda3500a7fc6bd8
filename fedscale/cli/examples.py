"""One example of each verb, as its help shows it: the words behind ``fedscale``."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "init": "init heart --template survival",
    "simulate": "simulate job.toml --clients 100 --set strategy.rounds=5",
    "sweep": "sweep job.toml --trials 30",
    "demo": "demo --stay",
    "doctor": "doctor",
    "explain": "explain policy",
    "server init": "server init --hosts hub.example.org --host 0.0.0.0",
    "server start": "server start --log json",
    "server status": "server status",
    "server open": "server open",
    "server doctor": "server doctor --json",
    "server user add": "server user add grace --role auditor",
    "server user list": "server user list",
    "server user remove": "server user remove grace",
    "project create": "project create heart",
    "project list": "project list",
    "project invite": "project invite heart --name aachen --days 3",
    "project nodes": "project nodes heart",
    "project revoke": "project revoke aachen",
    "run submit": "run submit job.toml --project heart --dry-run",
    "run lead": "run lead flower-app --project heart",
    "run list": "run list --project heart",
    "run show": "run show heart-1a2b3c",
    "run watch": "run watch heart-1a2b3c",
    "run stop": "run stop heart-1a2b3c --reason 'wrong dataset'",
    "run pause": "run pause heart-1a2b3c",
    "run resume": "run resume heart-1a2b3c",
    "run report": "run report heart-1a2b3c --out out",
    "run compare": "run compare runs/a runs/b --out comparison.html",
    "run track": "run track heart-1a2b3c --sink tensorboard --out logs",
    "run card": "run card heart-1a2b3c --out out",
    "run export": "run export heart-1a2b3c --out model.safetensors",
    "node join": "node join TICKET",
    "node start": "node start",
    "node status": "node status",
    "node data add": "node data add heart --path heart.csv --label sick --group patient",
    "node data list": "node data list",
    "node data check": "node data check heart",
    "node data remove": "node data remove heart",
    "node policy show": "node policy show",
    "node policy set": "node policy set datasets.heart.epsilon=4 require_secagg=true",
    "node policy unset": "node policy unset datasets.heart.epsilon",
    "node pause": "node pause",
    "node resume": "node resume",
    "node console": "node console",
    "node open": "node open",
    "node receipts": "node receipts --run heart-1a2b3c",
    "node doctor": "node doctor",
    "privacy plan": "privacy plan job.toml --units 400 --sites 4",
    "privacy epsilon": "privacy epsilon events.json --delta 1e-5",
    "privacy noise": "privacy noise --epsilon 4 --delta 1e-5 --sampling-rate 0.01 --steps 1000",
    "privacy spent": "privacy spent",
    "privacy free": "privacy free heart-1a2b3c",
    "privacy ledger": "privacy ledger --verify",
    "privacy statement": "privacy statement heart-1a2b3c",
    "audit verify": "audit verify --head 42:HASH",
    "audit tail": "audit tail --lines 50 --who aachen",
    "audit export": "audit export trail.jsonl",
    "audit privacy": "audit privacy --epsilon 4 --nodes 4",
    "secagg parameters": "secagg parameters --nodes 100 --adversarial 0.1 --dropout 0.2",
    "chaos kill": "chaos kill --kills 20 --nodes 4",
    "chaos pause": "chaos pause --faults 10 --nodes 4",
    "chaos partition": "chaos partition --faults 10 --nodes 4",
    "chaos disk": "chaos disk --faults 10 --nodes 4",
    "chaos clock": "chaos clock",
}
EXIT_CODES = (
    "Exit codes: 0 done, 1 a run failed, 2 usage or configuration, 3 unreachable, 4 access, 5 policy, 6 conflict or not found, 130 interrupted."
)


def below_help(path: str) -> str | None:
    """What stands below the help of a command; None below that of a noun.

    Args:
        path: its words, those behind ``fedscale``; none for the program as a whole.
    """
    if not path:
        return EXIT_CODES
    return f"Example: fedscale {EXAMPLES[path]}" if path in EXAMPLES else None
