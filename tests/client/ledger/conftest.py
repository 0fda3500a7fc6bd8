"""A ledger of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from tests.client.ledger.samples import home_at


@pytest.fixture
def site(tmp_path: Path) -> NodeHome:
    """A home without a ledger yet."""
    return home_at(tmp_path / "site")


@pytest.fixture
def ledger(site: NodeHome) -> Ledger:
    return Ledger.open(site)
