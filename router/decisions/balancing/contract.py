"""What a balancing policy is given, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.model.identity import EndpointName


@dataclass(frozen=True, slots=True)
class Weighted:
    """An eligible endpoint and its share relative to the others (greater than 0)."""

    name: EndpointName
    weight: int


class Balancer(Protocol):
    """Chooses one of the eligible endpoints; the same calls with the same draws give the same choices."""

    def pick(self, among: Sequence[Weighted], in_flight: Mapping[EndpointName, int], draw: float) -> int | None:
        """Position in `among` of the endpoint to use, None when it is empty.

        in_flight: requests running per endpoint, missing means none. draw: uniform in [0, 1).
        """
        ...
