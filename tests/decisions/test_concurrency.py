"""The limit on a modelled server: in its bounds, near the knee, not fooled by locks, mixes and noise, back again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from math import log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decisions.concurrency import (
    FEW,
    KNOWN,
    PROBE_MOST_S,
    PROBING_S,
    STALE_S,
    TOLERANCE,
    ConcurrencyLimit,
    Due,
    Slowness,
    Standing,
    Told,
    Usual,
    next_to_run,
    parts,
)
from router.model.reasons import ConcurrencyReason

TICK_S = 0.05


class Server:
    """So many processors shared by whatever runs: alone a statement takes its cost, in company its part is longer."""

    def __init__(self, processors: float, seed: int = 1, noise: float = 0.0, cap: int = 40) -> None:
        self.processors = processors
        self.limit = ConcurrencyLimit(2, cap, 0.0)
        self.now = 0.0
        self.wanted = 100
        self.chance = random.Random(seed)
        self.noise = noise
        self.usual = {(tenant, text): Usual() for tenant in "abc" for text in range(3)}
        self.measured: Slowness[str] = Slowness(0.0)
        self.least_seen = cap
        self.runs: list[int] = []
        self.special: Callable[[str, int], float] = lambda _tenant, _text: 1.0
        """Times longer than processors explain that a tenant's statement takes."""

    def run(self, seconds: float, answers: int = 6) -> None:
        """As many answers each tick, by three tenants and three statements of 5, 20 and 80 ms."""
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            running = min(self.wanted, self.limit.allowed)
            self.runs.append(running)
            for _ in range(answers):
                tenant, text = self.chance.choice("abc"), self.chance.randrange(3)
                took_s = (0.005, 0.02, 0.08)[text] * max(1.0, running / self.processors)
                took_s *= self.special(tenant, text) * self.chance.lognormvariate(0, self.noise)
                calm = running <= self.limit.least
                told = self.usual[tenant, text].note(took_s, max(running, self.limit.least), self.now)
                self.measured.note(tenant, told, calm=calm)
            self.measured.saw(running, running)
            if self.limit.step(self.measured, self.now, self.chance.random()):
                self.measured = Slowness(self.now)
            assert self.limit.least <= self.limit.allowed <= self.limit.most

    def mean(self, last: int = 200) -> float:
        """Of what was allowed to run lately, probes aside."""
        lately = [one for one in self.runs[-last:] if one > self.limit.least or self.processors <= 2]
        return sum(lately) / len(lately)


def calm_then_crowded(server: Server, seconds: float = 30.0) -> None:
    server.wanted = 2
    server.run(5.0)
    server.wanted = 100
    server.run(seconds)


@pytest.mark.parametrize("processors", [2, 4, 8, 16])
def test_it_settles_a_little_above_the_knee(processors: int) -> None:
    server = Server(processors)
    calm_then_crowded(server)
    assert processors <= server.mean() <= 1.8 * processors + 2
    assert server.limit.reason in (ConcurrencyReason.SLOW, ConcurrencyReason.GROWING, ConcurrencyReason.PROBE)


def test_a_router_that_starts_in_the_crowd_finds_the_knee_by_probes() -> None:
    server = Server(4)
    server.run(40.0)
    assert 4 <= server.mean() <= 12


def test_a_server_that_waits_for_something_else_keeps_its_cap() -> None:
    server = Server(1000)
    calm_then_crowded(server)
    assert server.limit.allowed == server.limit.most
    assert server.limit.reason is ConcurrencyReason.CAP
    assert server.limit.slower < TOLERANCE


def test_it_recovers_with_the_server() -> None:
    server = Server(2)
    calm_then_crowded(server)
    assert server.mean() < 8
    server.processors = 1000
    server.run(20.0)
    assert server.limit.allowed == server.limit.most


def test_what_is_not_used_does_not_grow() -> None:
    server = Server(2)
    calm_then_crowded(server)
    server.wanted, before = 1, server.limit.allowed
    server.run(20.0)
    assert server.limit.allowed <= before + 1
    assert server.limit.reason is ConcurrencyReason.UNUSED


def test_one_tenant_that_waits_for_locks_slows_nobody_down() -> None:
    server = Server(1000)
    server.wanted = 2
    server.run(5.0)
    server.wanted = 100
    server.special = lambda tenant, _: 500.0 if tenant == "a" else 1.0
    server.run(20.0)
    assert server.limit.allowed == server.limit.most


def test_a_statement_that_waits_for_locks_slows_nobody_down() -> None:
    server = Server(1000)
    server.special = lambda _, text: 30.0 if text == 1 and server.chance.random() < 0.2 else 1.0
    calm_then_crowded(server)
    assert server.limit.allowed == server.limit.most


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(2, 30), st.floats(0.0, 0.6))
def test_noise_makes_it_neither_collapse_nor_run_away(seed: int, processors: int, noise: float) -> None:
    server = Server(processors, seed, noise)
    calm_then_crowded(server, 15.0)
    assert 0.5 * min(processors, 40) <= server.mean() <= 3 * processors + 4


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.integers(1, 50))
def test_it_stays_within_its_bounds_whatever_is_measured(seed: int, least: int, more: int) -> None:
    draw, now = random.Random(seed), 0.0
    limit = ConcurrencyLimit(least, least + more, now)
    for _ in range(60):
        now += draw.uniform(0.01, draw.choice([0.1, 30.0]))
        measured: Slowness[str] = Slowness(now - draw.uniform(0, 2))
        measured.saw(draw.randrange(99), draw.uniform(0, 999))
        slower_log = draw.uniform(-20, 20)
        for _ in range(draw.randrange(30)):
            measured.note("a", Told(slower_log, 1), calm=draw.random() < 0.2)
        limit.step(measured, now, draw.random())
        if draw.random() < 0.3:
            limit.resize(least, least + draw.randrange(60))
        if draw.random() < 0.3:
            limit.share(draw.uniform(0.01, 1.0))
        assert limit.divides or limit.level * limit._smallest == pytest.approx(limit.most)
        assert limit.least <= limit.allowed <= limit.most


def test_a_probe_lets_little_run_for_a_moment_and_comes_ever_more_seldom() -> None:
    server = Server(1000)
    server.run(600.0, answers=2)
    probed = [now for now, one in enumerate(server.runs) if one == server.limit.least]
    assert 0 < len(probed) * TICK_S < 12 * PROBING_S
    starts = [now * TICK_S for now in probed if now - 1 not in probed]
    assert starts[0] < 3
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[-1] <= 1.1 * PROBE_MOST_S + 2


def test_what_is_usual_is_what_it_takes_in_the_least_company_and_is_forgotten() -> None:
    usual = Usual()
    for _ in range(KNOWN):
        assert usual.note(0.04, 8, 1.0) is None
    assert usual.usual_s(1.0) == pytest.approx(0.04)
    for _ in range(KNOWN):
        told = usual.note(0.01, 2, 2.0)
    assert told is None, "the least company tells nothing of itself"
    assert usual.usual_s(2.0) == pytest.approx(0.01)
    told = usual.note(0.04, 8, 3.0)
    assert told == Told(pytest.approx(log(4)), 2)  # type: ignore[arg-type]
    assert usual.usual_s(3.0 + STALE_S + 1) == 0.0


def test_quick_statements_tell_nothing() -> None:
    usual = Usual()
    for _ in range(KNOWN):
        usual.note(0.0002, 1, 1.0)
    assert usual.note(0.005, 9, 1.0) is None


@pytest.mark.parametrize(
    ("tenants", "times"),
    [
        ({}, None),
        ({"a": (4.0, FEW - 1)}, None),
        ({"a": (4.0, FEW)}, 4.0),
        ({"a": (1.0, 9), "b": (8.0, 9)}, 1.0),  # slow for one of two only
        ({"a": (2.0, 9), "b": (8.0, 9)}, 4.0),
        ({"a": (1.1, 9), "b": (1.2, 9), "c": (8.0, 9)}, 1.2),
    ],
)
def test_the_server_is_slow_when_it_is_for_most_tenants(tenants: Any, times: float | None) -> None:
    measured: Slowness[str] = Slowness(0.0)
    for tenant, (slower, count) in tenants.items():
        for _ in range(count):
            measured.note(tenant, Told(log(slower), 2), calm=False)
    assert measured.times == (None if times is None else pytest.approx(times))


def test_who_knows_better_is_believed() -> None:
    measured: Slowness[str] = Slowness(0.0)
    for _ in range(FEW):
        measured.note("a", Told(log(4.0), 2), calm=False)
        measured.note("b", Told(0.0, 3), calm=False)
    assert measured.times == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("level", "tenants", "expected"),
    [
        (4.6, {"a": Due(0, 100)}, {"a": 4}),
        (4.6, {"a": Due(0, 100), "b": Due(0, 100)}, {"a": 2, "b": 2}),
        (20.0, {"a": Due(0, 100), "b": Due(0, 100)}, {"a": 10, "b": 10}),
        (8.0, {"a": Due(0, 100), "b": Due(0, 300)}, {"a": 2, "b": 6}),
        (8.0, {"a": Due(4, 100), "b": Due(0, 300)}, {"a": 4, "b": 4}),
        (4.0, {"a": Due(6, 100), "b": Due(2, 100)}, {"a": 3, "b": 1}),
        (2.0, dict.fromkeys("abc", Due(0, 100)), dict.fromkeys("abc", 1)),
    ],
)
def test_everybody_has_a_part_of_the_limit(level: float, tenants: dict[str, Due], expected: dict[str, int]) -> None:
    assert parts(level, tenants) == expected


def test_a_limit_that_is_not_reached_leaves_all_to_one_tenant_also_when_another_comes_or_goes() -> None:
    limit = ConcurrencyLimit(2, 10, 0.0)
    for smallest in (1.0, 0.5, 0.1, 1.0):
        limit.share(smallest)
        assert not limit.divides
        assert smallest * limit.level == pytest.approx(10)
        assert limit.allowed == 10


def test_what_is_divided_grows_until_the_smallest_part_is_the_cap() -> None:
    """Of two tenants one has little to do: the other gets back what it leaves, as long as that slows nobody down."""
    server = Server(4)
    calm_then_crowded(server)
    assert server.limit.divides
    server.processors = 1000
    server.limit.share(0.5)
    server.run(30.0)
    assert not server.limit.divides
    assert server.limit.level == pytest.approx(2 * server.limit.most)


@pytest.mark.parametrize(
    ("waiting", "first"),
    [
        ({"a": Standing(3, Due(0, 100), 3, 5), "b": Standing(1, Due(0, 100), 1, 9)}, "b"),
        ({"a": Standing(3, Due(0, 400), 3, 5), "b": Standing(1, Due(0, 100), 1, 9)}, "a"),
        ({"a": Standing(2, Due(3, 100), 2, 5), "b": Standing(1, Due(0, 100), 1, 1)}, "a"),
        ({"a's reads": Standing(3, Due(0, 100), 2, 1), "a's writes": Standing(3, Due(0, 100), 1, 5)}, "a's writes"),
        ({"a": Standing(2, Due(0, 100), 2, 5), "b": Standing(2, Due(0, 100), 2, 1)}, "b"),
    ],
)
def test_whose_turn_it_is(waiting: dict[str, Standing], first: str) -> None:
    assert next_to_run(waiting) == first
