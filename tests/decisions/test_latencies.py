"""The learned percentile comes to rest where it should, follows changes, and forgets what is seldom."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.decisions.latencies import LEAST_S, YOUNG, Latencies


def test_nothing_is_usual_before_enough_was_seen() -> None:
    book = Latencies()
    for _ in range(YOUNG - 1):
        book.learn(b"a", 0.01)
    assert book.usual_s(b"a") is None
    book.learn(b"a", 0.01)
    assert book.usual_s(b"a") is not None
    assert book.usual_s(b"b") is None


def test_one_answer_in_twenty_is_later_than_usual() -> None:
    drawn, book, later = random.Random(3), Latencies(), 0
    for turn in range(20_000):
        took = drawn.lognormvariate(-6, 0.5)
        usual = book.usual_s(b"a")
        later += turn >= 2000 and usual is not None and took > usual
        book.learn(b"a", took)
    assert 0.03 < later / 18_000 < 0.07


def test_it_follows_a_statement_that_became_slower_or_faster() -> None:
    book = Latencies()
    for took in [0.01] * 200 + [0.1] * 300:
        book.learn(b"a", took)
    assert 0.08 < (book.usual_s(b"a") or 0) < 0.12
    for _ in range(4000):
        book.learn(b"a", 0.01)
    assert (book.usual_s(b"a") or 1) < 0.015


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.floats(0, 100)), max_size=200))
def test_it_stays_bounded(answers: list[tuple[bytes, float]]) -> None:
    book = Latencies(limit=2)
    for sql, took in answers:
        book.learn(sql, took)
        usual = book.usual_s(sql)
        assert usual is None or usual >= LEAST_S
    assert len(book._seen) <= 2
