"""The verbs of ``fedscale chaos``: where each is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

chaos = group(
    "Break a federation of your own on this machine and see what is lost.",
    {
        "kill": Entry("fedscale_simulations.chaos.cli:kill", "Kill coordinator and nodes at random moments and count what is lost."),
        "pause": Entry("fedscale_simulations.chaos.cli:pause", "Freeze coordinator and nodes at random moments and count what is lost."),
        "clock": Entry(
            "fedscale_simulations.chaos.cli:clock", "Let the wall clocks of coordinator and nodes jump at random moments and count what is lost."
        ),
        "partition": Entry(
            "fedscale_simulations.chaos.cli:partition", "Break the network between nodes and coordinator at random moments and count what is lost."
        ),
        "disk": Entry("fedscale_simulations.chaos.cli:disk", "Fill the disk of coordinator and nodes at random moments and count what is lost."),
    },
)
