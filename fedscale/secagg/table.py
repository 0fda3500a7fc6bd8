"""``Secagg``: a plan's ``[secagg]`` table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedscale.secagg.parameters import MOST_SILOS, Parameters, Profile, complete, find
from fedscale.tables import Section


class Secagg(Section):
    """Secure aggregation of a run: the server learns sums and nothing else.

    The table turns it on. ``profile`` is what the server is believed capable of, ``adversarial`` the share of nodes that may collude with it,
    ``dropout`` the share that may drop out of a round; degree and threshold follow from them. ``bits`` is 32, or 24 for smaller uploads.
    """

    enabled: bool = True
    profile: Literal["malicious", "curious"] = "malicious"
    adversarial: float = Field(0.1, ge=0, lt=0.5)
    dropout: float = Field(0.25, ge=0, lt=0.5)
    bits: Literal[24, 32] = 32

    @property
    def word_bits(self) -> int:
        """Bits of one word of an answer: the table's, or 32 where it is not in force."""
        return self.bits if self.enabled else 32

    def parameters(self, nodes: int) -> Parameters:
        """Degree and threshold for a cohort of so many nodes: on the complete graph while it is small, else on a random one.

        Raises:
            PlanError: too few nodes, or no parameters are safe for them.
        """
        choose = complete if nodes <= MOST_SILOS else find
        return choose(nodes, self.adversarial, self.dropout, Profile(self.profile))
