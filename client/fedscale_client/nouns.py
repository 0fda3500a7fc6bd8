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

node = group(
    "Run a site: join a federation, declare data, train.",
    {
        "join": Entry("fedscale_client.cli:join", "Join a federation with a ticket from its coordinator."),
        "start": Entry("fedscale_client.cli_start:start", "Take part until told to stop."),
        "status": Entry("fedscale_client.cli:status", "Show who this node is and what it offers."),
        "data": Entry("fedscale_client.nouns:data", "Declare the datasets this site offers; they never leave it."),
        "doctor": Entry("fedscale_client.cli_doctor:doctor", "Check this node: certificate, coordinator, datasets, room."),
    },
)
