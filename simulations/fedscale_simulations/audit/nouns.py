"""The verbs of ``fedscale audit``: where each is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

audit = group(
    "Check on this machine that what is promised is kept.",
    {"privacy": Entry("fedscale_simulations.audit.cli:privacy", "Send canaries and attacks through clipping, ring, masks and noise.")},
)
