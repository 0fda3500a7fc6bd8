"""What left a site and what it cost, as plain values: the command line and the console show the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fedscale.cli.lazy import later
from fedscale_client.home import NodeHome
from fedscale_client.ledger import accounts, reading, state
from fedscale_client.ledger.accounts import Account
from fedscale_client.ledger.state import Hold, Item


def items(node: NodeHome) -> tuple[Item, ...]:
    """All reservations of the ledger; none before there is one.

    Raises:
        ConfigError: the ledger does not verify.
    """
    return reading.items(node)


def spent(node: NodeHome, items: Sequence[Item], delta: float | None = None) -> list[Account]:
    """What this site has spent, by population and unit, against its caps.

    Args:
        node: whose.
        items: all reservations of its ledger.
        delta: at which epsilon is told; by default the cap's, else the plans'.

    Raises:
        ConfigError: the policy cannot be read.
    """
    rules = later("fedscale_client.policy:load")(node)
    caps = {rules.population(name): own.cap for name, own in rules.datasets.items() if own.cap}
    return accounts.accounts(items, caps, datetime.now(UTC), delta)


def holds(node: NodeHome) -> tuple[Hold, ...]:
    """The room that runs keep now, under whatever cap.

    Raises:
        ConfigError: the ledger does not verify.
    """
    return state.holds(items(node), datetime.now(UTC))


def receipts(node: NodeHome, run: str = "") -> list[dict[str, Any]]:
    """What left this site, answer by answer, of one run or of all.

    Raises:
        ConfigError: the ledger does not verify.
    """
    return [accounts.receipt(item) for item in items(node) if item.release and run in ("", item.claim.run)]
