"""When a closed connection stops to count against the cap."""

from __future__ import annotations

import pytest

from router.decisions.letting_go import GONE_S, LONGEST_S, still_counts

AT_ONCE, SOON, LONG = 0.0, GONE_S, LONGEST_S


@pytest.mark.parametrize(
    ("heard", "gone", "counts_until"),
    [(True, False, LONG), (True, True, SOON), (False, False, SOON), (False, True, SOON)],
)
def test_it_counts_for_as_long_as_the_server_lives(heard: bool, gone: bool, counts_until: float) -> None:
    for closed_s in (AT_ONCE, GONE_S - 0.01, GONE_S, GONE_S + 1, LONGEST_S - 1, LONGEST_S, LONGEST_S + 1):
        assert still_counts(closed_s, heard=heard, gone=gone) == (closed_s < counts_until), closed_s
