"""The table of mutants: every patch still applies, and the simulation finds those that are its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import ONCE
from tests.mutants.planting import ROOT, Mutant, planted
from tests.mutants.simulated import first_broken
from tests.mutants.table import MUTANTS
from tests.simulation.faults import Kind
from tests.simulation.scenarios import Scenario

SIMULATED = [one for one in MUTANTS if one.faults]


def by_name(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", MUTANTS, ids=by_name)
def test_a_patch_applies_and_is_python(mutant: Mutant) -> None:
    changed = mutant.apply((ROOT / mutant.file).read_text())
    compile(changed, mutant.file, "exec")
    assert changed != (ROOT / mutant.file).read_text()


def test_the_table_is_in_order() -> None:
    assert len({one.name for one in MUTANTS}) == len(MUTANTS) >= 30
    for one in MUTANTS:
        assert bool(one.tests) != bool(one.faults), f"{one.name}: tests or the simulation"
        assert all(path.startswith("-") or (ROOT / path).exists() for path in one.tests if "/" in path), one.name
        assert set(one.faults.split()) <= set(Kind.__members__), one.name
        assert set(one.scenarios.split()) <= set(Scenario.__members__), one.name


def test_a_mutant_gets_no_second_chance(tmp_path: Path) -> None:
    """Also where a marker gives one to tests of real servers."""
    (tmp_path / "test_once.py").write_text(
        "import pytest\nfailed = []\n@pytest.mark.flaky(reruns=1)\ndef test_it():\n"
        "    failed or failed.append(1) or pytest.fail('the first time')\n"
    )
    command = [sys.executable, "-m", "pytest", *ONCE, "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1, told.stdout
    assert "1 failed" in told.stdout


def test_the_simulation_has_its_share() -> None:
    assert len(SIMULATED) >= 8


@pytest.mark.parametrize("mutant", SIMULATED, ids=by_name)
def test_the_simulation_finds_it(mutant: Mutant) -> None:
    with planted(mutant):
        found = first_broken(mutant)
    assert found is not None, f"{mutant.name} was not noticed"
    assert any("BROKEN" in line for line in found.last_lines)
