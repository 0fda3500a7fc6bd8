"""``fedscale audit``: where each verb is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

audit = group(
    "Check that what is promised is kept, and see who did what.",
    {
        "privacy": Entry("fedscale_simulations.audit.cli:privacy", "Send canaries and attacks through clipping, ring, masks and noise."),
        "verify": Entry("fedscale_server.cli_audit:verify", "Check every line of the audit trail, the chain and its end."),
        "tail": Entry("fedscale_server.cli_audit:tail", "Show what was done last: logins, invitations, submissions, revocations."),
        "export": Entry("fedscale_server.cli_audit:export", "Write the audit trail, verified, into a file of JSON lines."),
    },
)
