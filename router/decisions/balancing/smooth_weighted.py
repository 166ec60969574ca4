"""Smooth weighted round robin: shares exactly by weight, and never a burst on one endpoint.

The method is nginx's (commit 52327e0627f49dbda1e8db695e63a4b0af4448b1, "smooth weighted round-robin balancing"):
each turn every candidate earns its weight, the richest is chosen and pays what all have earned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.decisions.balancing.contract import Weighted
from router.model.identity import EndpointName


class SmoothWeighted:
    """Credits per endpoint, by name: they outlive a topology change, so that one does not restart every cycle.

    An endpoint that leaves keeps its credit until it is back or forgotten with the pool; candidates that change from
    call to call (exclusions, staleness) share one account.
    """

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit: dict[EndpointName, int] = {}

    def pick(self, among: Sequence[Weighted], in_flight: Mapping[EndpointName, int], draw: float) -> int | None:
        """See Balancer; looks at the weights alone."""
        credit = self._credit
        best: int | None = None
        most = total = 0
        for index, one in enumerate(among):
            weight = one.weight
            total += weight
            mine = credit.get(one.name, 0) + weight
            credit[one.name] = mine
            if best is None or mine > most:
                best, most = index, mine
        if best is not None:
            credit[among[best].name] = most - total
        return best
