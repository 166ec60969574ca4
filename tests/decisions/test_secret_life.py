"""decisions/secret_life: a command's secret is renewed before its end, and never given up for nothing."""

from __future__ import annotations

import pytest

from router.decisions.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S
from router.decisions.secret_life import Next, SecretLife

TTL_S = 100.0


def printed(now: float = 0.0) -> SecretLife:
    life = SecretLife(TTL_S)
    assert life.next(now) is Next.RUN
    life.printed(now)
    return life


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [(0.0, Next.USE), (74.9, Next.USE), (75.0, Next.USE_AND_RUN), (99.9, Next.USE_AND_RUN), (100.0, Next.RUN)],
)
def test_it_is_asked_for_anew_before_its_end(age_s: float, expected: Next) -> None:
    assert printed().next(age_s) is expected


def test_while_the_command_fails_the_old_one_is_used_and_it_is_run_with_pauses() -> None:
    life, now, pause_s = printed(), 80.0, FIRST_PAUSE_S
    for _ in range(8):
        assert life.next(now) is (Next.USE_AND_RUN if now < TTL_S else Next.RUN)
        life.failed(now)
        assert life.failing_since == 80.0
        assert life.next(now + pause_s - 0.01) is Next.USE
        now += pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    life.printed(now)
    assert (life.next(now + 1), life.failing_since) == (Next.USE, None)


def test_without_any_there_is_none_until_the_next_run() -> None:
    life = SecretLife(TTL_S)
    life.failed(5.0)
    assert life.next(5.5) is Next.DO_WITHOUT
    assert life.next(5.0 + FIRST_PAUSE_S) is Next.RUN


def test_one_that_a_server_refused_is_asked_for_anew_but_not_twice_a_second() -> None:
    life = printed()
    life.refused()
    assert life.next(FIRST_PAUSE_S / 2) is Next.USE
    assert life.next(FIRST_PAUSE_S) is Next.RUN
    life.printed(2.0)
    assert life.next(10.0) is Next.USE
