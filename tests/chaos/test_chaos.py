"""Small sizes of the chaos cases: their goals hold, on real servers. `make chaos` runs them all, and larger."""

from __future__ import annotations

import pytest

from tests.chaos.cases import CASES, Size
from tests.chaos.playing import play

pytestmark = [pytest.mark.pg, pytest.mark.chaos]

SEED = 20
TIMED = ("first synchronously", "longest gap", "first write through")
"""Figures of speed: they are looked at on a quiet machine, `make test` is none."""
IN_TESTS = ("kill", "truth", "cancels", "needless", "split_brain")
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", IN_TESTS)
def test_a_small_case_reaches_its_goals(name: str) -> None:
    result = play(BY_NAME[name], Size.QUICK, SEED)
    assert not result.failed, result.failed
    if result.skipped:
        pytest.skip(result.skipped)
    missed = [one for one in result.figures if one.reached is False and not any(word in one.what for word in TIMED)]
    assert not missed, f"{[f'{one.what}: {one.said}' for one in missed]}\n{result.notes}"
    assert any(one.reached for one in result.figures)
