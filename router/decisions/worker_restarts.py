"""When a worker that died is replaced: at once, and with growing pauses when its successors die young, too.

A worker that was killed is missed by its callers; one that dies of its configuration or its code would die again, and
starting a process takes a core for half a second that the living ones need.
"""

from __future__ import annotations

HEALTHY_S = 10.0
"""Who lived so long did not die of starting."""
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0


def young_deaths(before: int, lived_s: float) -> int:
    """Deaths in a row of a place's workers that did not live long, this one included."""
    return 0 if lived_s >= HEALTHY_S else before + 1


def pause_s(young: int) -> float:
    """Seconds before the next one is started: none after one young death, then 0.1, 0.2, 0.4 up to 5."""
    if young <= 1:
        return 0.0
    return min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(young - 2, 16))
