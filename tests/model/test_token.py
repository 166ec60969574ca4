"""The algebra of consistency tokens and their wire form; the SDK's keeper agrees, knowing only the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pointsman.errors import TokenLost
from pointsman.tokens import TokenKeeper
from pointsman.tokens import merge as merge_bytes

from router.model.identity import Lsn, Term
from router.model.token import MAX_BYTES, Token, decode

TOKENS = st.builds(
    Token,
    st.just(7_000_000_000_000_000_001),
    st.integers(1, 3).map(Term),
    st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)).map(Lsn),
    st.booleans(),
    st.booleans(),
)


def position(token: Token) -> tuple[int, int]:
    return token.timeline, token.lsn


@given(TOKENS, TOKENS, TOKENS)
def test_merging_needs_no_order_and_no_care(a: Token, b: Token, c: Token) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(a) == a
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(TOKENS, TOKENS)
def test_what_is_merged_sees_all_that_either_sees(a: Token, b: Token) -> None:
    both = a.merge(b)
    assert position(both) == max(position(a), position(b))
    assert both.now is (a.now or b.now)
    assert both.merge(a) == both


@given(TOKENS, TOKENS)
def test_bytes_are_short_read_back_and_sort_as_tokens_do(a: Token, b: Token) -> None:
    assert decode(a.encode()) == a
    assert len(a.encode()) <= MAX_BYTES
    if position(a) < position(b):
        assert a.encode() < b.encode()


@given(TOKENS, TOKENS)
def test_the_sdk_merges_the_bytes_alike(a: Token, b: Token) -> None:
    assert decode(merge_bytes(a.encode(), b.encode())) == a.merge(b)


def test_tokens_of_two_systems_do_not_merge() -> None:
    with pytest.raises(ValueError, match="two systems"):
        Token(1, Term(1), Lsn(1)).merge(Token(2, Term(1), Lsn(1)))


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_are_a_token(raw: bytes) -> None:
    try:
        token = decode(raw)
    except ValueError:
        return
    assert token.encode() == raw


def test_a_negative_system_identifier_survives() -> None:
    assert decode(Token(-1, Term(1), Lsn(1)).encode()).system_id == 2**64 - 1


@given(st.lists(st.tuples(TOKENS, st.booleans()), max_size=12))
def test_a_keeper_never_asks_for_less_than_it_saw(answers: list[tuple[Token, bool]]) -> None:
    """Exact answers of requests that knew everything replace; all else adds up. Positions never fall."""
    keeper = TokenKeeper(enabled=True)
    early = keeper.version
    before = b""
    for token, overtaken in answers:
        keeper.keep(token.encode(), early - 1 if overtaken else keeper.version)
        kept = decode(keeper.value)
        assert position(kept) >= position(token)
        if before:
            assert position(kept) >= position(decode(before))
        exact = not token.now and not overtaken and position(kept) == position(token)
        assert kept.now or exact or not (token.now or (before and decode(before).now))
        before = keeper.value


def test_answers_of_the_primary_cost_the_keeper_nothing_the_second_time() -> None:
    keeper = TokenKeeper(enabled=True)
    keeper.keep(Token(1, Term(1), Lsn(50)).encode(), keeper.version)
    strong = Token(1, Term(1), Lsn(40), now=True).encode()
    keeper.keep(strong, keeper.version)
    assert decode(keeper.value) == Token(1, Term(1), Lsn(50), now=True)
    version = keeper.version
    keeper.keep(strong, keeper.version)
    assert keeper.version == version
    # A write's answer is exact and later than all of that: "now" is no longer needed, until the next strong read.
    keeper.keep(Token(1, Term(1), Lsn(60)).encode(), keeper.version)
    assert decode(keeper.value) == Token(1, Term(1), Lsn(60))
    keeper.keep(strong, keeper.version)
    assert decode(keeper.value).now


def test_a_lost_token_is_forgotten_once_told() -> None:
    keeper = TokenKeeper(enabled=True)
    keeper.keep(Token(1, Term(1), Lsn(50)).encode(), keeper.version)
    asked = keeper.version
    keeper.keep(Token(1, Term(2), Lsn(60)).encode(), keeper.version)
    keeper.told(TokenLost("lost"), asked)
    assert keeper.value, "what came since was not lost"
    keeper.told(TokenLost("lost"), keeper.version)
    assert keeper.value == b""


def test_a_token_from_elsewhere_is_added() -> None:
    mine, theirs = TokenKeeper(enabled=True), TokenKeeper(enabled=True)
    mine.keep(Token(1, Term(1), Lsn(50)).encode(), mine.version)
    theirs.keep(Token(1, Term(1), Lsn(40), now=True).encode(), theirs.version)
    mine.observe(theirs.text)
    assert decode(mine.value) == Token(1, Term(1), Lsn(50), now=True)
    mine.observe("")
    assert decode(mine.value).lsn == 50
