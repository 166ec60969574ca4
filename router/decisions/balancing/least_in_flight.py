"""Least in flight: the endpoint with the fewest requests running for its weight.

Follows speed as well as weight: a slow endpoint keeps its requests longer and so gets fewer. Ties go by the draw, in
proportion to weight, or a quiet pool would always use its first endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.decisions.balancing.contract import Weighted
from router.model.identity import EndpointName


class LeastInFlight:
    """Stateless."""

    __slots__ = ()

    def pick(self, among: Sequence[Weighted], in_flight: Mapping[EndpointName, int], draw: float) -> int | None:
        """See Balancer."""
        if not among:
            return None
        loads = [in_flight.get(one.name, 0) / one.weight for one in among]
        least = min(loads)
        tied = [index for index, load in enumerate(loads) if load == least]
        mark = draw * sum(among[index].weight for index in tied)
        for index in tied:
            mark -= among[index].weight
            if mark < 0:
                return index
        return tied[-1]
