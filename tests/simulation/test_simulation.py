"""Seeds of the simulation: some that are always the same, some new ones, and that a seed means one run only."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.simulation.faults import Kind
from tests.simulation.network import ROUTER, SECOND_ROUTER
from tests.simulation.report import story
from tests.simulation.scenarios import Scenario
from tests.simulation.world import simulate

FIXED = (2, 14, 26, 29, 50, 80, 161, 20249)
"""Each found something once: an order of messages, a write sent to a primary of the past, a promotion that came late,
a needless one, a standby that never streamed again, an agent that began a timeline twice, a frozen server that
noticed a crash."""


def _names(scenarios: tuple[Scenario, ...]) -> str:
    return " ".join(one.name for one in scenarios) or "plain"


@pytest.mark.parametrize("seed", FIXED)
def test_what_must_hold_holds(seed: int) -> None:
    result = simulate(seed, scenarios=frozenset())
    assert result.broken is None, story(result)


@pytest.mark.parametrize("scenarios", [(), *((one,) for one in Scenario)], ids=_names)
def test_it_also_holds_for_a_new_seed(scenarios: tuple[Scenario, ...]) -> None:
    seed = random.SystemRandom().randrange(1_000_000, 9_000_000)
    result = simulate(seed, fault_s=25.0, scenarios=frozenset(scenarios))
    assert result.broken is None, story(result)


def test_keyed_increments_are_done_once() -> None:
    """... and the run has what makes that hard: answers from keys' rows, looks at outcomes."""
    kinds = [Kind.FREEZE_PRIMARY, Kind.KILL_PRIMARY, Kind.TERMINATE]
    result = simulate(4, kinds=kinds, scenarios=frozenset({Scenario.KEYED}), fault_s=20.0)
    assert result.broken is None, story(result)
    assert min(result.counts[what] for what in ("keyed", "keyed replayed", "outcome committed")) > 5


def test_two_routers_promote_no_two_servers() -> None:
    """... though they lose their primary at the same moment, and in this seed both move it."""
    result = simulate(22, scenarios=frozenset({Scenario.ROUTERS}), fault_s=25.0)
    assert result.broken is None, story(result)
    assert min(result.counts[f"promotions by {host}"] for host in (ROUTER, SECOND_ROUTER)) > 0


@pytest.mark.parametrize("seed", [107, 174, 225])
def test_one_router_does_not_undo_what_another_one_is_at(seed: int) -> None:
    """The primary comes back just when the other router promotes: the standbys that this one has fenced were made to
    follow again, confirmed a commit, and one of them was promoted without it. (In the last seed the primary boots.)"""
    result = simulate(seed, scenarios=frozenset({Scenario.ROUTERS}), fault_s=25.0)
    assert result.broken is None, story(result)


def test_the_same_seed_is_the_same_run() -> None:
    """Also in another process, where every set of strings has another order."""
    here = simulate(14, scenarios=frozenset())
    script = "from tests.simulation.world import simulate; print(simulate(14, scenarios=frozenset()).trace)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", script]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == here.trace
    assert simulate(15, scenarios=frozenset()).trace != here.trace


def test_a_run_does_what_it_is_for() -> None:
    """A simulation in which nothing happens would hold as well."""
    kinds = [Kind.KILL_PRIMARY, Kind.FREEZE_PRIMARY, Kind.ONE_WAY]
    results = [simulate(seed, kinds=kinds, scenarios=frozenset()) for seed in (1, 2)]
    assert sum(one.counts["failover"] for one in results) >= 2
    assert sum(one.counts["committed"] for one in results) > 200
    assert sum(one.counts["strong read"] for one in results) > 70
    assert sum(one.faults for one in results) > 15
