"""Columns of cells that a loader reads at once: the same message as cell by cell."""

from __future__ import annotations

import gc
import sys

import pytest
from hypothesis import given

from router.devcluster import DevCluster
from router.encoding import TypedColumns
from router.encoding.typed_columns import KINDS
from router.model.result import Cells, Row, RowRun
from router.postgres.row_loader import PsycopgRowLoader
from tests.encoding.test_real_cells import EXPRESSIONS, run
from tests.encoding.test_typed_columns import BYTEA, TEXT, Column, FakeCells, read_bytea, tables

_READERS = {1: int, 2: float, 3: b"t".__eq__, 4: bytes.decode}


class FakeLoader:
    """RowLoader over any cells."""

    def load(self, cells: Cells) -> list[Row]:
        columns = range(cells.nfields)
        return [tuple(self._value(cells, row, column) for column in columns) for row in range(cells.ntuples)]

    def _value(self, cells: Cells, row: int, column: int) -> int | float | bool | str | bytes | None:
        cell = cells.get_value(row, column)
        if cell is None or cells.fformat(column):
            return cell
        if cells.ftype(column) == BYTEA:
            return read_bytea(cell)
        read = _READERS[KINDS.get(cells.ftype(column), 4)]
        return read(cell)  # type: ignore[operator,no-any-return]


@given(tables())
def test_loaded_cells_make_the_same_message(cells: FakeCells) -> None:
    plain, loaded = TypedColumns(), TypedColumns(FakeLoader())
    count = cells.ntuples
    assert loaded.encode_batch(cells, 0, count) == plain.encode_batch(cells, 0, count)
    assert loaded.result_bytes(cells) == plain.result_bytes(cells)
    assert loaded.encode_batch(cells, count // 2, count) == plain.encode_batch(cells, count // 2, count)


@given(tables(), tables())
def test_a_run_is_one_table(one: FakeCells, other: FakeCells) -> None:
    both = FakeCells(one.columns, ntuples=one.ntuples)
    run_of = RowRun([both, both, both])
    whole = FakeCells([Column(c.oid, [*c.cells] * 3) for c in one.columns], ntuples=3 * one.ntuples)
    for encoder in (TypedColumns(), TypedColumns(FakeLoader())):
        assert encoder.encode_batch(run_of, 0, run_of.ntuples) == encoder.encode_batch(whole, 0, whole.ntuples)
        assert encoder.encode_schema(run_of) == encoder.encode_schema(whole)


def test_text_that_is_not_utf8_is_read_cell_by_cell() -> None:
    cells = FakeCells([Column(TEXT, [b"good", b"b\xffd", None])])
    batch = TypedColumns(FakeLoader()).encode_batch(cells, 0, 3)
    assert list(batch.columns[0].texts) == ["good", "b\ufffdd", ""]
    assert gc.isenabled()


def test_the_collector_is_left_as_it_was() -> None:
    cells = FakeCells([Column(TEXT, [b"a"] * 10)])
    gc.disable()
    try:
        TypedColumns(FakeLoader()).encode_batch(cells, 0, 10)
        assert not gc.isenabled()
    finally:
        gc.enable()
    TypedColumns(FakeLoader()).encode_batch(cells, 0, 10)
    assert gc.isenabled()


@pytest.mark.pg
@pytest.mark.parametrize("rows", [1, 2, 300])
def test_every_type_of_a_real_server(pg_cluster: DevCluster, rows: int) -> None:
    nulls = ", ".join(f"case when i % 3 = 1 then {value} end" for value in EXPRESSIONS)
    cells = run(pg_cluster, f"select {', '.join(EXPRESSIONS)}, {nulls} from generate_series(1, {rows}) i")
    loaded = TypedColumns(PsycopgRowLoader()).encode_batch(cells, 0, rows)
    assert loaded == TypedColumns().encode_batch(cells, 0, rows)


@pytest.mark.pg
def test_special_floats_and_binary_cells_of_a_real_server(pg_cluster: DevCluster) -> None:
    sql = "select 'NaN'::float8 as a, 'Infinity'::float4 as b, -0.0::float8 as c, now() as d from generate_series(1, 3)"
    with pg_cluster.primary().connect() as connection:
        for form in (0, 1):
            cells = connection.pgconn.exec_params(sql.encode(), None, result_format=form)
            loaded = TypedColumns(PsycopgRowLoader()).encode_batch(cells, 0, 3)
            assert loaded.SerializeToString() == TypedColumns().encode_batch(cells, 0, 3).SerializeToString()
            loaded_run = RowRun([cells, cells])
            assert TypedColumns(PsycopgRowLoader()).encode_batch(loaded_run, 0, 6).row_count == 6


@pytest.mark.pg
def test_a_loader_keeps_no_result(pg_cluster: DevCluster) -> None:
    loader = PsycopgRowLoader()
    cells = run(pg_cluster, "select 1")
    before = sys.getrefcount(cells)
    assert loader.load(cells) == [(1,)]
    assert sys.getrefcount(cells) == before
