"""What a run has more than the usual. Drawn apart from everything else: a seed without any is the run it always was."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique

from tests.support.virtual_time import SeededChance


@unique
class Scenario(Enum):
    """Kinds of additions."""

    KEYED = "increments with idempotency keys"
    TOKENS = "sessions that pass consistency tokens on"
    ROUTERS = "two routers, both of which may promote"


WEIGHTS: Mapping[Scenario, float] = {Scenario.KEYED: 0.3, Scenario.TOKENS: 0.3, Scenario.ROUTERS: 0.2}
"""In which share of the seeds it is there."""


def drawn(seed: int) -> frozenset[Scenario]:
    """Those of a seed."""
    chance = SeededChance(seed + 3_000_003)
    return frozenset(one for one, weight in WEIGHTS.items() if chance.draw() < weight)
