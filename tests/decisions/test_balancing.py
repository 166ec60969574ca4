"""The contract of every balancing policy, then what is special to each."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.balancing import BALANCERS, Balancer, Weighted
from router.decisions.balancing.least_in_flight import LeastInFlight
from router.decisions.balancing.smooth_weighted import SmoothWeighted
from router.decisions.balancing.two_choices import TwoChoices
from router.model.identity import EndpointName
from router.model.policy import BalancerName

A, B, C = (EndpointName(name) for name in "abc")
ALL = [Weighted(A, 5), Weighted(B, 3), Weighted(C, 2)]

each = pytest.mark.parametrize("name", BalancerName)
draws = st.floats(0, 1, exclude_max=True)
weighted = st.lists(st.integers(1, 100), max_size=6).map(
    lambda weights: [Weighted(EndpointName(str(index)), weight) for index, weight in enumerate(weights)]
)
loads = st.dictionaries(st.sampled_from([EndpointName(str(index)) for index in range(6)]), st.integers(0, 50))


def spread(count: int) -> list[float]:
    """Draws that cover [0, 1) evenly, in an order without pattern (golden ratio)."""
    return [(0.5 + index * 0.6180339887498949) % 1.0 for index in range(count)]


def test_every_name_has_a_policy() -> None:
    assert set(BALANCERS) == set(BalancerName)


@each
def test_nobody_to_choose_from(name: BalancerName) -> None:
    assert BALANCERS[name]().pick([], {}, 0.5) is None


@each
@given(among=weighted, in_flight=loads, draw=draws)
def test_chooses_one_of_the_eligible(
    name: BalancerName, among: list[Weighted], in_flight: dict[EndpointName, int], draw: float
) -> None:
    got = BALANCERS[name]().pick(among, in_flight, draw)
    assert (got is None) == (not among)
    assert got is None or 0 <= got < len(among)


@each
def test_shares_follow_weights(name: BalancerName) -> None:
    """Requests that end at once: only weights matter, and the draws."""
    balancer = BALANCERS[name]()
    picked = Counter(ALL[balancer.pick(ALL, {}, draw) or 0].name for draw in spread(5000))
    for one in ALL:
        share = picked[one.name] / 5000
        # two draws without putting back favour small weights a little; ties go to the first draw
        assert share == pytest.approx(one.weight / 10, abs=0.02)


@each
def test_shares_follow_weights_under_load(name: BalancerName) -> None:
    """Requests that last: what is in flight settles in proportion to weight."""
    balancer = BALANCERS[name]()
    running: Counter[EndpointName] = Counter()
    order: list[EndpointName] = []
    for draw in spread(5000):
        if len(order) >= 100:
            running[order.pop(0)] -= 1
        chosen = ALL[balancer.pick(ALL, running, draw) or 0].name
        running[chosen] += 1
        order.append(chosen)
    for one in ALL:
        assert running[one.name] == pytest.approx(one.weight * 10, abs=6)


@each
def test_same_calls_give_the_same_choices(name: BalancerName) -> None:
    def play(balancer: Balancer) -> list[int | None]:
        return [balancer.pick(ALL, {A: index % 7, B: index % 3}, draw) for index, draw in enumerate(spread(200))]

    assert play(BALANCERS[name]()) == play(BALANCERS[name]())


@each
def test_state_belongs_to_one_pool(name: BalancerName) -> None:
    one, other = BALANCERS[name](), BALANCERS[name]()
    first = other.pick(ALL, {}, 0.1)
    for draw in spread(7):
        one.pick(ALL, {}, draw)
    assert BALANCERS[name]().pick(ALL, {}, 0.1) == first


def test_smooth_weighted_is_the_known_sequence() -> None:
    """The example of nginx's commit: weights 5, 1, 1 give a a b a c a a."""
    balancer = SmoothWeighted()
    among = [Weighted(A, 5), Weighted(B, 1), Weighted(C, 1)]
    assert [balancer.pick(among, {}, 0.0) for _ in range(14)] == [0, 0, 1, 0, 2, 0, 0] * 2


def test_smooth_weighted_carries_its_credit_over_a_change() -> None:
    balancer = SmoothWeighted()
    two = [Weighted(A, 1), Weighted(B, 1)]
    assert balancer.pick(two, {}, 0.0) == 0
    # B's turn is not lost because C has come
    assert balancer.pick([*two, Weighted(C, 1)], {}, 0.0) == 1


@given(st.lists(st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 1, 2), (0,)]), max_size=300))
def test_smooth_weighted_credit_stays_bounded(turns: list[tuple[int, ...]]) -> None:
    balancer = SmoothWeighted()
    for turn in turns:
        balancer.pick([ALL[index] for index in turn], {}, 0.0)
        assert sum(balancer._credit.values()) == 0
        assert all(abs(credit) <= 20 for credit in balancer._credit.values())


def test_least_in_flight_looks_at_load_for_weight() -> None:
    balancer = LeastInFlight()
    assert balancer.pick(ALL, {A: 9, B: 6, C: 3}, 0.9) == 2  # 1.8, 2.0, 1.5
    assert balancer.pick(ALL, {A: 4, B: 6, C: 4}, 0.9) == 0


def test_two_choices_avoids_the_busier_of_two() -> None:
    pair = [Weighted(A, 1), Weighted(B, 1)]
    assert {TwoChoices().pick(pair, {A: 5}, draw) for draw in spread(50)} == {1}
    assert {TwoChoices().pick(pair, {B: 5}, draw) for draw in spread(50)} == {0}


@given(among=weighted.filter(lambda among: len(among) > 1), draw=draws)
def test_two_choices_never_picks_the_single_busiest(among: list[Weighted], draw: float) -> None:
    busiest = among[0].name
    assert TwoChoices().pick(among, {busiest: 1}, draw) != 0
