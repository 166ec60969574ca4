"""The power of two choices: draw two by weight, use the one with fewer requests running for its weight.

Nearly as even as looking at all, without everybody running to the same least loaded endpoint on old numbers
(M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.decisions.balancing.contract import Weighted
from router.model.identity import EndpointName


class TwoChoices:
    """Stateless."""

    __slots__ = ()

    def pick(self, among: Sequence[Weighted], in_flight: Mapping[EndpointName, int], draw: float) -> int | None:
        """See Balancer; both choices come from the one draw: where it falls, and how deep inside."""
        if not among:
            return None
        if len(among) == 1:
            return 0
        total = sum(one.weight for one in among)
        first, rest = _fall(among, draw * total, skip=-1)
        second, _ = _fall(among, rest * (total - among[first].weight), skip=first)
        a, b = among[first], among[second]
        return first if in_flight.get(a.name, 0) * b.weight <= in_flight.get(b.name, 0) * a.weight else second


def _fall(among: Sequence[Weighted], mark: float, *, skip: int) -> tuple[int, float]:
    """Where the mark falls on the weights laid end to end, and how far into that weight (0 to 1)."""
    last = -1
    for index, one in enumerate(among):
        if index == skip:
            continue
        if mark < one.weight:
            return index, mark / one.weight
        mark -= one.weight
        last = index
    return last, 0.0  # the mark lies on the far end, by rounding
