"""Write secagg_v1.json: one round of four nodes, one of which drops out, with all its inputs. Run from the repository's root:

python -m tests.vectors.make_secagg_v1
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedscale.secagg import messages as m
from fedscale.secagg.node import Site
from fedscale.secagg.simulate import Step
from fedscale.secagg.terms import TERMS
from tests.fedscale.secagg.samples import World

FILE = Path(__file__).with_name("secagg_v1.json")
DROPPED = "site-0001"


def scripted(name: str, drawn: list[str]) -> Callable[[int], bytes]:
    """Bytes that look random and are the same each time; each draw is written down."""

    def draw(size: int) -> bytes:
        value = hashlib.shake_256(f"{name}/{len(drawn)}".encode()).digest(size)
        drawn.append(value.hex())
        return value

    return draw


def make() -> dict[str, Any]:
    """The round; only the ciphertexts of ML-KEM differ from one run to the next."""
    world = World(4, length=9, limit=1 << 20, dropout=0.3)
    drawn: dict[str, list[str]] = {name: [] for name in world.names}
    sites: dict[str, Site] = {name: replace(site, entropy=scripted(name, drawn[name])) for name, site in world.sites.items()}
    world.sites = sites
    world.start({})
    world.until(Step.VECTOR)
    world.finish(silent=[DROPPED])
    said = [(name, m.decode(reply.message), reply.body) for name, reply in world.replies]
    return {
        "terms": TERMS.write(world.terms).hex(),
        "keys": [m.encode(message).hex() for _, message, _ in said if isinstance(message, m.Keys)],
        "drawn": drawn,
        "ciphertexts": {name: {str(i.seat): i.data.hex() for i in message.items} for name, message, _ in said if isinstance(message, m.Agreement)},
        "vectors": {name: words.tolist() for name, words in world.vectors.items()},
        "dropped": DROPPED,
        "session": next(message.session.hex() for _, message, _ in said if isinstance(message, m.Masked)),
        "masked": {name: body.tolist() for name, _, body in said if body is not None and not isinstance(body, bytes)},
        "opened": {name: m.encode(message).hex() for name, message, _ in said if isinstance(message, m.Opened)},
        "sum": world.server.outcome.words.tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
