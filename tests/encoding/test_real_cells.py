"""The encoder over the cells of a real server: one literal of every kind of type there is."""

from __future__ import annotations

import pytest
from psycopg import pq

from router.devcluster import DevCluster
from router.encoding import TypedColumns
from router.model.result import Cells

pytestmark = pytest.mark.pg

# SQL expression: array of the column, value
EXPRESSIONS = {
    "1::int2": ("integers", 1),
    "-2::int4": ("integers", -2),
    "9223372036854775807::int8": ("integers", 9223372036854775807),
    "1::oid": ("integers", 1),
    "0.5::float4": ("reals", 0.5),
    "'-Infinity'::float8": ("reals", float("-inf")),
    "true": ("booleans", True),
    "'\\xdeadbeef'::bytea": ("blobs", b"\xde\xad\xbe\xef"),
    "'x'::text": ("texts", "x"),
    "'x'::char(3)": ("texts", "x  "),
    "'n'::name": ("texts", "n"),
    "1.50::numeric": ("texts", "1.50"),
    "'{1,NULL}'::int[]": ("texts", "{1,NULL}"),
    "'{\"a\": 1}'::jsonb": ("texts", '{"a": 1}'),
    "'2024-02-29'::date": ("texts", "2024-02-29"),
    "'00000000-0000-0000-0000-000000000001'::uuid": ("texts", "00000000-0000-0000-0000-000000000001"),
    "'10.0.0.1'::inet": ("texts", "10.0.0.1"),
    "'[1,5)'::int4range": ("texts", "[1,5)"),
    "'(1,2)'::point::text::varchar": ("texts", "(1,2)"),
    "row(1, 'a')": ("texts", "(1,a)"),
    "'1 day'::interval": ("texts", "1 day"),
    "B'101'": ("texts", "101"),
    "'pg_class'::regclass": ("texts", "pg_class"),
}


def run(cluster: DevCluster, sql: str) -> Cells:
    with cluster.primary().connect() as connection:
        result = connection.pgconn.exec_(sql.encode())
        assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
        cells: Cells = result
        return cells


def test_every_type_and_its_null(pg_cluster: DevCluster) -> None:
    nulls = ", ".join(f"case when false then {value} end" for value in EXPRESSIONS)
    cells = run(pg_cluster, f"select {', '.join(EXPRESSIONS)} union all select {nulls}")
    batch = TypedColumns().encode_batch(cells, 0, 2)
    for data, (array, value) in zip(batch.columns, EXPRESSIONS.values(), strict=True):
        values = getattr(data, array)
        assert (values[0], len(values)) == (value, 2)
        assert list(data.null_rows) == [1]


def test_void(pg_cluster: DevCluster) -> None:
    batch = TypedColumns().encode_batch(run(pg_cluster, "select pg_sleep(0)"), 0, 1)
    assert list(batch.columns[0].texts) == [""]


def test_table_and_attribute_are_named(pg_cluster: DevCluster) -> None:
    cells = run(pg_cluster, "select oid, relname, oid::int8 as number, relname::varchar(5) from pg_class limit 1")
    schema = TypedColumns().encode_schema(cells)
    assert [(c.name, c.table_oid, c.attribute, c.type_modifier) for c in schema.columns[:2]] == [
        ("oid", 1259, 1, -1),
        ("relname", 1259, 2, -1),
    ]
    assert (schema.columns[2].table_oid, schema.columns[3].type_modifier) == (0, 9)


def test_rows_without_columns(pg_cluster: DevCluster) -> None:
    cells = run(pg_cluster, "select from generate_series(1, 3)")
    encoder = TypedColumns()
    assert encoder.encode_batch(cells, 0, cells.ntuples).row_count == 3
    assert encoder.encode_schema(cells).has_columns
