"""Whole things shared max-min fairly (Bertsekas and Gallager, Data Networks, 6.5.2): nobody's wish is cut while
somebody who wishes more has more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

_K = TypeVar("_K")


def fill(order: Sequence[_K], start: Mapping[_K, int], most: Mapping[_K, int], total: int) -> dict[_K, int]:
    """Raise the lowest until all have their most or the total is used up; what cannot be divided goes to the first."""
    shares = dict(start)
    left = total - sum(shares.values())
    open_ones = [one for one in order if shares[one] < most[one]]
    while left > 0 and open_ones:
        level = min(shares[one] for one in open_ones)
        lowest = [one for one in open_ones if shares[one] == level]
        ceiling = min(
            min(most[one] for one in lowest), min((s for s in _above(shares, open_ones, level)), default=total)
        )
        step = min(ceiling - level, left // len(lowest))
        for one in lowest if step else lowest[:left]:
            shares[one] += step or 1
            left -= step or 1
        open_ones = [one for one in open_ones if shares[one] < most[one]]
    return shares


def _above(shares: Mapping[_K, int], ones: Iterable[_K], level: int) -> Iterable[int]:
    return (shares[one] for one in ones if shares[one] > level)
