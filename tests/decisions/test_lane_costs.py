"""decisions/lane_costs: what is believed of a statement, and how a surprise changes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decisions.lane_costs import Cost, CostBook

SLOW_S = 0.01


def book() -> CostBook:
    return CostBook(SLOW_S)


def known(costs: CostBook, sql: bytes, took_s: float, times: int = 20) -> Cost:
    cost = costs.of(sql)
    for _ in range(times):
        costs.learn({cost: 1}, took_s)
    return cost


def test_an_unknown_statement_counts_as_a_slow_one() -> None:
    cost = book().of(b"a")
    assert (cost.fast, cost.answers, cost.expected_s) == (False, 0, SLOW_S)


def test_the_first_answer_is_believed() -> None:
    costs = book()
    fast, slow = costs.of(b"a"), costs.of(b"b")
    assert costs.learn({fast: 1}, 0.0001)
    assert (fast.fast, fast.expected_s) == (True, 0.0001)
    assert not costs.learn({slow: 1}, 0.5)
    assert (slow.fast, slow.expected_s) == (False, 0.5)
    assert costs.of(b"a") is fast


def test_one_outlier_does_not_make_a_fast_statement_slow() -> None:
    costs = book()
    cost = known(costs, b"a", 0.0001)
    assert not costs.learn({cost: 1}, 5.0)
    assert cost.fast
    assert cost.expected_s < 0.001


def test_a_statement_that_became_slow_is_known_as_slow_after_a_few_answers() -> None:
    costs = book()
    cost = known(costs, b"a", 0.0001)
    answers = 0
    while cost.fast:
        costs.learn({cost: 1}, 0.1)
        answers += 1
    assert answers <= 10


def test_a_busy_machine_does_not_make_a_fast_statement_slow() -> None:
    """Every fifth answer waits for the processor longer than slow_s."""
    costs = book()
    cost = known(costs, b"a", 0.0001)
    for number in range(1000):
        assert not costs.learn({cost: 1}, 0.03 if number % 5 == 0 else 0.0002)
    assert cost.expected_s <= SLOW_S


def test_a_cold_first_call_is_soon_forgotten() -> None:
    costs = book()
    cost = known(costs, b"a", 0.2, times=1)
    for _ in range(7):
        costs.learn({cost: 1}, 0.0001)
    assert cost.fast


def test_a_statement_near_the_border_does_not_change_its_kind_all_the_time() -> None:
    costs = book()
    cost = known(costs, b"a", 0.0098)
    draw = random.Random(3)
    changes = sum(costs.learn({cost: 1}, draw.uniform(0.006, 0.0145)) for _ in range(1000))
    assert changes <= 3


def test_answers_of_one_turn_share_their_time_as_expected() -> None:
    costs = book()
    fast, slow = known(costs, b"a", 0.0001), known(costs, b"b", 0.1)
    for _ in range(50):
        costs.learn({fast: 30, slow: 1}, 0.103)
    assert fast.expected_s == pytest.approx(0.0001, rel=0.1)
    assert slow.expected_s == pytest.approx(0.1, rel=0.1)


def test_a_statement_never_seen_takes_most_of_its_turn() -> None:
    costs = book()
    fast, new = known(costs, b"a", 0.0001), costs.of(b"b")
    costs.learn({fast: 10, new: 1}, 0.3)
    assert fast.expected_s < 0.001
    assert not new.fast


def test_a_lane_that_ran_dry_says_little_about_a_longer_time() -> None:
    """The answers lay in the socket while we were busy elsewhere."""
    costs = book()
    wet, dry = known(costs, b"a", 0.00002), known(costs, b"b", 0.00002)
    for _ in range(5):
        costs.learn({wet: 32}, 32 * 0.0001)
        costs.learn({dry: 32}, 32 * 0.0001, dry=True)
    assert wet.expected_s > 0.00004
    assert dry.expected_s < 0.00003


def test_a_dry_lane_still_shows_a_slow_statement() -> None:
    costs = book()
    cost = known(costs, b"a", 0.0001)
    for _ in range(10):
        costs.learn({cost: 1}, 0.1, dry=True)
    assert not cost.fast


def test_what_got_stuck_costs_at_least_so_much() -> None:
    costs = book()
    new, slow = costs.of(b"a"), known(costs, b"b", 60.0)
    costs.learn_stuck(new, 5.0)
    costs.learn_stuck(slow, 5.0)
    assert new.expected_s == 5.0
    assert slow.expected_s == pytest.approx(60.0)


def test_answers_without_any_time_are_no_trouble() -> None:
    costs = book()
    cost = known(costs, b"a", 0.0)
    costs.learn({cost: 3}, 0.0)
    costs.learn({cost: 3}, 0.003)
    assert 0.0 < cost.expected_s < 0.001


def test_what_was_not_seen_for_long_is_forgotten_and_what_was_is_not() -> None:
    costs = CostBook(SLOW_S, forget_s=60.0)
    old, used = known(costs, b"a", 5.0), known(costs, b"b", 5.0)
    costs.touch(old, 100.0)
    costs.touch(used, 100.0)
    costs.touch(used, 150.0)
    costs.forget(160.0)
    assert len(costs) == 2
    costs.forget(160.5)
    assert costs.of(b"b") is used
    assert costs.of(b"a") is not old


def test_what_is_still_running_is_not_forgotten() -> None:
    costs = CostBook(SLOW_S, forget_s=60.0)
    running = costs.of(b"a")
    costs.forget(1000.0)
    assert costs.of(b"a") is running
    costs.forget(1061.0)
    assert costs.of(b"a") is not running


def test_the_book_keeps_the_latest() -> None:
    costs = CostBook(SLOW_S, limit=3)
    kept = [costs.of(text) for text in (b"a", b"b", b"c")]
    costs.touch(kept[0], 10.0)
    costs.of(b"d")
    assert len(costs) == 3
    assert costs.of(b"a") is kept[0]
    assert costs.of(b"b") is not kept[1]


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.floats(0, 100), st.booleans()),
                max_size=40))
def test_estimates_stay_within_what_was_seen(turns: list[tuple[list[int], float, bool]]) -> None:
    costs = book()
    texts = [costs.of(b"%d" % number) for number in range(4)]
    for numbers, took_s, dry in turns:
        answers: dict[Cost, int] = {}
        for number in numbers:
            answers[texts[number]] = answers.get(texts[number], 0) + 1
        costs.learn(answers, took_s, dry=dry)
    most = max([took_s for _, took_s, _ in turns] + [SLOW_S])
    for cost in texts:
        assert 0.0 <= cost.expected_s <= most + 1e-9
        assert not cost.fast or cost.expected_s <= SLOW_S
        assert cost.answers or not cost.fast
