"""What a site knows about itself, as plain values: the command line and the console show the same."""

from __future__ import annotations

from typing import Any

from fedscale.errors import Conflict
from fedscale_client import policy
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome


def status(node: NodeHome) -> dict[str, Any]:
    """Who a node is, what it offers and whether it is at work.

    Raises:
        ConfigError: it has not joined, or a file of its home cannot be read.
    """
    settings, until = node.settings(), node.credentials().expires()
    data = settings.model_dump(include={"name", "project", "federation", "address"}) | {"home": str(node.path)}
    return data | {
        "running": is_running(node),
        "paused": policy.load(node).paused,
        "valid_until": until.isoformat(),
        "datasets": sorted(listed(node)),
    }


def is_running(node: NodeHome) -> bool:
    """Whether a process holds this home."""
    try:
        with node.locked():
            return False
    except Conflict:
        return True


def pause(node: NodeHome, *, paused: bool) -> None:
    """Let nothing begin and nothing leave from now on, or go on again; a running node heeds it at once.

    Raises:
        ConfigError: the policy cannot be read.
    """
    policy.save(node, policy.load(node).model_copy(update={"paused": paused}))


def approve(node: NodeHome, app: str, *, approved: bool) -> None:
    """Put an app's digest on the list of those that may run, or take it off; as long as the list is empty, any app may.

    Raises:
        ConfigError: not a digest, or the policy cannot be read.
    """
    rules = policy.load(node)
    others = [digest for digest in rules.apps if digest != app]
    policy.save(node, policy.load(node, [f"apps={[*others, app] if approved else others}"]))
