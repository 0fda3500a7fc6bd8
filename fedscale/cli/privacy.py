"""``fedscale privacy``: where each verb is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

privacy = group(
    "Plan and account for differential privacy.",
    {
        "plan": Entry("fedscale.cli.privacy_verbs:plan", "Show what a job's privacy costs and what noise it takes, before anybody trains."),
        "epsilon": Entry("fedscale.cli.privacy_verbs:epsilon", "Compose a list of releases."),
        "noise": Entry("fedscale.cli.privacy_verbs:noise", "Find the least noise that keeps a promise."),
        "spent": Entry("fedscale_client.cli_privacy:spent", "Show what this site has spent, by population and unit of privacy."),
        "free": Entry("fedscale_client.cli_privacy:free", "Let others have the room that a run keeps under the cap; what it spent stays spent."),
        "ledger": Entry("fedscale_client.cli_ledger:ledger", "Show or verify the privacy ledger of this site."),
        "statement": Entry("fedscale_client.cli_privacy:statement", "State what this site guarantees about its part in a run."),
    },
)
