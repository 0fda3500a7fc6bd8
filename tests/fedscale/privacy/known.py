"""Published and recomputed answers of differential privacy, where the machine has them."""

from __future__ import annotations

import json
from typing import Any

from fedscale.privacy.events import Spend
from tests.conftest import shared_data

RANGES = "poisson_subsampled_gaussian"


def vectors(*kinds: str) -> list[dict[str, Any]]:
    """The known answers of some kinds; call only where shared data are required."""
    folder = shared_data()
    assert folder is not None
    content = json.loads((folder / "kat_dp.json").read_text(encoding="utf-8"))
    return [vector for vector in content["vectors"] if vector["kind"] in kinds]


def spend_of(vector: dict[str, Any]) -> Spend:
    """The event behind an answer."""
    given = vector["params"]
    return Spend(RANGES, given["noise_multiplier"], given.get("sampling_probability", 1.0), given["steps"])
