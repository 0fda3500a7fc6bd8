"""The verbs of ``fedscale node``: where each is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

data = group(
    "Declare the datasets this site offers; they never leave it.",
    {
        "add": Entry("fedscale_client.cli_data:add", "Declare a dataset by name."),
        "list": Entry("fedscale_client.cli_data:list_", "List the declared datasets."),
        "check": Entry("fedscale_client.cli_data:check", "Read a dataset and say what would spoil training."),
        "remove": Entry("fedscale_client.cli_data:remove", "Withdraw a dataset; its files stay as they are."),
    },
)

policy = group(
    "Say what this site allows, whatever a job asks.",
    {
        "show": Entry("fedscale_client.cli_policy:show", "Show what this site allows."),
        "set": Entry("fedscale_client.cli_policy:set_", "Change what this site allows; a running node heeds it from its next task on."),
        "unset": Entry("fedscale_client.cli_policy:unset", "Go back to the default of a setting, or drop all settings of a dataset."),
    },
)

node = group(
    "Run a site: join a federation, declare data, train.",
    {
        "join": Entry("fedscale_client.cli:join", "Join a federation with a ticket from its coordinator."),
        "start": Entry("fedscale_client.cli_start:start", "Take part until told to stop."),
        "status": Entry("fedscale_client.cli:status", "Show who this node is and what it offers."),
        "data": Entry("fedscale_client.nouns:data", "Declare the datasets this site offers; they never leave it."),
        "policy": Entry("fedscale_client.nouns:policy", "Say what this site allows, whatever a job asks."),
        "pause": Entry("fedscale_client.cli:pause", "Let no task begin and no answer leave until the site goes on."),
        "resume": Entry("fedscale_client.cli:resume", "Take part again after a pause."),
        "console": Entry("fedscale_client.cli_console:console", "Serve the site's own pages on this machine until told to stop."),
        "open": Entry("fedscale_client.cli_console:open_", "Print a link that opens the site's console once."),
        "receipts": Entry("fedscale_client.cli_privacy:receipts", "List what left this site, answer by answer."),
        "doctor": Entry("fedscale_client.cli_doctor:doctor", "Check this node: certificate, coordinator, datasets, room."),
    },
)
