"""What a site knows about itself, as plain values: the command line and the console show the same."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedscale.errors import Conflict
from fedscale_client import policy
from fedscale_client.credentials import Credentials
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome
from fedscale_client.policy import Policy

LAST = "let none run: fedscale node pause; or any: fedscale node policy set 'apps=[]'"


def status(node: NodeHome) -> dict[str, Any]:
    """Who a node is, what it offers and whether it is at work.

    Raises:
        ConfigError: it has not joined, or a file of its home cannot be read.
    """
    settings, until = node.settings(), Credentials.of(node).expires()
    data = settings.model_dump(include={"name", "project", "federation", "address"}) | {"home": str(node.path)}
    return data | {
        "running": node.is_held(),
        "paused": policy.load(node).paused,
        "valid_until": until.isoformat(),
        "datasets": sorted(listed(node)),
    }


def exposed(node: NodeHome) -> dict[str, str]:
    """What others on this machine can do with a node's ``keys`` and ``rules``; each empty where only their owner can do anything."""
    keys = (node.key_file, node.identity_file)
    rules = (node.path, node.policy_file, node.settings_file, node.datasets_file, node.ledger)
    return {
        "keys": "others on this machine can read them" if _lets_in(keys, 0o077) else "",
        "rules": "others on this machine can change what this site allows" if _lets_in(rules, 0o022) else "",
    }


def _lets_in(paths: Iterable[Path], bits: int) -> bool:
    """Whether the permissions of one of these files or folders have one of these bits."""
    return any(stat.S_IMODE(path.stat().st_mode) & bits for path in paths if path.exists())


def closing(node: NodeHome) -> str:
    """The command that lets only the owner in."""
    return f"chmod -R go= {shlex.quote(str(node.path))}"


def pause(node: NodeHome, *, paused: bool) -> None:
    """Let nothing begin and nothing leave from now on, or go on again; a running node heeds it at once.

    Raises:
        ConfigError: the policy cannot be read.
        Conflict: somebody else is changing it all the time.
    """
    policy.change(node, lambda: policy.load(node).model_copy(update={"paused": paused}))


def approve(node: NodeHome, app: str, *, approved: bool) -> None:
    """Put an app's digest on the list of those that may run, or take it off; as long as the list is empty, any app may.

    Raises:
        ConfigError: not a digest, or the policy cannot be read.
        Conflict: it is the last one of the list, or somebody else is changing the policy all the time.
    """

    def listed_anew() -> Policy:
        apps = policy.load(node).apps
        others = [digest for digest in apps if digest != app]
        # An empty list lets any app run: nobody who takes one off means that.
        if apps and not others and not approved:
            raise Conflict("this is the last app on the list; without one any app may run", hint=LAST)
        return policy.load(node, [f"apps={[*others, app] if approved else others}"])

    policy.change(node, listed_anew)
