"""Whether the simulation notices a bug: a seed that did, or the first ones, with the faults that bring it out.

    python -m tests.mutants.simulated NAME    # in a tree with the bug in it; 1 when it was noticed
"""

from __future__ import annotations

import sys

from tests.mutants.planting import FAULT_S, SEEDS, Mutant
from tests.mutants.table import MUTANTS
from tests.simulation.faults import Kind
from tests.simulation.scenarios import Scenario
from tests.simulation.world import Result, simulate


def first_broken(mutant: Mutant) -> Result | None:
    """The first seed in which something does not hold, as this process is now."""
    kinds = [Kind[name] for name in mutant.faults.split()]
    scenarios = frozenset(Scenario[name] for name in mutant.scenarios.split())
    for seed in (mutant.seed, *range(1, SEEDS + 1)):
        result = simulate(seed, kinds=kinds, fault_s=FAULT_S, scenarios=scenarios)
        if result.broken is not None:
            return result
    return None


if __name__ == "__main__":
    found = first_broken(next(one for one in MUTANTS if one.name == sys.argv[1]))
    print(f"FAILED seed {found.seed}: {found.broken}" if found is not None else "all held")
    sys.exit(found is not None)
