"""All planted bugs. Those with faults are found by the simulation, the others by the tests that are named."""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.failover_bugs import FAILOVER, RETRIES, ROUTING, TOKENS
from tests.mutants.lane_bugs import LANES, LISTENING
from tests.mutants.planting import Mutant

MUTANTS: Sequence[Mutant] = (*FAILOVER, *ROUTING, *TOKENS, *RETRIES, *LANES, *LISTENING)
