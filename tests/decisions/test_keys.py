"""What two requests with one key must have in common, and answers as bytes and back."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from router.decisions.keys import KeyTrouble, request_hash, trouble
from router.decisions.stored_answers import MAX_ROWS_BYTES, restore, store
from router.model.observation import Fault, FaultKind, Stage
from router.model.request import BatchStep, Guard, GuardNeed, Isolation, Method, Options, Request, Statement
from router.model.request import TransactionMode as Mode
from router.model.result import PgNotice, StatementResult
from router.model.stored_cells import StoredCells, StoredColumn

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.none() | st.binary(max_size=20)
UINT32, INT32 = st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1)
COLUMNS = st.builds(StoredColumn, VALUES, UINT32, INT32, UINT32, INT32, st.integers(0, 1))


@st.composite
def tables(draw: st.DrawFn) -> StoredCells:
    columns = tuple(draw(st.lists(COLUMNS, max_size=4)))
    row = st.tuples(*[VALUES for _ in columns])
    return StoredCells(columns, tuple(draw(st.lists(row, max_size=6))))


NOTICES = st.lists(st.builds(PgNotice, TEXT, TEXT, TEXT), max_size=2).map(tuple)
RESULTS = st.builds(StatementResult, st.none() | tables(), TEXT, st.integers(0, 2**62), NOTICES)


@given(st.lists(st.none() | RESULTS, max_size=5))
def test_an_answer_comes_back_as_it_was(results: list[StatementResult | None]) -> None:
    assert restore(store(results)) == results


@given(st.lists(RESULTS, min_size=1, max_size=4), st.data())
def test_rows_that_nobody_asked_for_are_not_kept(results: list[StatementResult], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.booleans(), min_size=len(results), max_size=len(results)))
    for before, after, rows in zip(results, restore(store([*results], wanted)), wanted, strict=True):
        assert after is not None
        assert (after.command_tag, after.rows_affected) == (before.command_tag, before.rows_affected)
        assert after.cells == (before.cells if rows else None)


def column(name: bytes) -> StoredColumn:
    return StoredColumn(name, 25, -1, 0, 0, 0)


@pytest.mark.parametrize(("size", "kept"), [(MAX_ROWS_BYTES - 5, True), (MAX_ROWS_BYTES - 4, False)])
def test_rows_beyond_the_limit_leave_their_columns_and_counts(size: int, kept: bool) -> None:
    cells = StoredCells((column(b"a"),), ((b"x" * size,),))
    (result,) = restore(store([StatementResult(cells, "SELECT 1", 1)]))
    assert result is not None
    assert isinstance(result.cells, StoredCells)
    assert (result.cells.left_out, result.cells.ntuples, result.rows_affected) == (not kept, int(kept), 1)
    assert result.cells.columns == cells.columns


def test_the_limit_is_that_of_the_whole_answer() -> None:
    half = StoredCells((column(b"a"),), ((b"x" * (MAX_ROWS_BYTES // 2 + 1),),))
    first, second, third = restore(store([StatementResult(half), StatementResult(half), StatementResult(None, "X")]))
    assert first == StatementResult(half)
    assert second is not None
    assert isinstance(second.cells, StoredCells)
    assert second.cells.left_out
    assert third == StatementResult(None, "X")


@given(st.binary(max_size=200), st.booleans())
def test_reading_trusts_nothing(data: bytes, versioned: bool) -> None:
    with contextlib.suppress(ValueError):
        restore(b"\x01" + data if versioned else data)


@given(st.lists(RESULTS, max_size=3), st.data())
def test_a_changed_byte_is_another_answer_or_none(results: list[StatementResult], data: st.DataObject) -> None:
    stored = bytearray(store([*results]))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        restore(bytes(stored))


@given(st.lists(RESULTS, max_size=3), st.integers(1, 8))
def test_a_cut_answer_is_none(results: list[StatementResult], less: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        restore(store([*results])[:-less])


def request(*steps: BatchStep, method: Method = Method.EXECUTE_BATCH, mode: Mode | None = None) -> Request:
    return Request(method, steps or (BatchStep(Statement(b"a")),), 1.0, mode=mode)


STATEMENTS = st.lists(st.tuples(VALUES, st.integers(0, 1), UINT32), max_size=3).flatmap(
    lambda params: st.builds(
        Statement,
        st.binary(max_size=8),
        st.just(tuple(value for value, _, _ in params)),
        st.just(tuple(form for _, form, _ in params)),
        st.just(tuple(oid for _, _, oid in params)),
    )
)
GUARDS = st.builds(Guard, st.integers(0, 3), st.sampled_from(GuardNeed), st.integers(0, 3), st.booleans())
REQUESTS = st.builds(
    lambda steps, mode: request(*steps, mode=mode),
    st.lists(st.builds(BatchStep, STATEMENTS, st.none() | GUARDS, st.booleans()), min_size=1, max_size=3),
    st.builds(Mode, st.sampled_from(Isolation), st.booleans(), st.booleans()),
)


@given(REQUESTS, REQUESTS)
def test_requests_that_do_the_same_have_the_same_hash_and_no_others(one: Request, other: Request) -> None:
    assert (request_hash(one) == request_hash(other)) == ((one.steps, one.mode) == (other.steps, other.mode))


def test_what_does_not_change_the_work_does_not_change_the_hash() -> None:
    one = request(mode=Mode())
    other = Request(one.method, one.steps, 99.0, Options(max_rows=3, request_tag="t"), "id", Mode(), "key", 7)
    assert request_hash(one) == request_hash(other)
    assert request_hash(one) != request_hash(request(method=Method.EXECUTE))


def test_pieces_cannot_be_moved_from_one_part_to_the_next() -> None:
    one = request(BatchStep(Statement(b"ab", (b"c",), (0,))))
    assert request_hash(one) != request_hash(request(BatchStep(Statement(b"a", (b"bc",), (0,)))))
    assert request_hash(one) != request_hash(request(BatchStep(Statement(b"ab", (None,), (0,)))))
    empty, null = Statement(b"a", (b"",), (0,)), Statement(b"a", (None,), (0,))
    assert request_hash(request(BatchStep(empty))) != request_hash(request(BatchStep(null)))


@pytest.mark.parametrize(
    ("sqlstate", "kind", "at_row", "stale", "found"),
    [
        ("23505", FaultKind.SERVER_ERROR, True, False, KeyTrouble.TAKEN),
        ("55P03", FaultKind.SERVER_ERROR, True, False, KeyTrouble.BUSY),
        ("42P01", FaultKind.SERVER_ERROR, True, False, KeyTrouble.NOT_CONFIGURED),
        ("3F000", FaultKind.SERVER_ERROR, True, False, KeyTrouble.NOT_CONFIGURED),
        ("42501", FaultKind.SERVER_ERROR, True, False, KeyTrouble.NOT_CONFIGURED),
        ("40001", FaultKind.SERVER_ERROR, True, False, None),
        ("23505", FaultKind.SERVER_ERROR, False, False, None),
        ("42P01", FaultKind.SERVER_ERROR, True, True, None),
        ("55P03", FaultKind.CONNECTION_LOST, True, False, None),
    ],
)
def test_what_an_error_says_about_the_key(
    sqlstate: str, kind: FaultKind, at_row: bool, stale: bool, found: KeyTrouble | None
) -> None:
    fault = Fault(kind, Stage.EXECUTE, sqlstate, stale_statement=stale)
    assert trouble(fault, at_row=at_row) is found
