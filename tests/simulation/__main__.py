"""`make simulate`: run seeds, or show one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.simulation.report import run_and_tell, story
from tests.simulation.world import simulate


def main() -> int:
    """0 when all that must hold held."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed, twice, and whether both runs were the same")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="write a summary there")
    parser.add_argument("--stop", action="store_true", help="stop at the first broken one")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print every event")
    options = parser.parse_args()
    if options.seed is None:
        seeds = range(options.first, options.first + options.seeds)
        return 0 if run_and_tell(seeds, options.jobs, options.json, stop=options.stop) else 1
    result = simulate(options.seed, verbose=options.verbose)
    same = simulate(options.seed).trace == result.trace
    if result.broken is not None:
        print(story(result))
    print(f"seed {result.seed}: {result.broken or 'all held'}; trace {result.trace} of {result.events} events, "
          f"{'the same again' if same else 'NOT THE SAME AGAIN'}; {result.virtual_s:.0f} s simulated, "
          f"{result.virtual_s / result.real_s:.0f} times real time")
    return 0 if same and result.broken is None else 1


if __name__ == "__main__":
    sys.exit(main())
