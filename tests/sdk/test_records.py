"""Records and the lists that hold them."""

from __future__ import annotations

import copy
import pickle

import pointsman
import pytest
from pointsman.results import Rows, rows_of
from pointsman.rows import Record, plan_of, record_class, unique_fields
from pointsman.v1 import types_pb2 as pb

from tests.sdk.fake_router import result_set


def record(**values: object) -> Record:
    return tuple.__new__(record_class(tuple(values)), tuple(values.values()))


def test_a_record_is_read_by_index_name_attribute_and_slice() -> None:
    row = record(id=1, name="x")
    assert (row[0], row[-1], row["name"], row.name, row[0:2]) == (1, "x", "x", "x", (1, "x"))
    assert (len(row), list(row), row == (1, "x"), hash(row) == hash((1, "x"))) == (2, [1, "x"], True, True)
    assert row._fields == ("id", "name")
    assert row._asdict() == {"id": 1, "name": "x"}
    assert repr(row) == "Record(id=1, name='x')"
    number, name = row
    assert (number, name) == (1, "x")


def test_a_missing_column_is_named_together_with_those_there_are() -> None:
    row = record(id=1, name="x")
    with pytest.raises(KeyError, match=r"no column 'nme'.*id, name"):
        row["nme"]
    with pytest.raises(AttributeError, match=r"no column 'nme'.*id, name"):
        _ = row.nme
    with pytest.raises(IndexError):
        row[2]


def test_columns_named_like_methods_are_columns() -> None:
    row = record(count=7, index=8)
    assert (row.count, row.index, row["count"]) == (7, 8, 7)


def test_columns_named_like_the_records_own_are_read_by_name() -> None:
    row = record(_fields=1, _asdict=2, __class__=3)
    assert (row["_fields"], row["_asdict"], row["__class__"]) == (1, 2, 3)
    assert row._asdict() == {"_fields": 1, "_asdict": 2, "__class__": 3}
    assert isinstance(row, Record)


def test_repeated_names_get_a_number() -> None:
    assert unique_fields(["id", "id", "x", "id"]) == ("id", "id_2", "x", "id_3")
    assert unique_fields(["id", "id", "id_2"]) == ("id", "id_3", "id_2")
    assert unique_fields(["?column?", "?column?"]) == ("?column?", "?column?_2")


def test_records_survive_pickle_and_copy() -> None:
    row = record(id=1, name="x")
    for again in (pickle.loads(pickle.dumps(row)), copy.copy(row), copy.deepcopy(row)):
        assert again == row
        assert again.name == "x"


def test_a_result_knows_its_columns_and_receipt() -> None:
    receipt = pb.Receipt(endpoint="one", role=pb.ENDPOINT_ROLE_REPLICA, token=b"t", attempts=2, executed_us=5)
    rows = rows_of(result_set(("a", "b"), ((1, 2), (3, 4))), receipt.SerializeToString())
    assert rows == [(1, 2), (3, 4)]
    assert rows[0:1] == [(1, 2)]
    assert rows.rowcount == 2
    assert [column.name for column in rows.columns] == ["a", "b"]
    assert rows.columns[0].type_oid == 20
    assert (rows.receipt.endpoint, rows.receipt.role, rows.receipt.attempts) == ("one", "replica", 2)
    assert pickle.loads(pickle.dumps(rows)) == rows


def test_rows_without_columns_are_counted() -> None:
    rows = rows_of(pb.ResultSet(schema=pb.ResultSchema(has_columns=True), batch=pb.RowBatch(row_count=3)), b"")
    assert rows == [(), (), ()]


def test_an_empty_result_has_columns() -> None:
    rows = rows_of(result_set(("a",), ()), b"")
    assert rows == []
    assert isinstance(rows, Rows)
    assert rows.columns[0].name == "a"


def test_a_shape_is_planned_once() -> None:
    first, second = result_set(("planned", "once"), ()), result_set(("planned", "once"), ())
    assert plan_of(first.schema) is plan_of(second.schema)


@pytest.mark.parametrize(
    "batch",
    [
        pb.RowBatch(row_count=1),
        pb.RowBatch(row_count=2, columns=[pb.ColumnData(integers=[1])]),
        pb.RowBatch(row_count=1, columns=[pb.ColumnData(integers=[1], null_rows=[4])]),
    ],
)
def test_a_batch_that_does_not_fit_its_schema_is_an_error_and_no_wrong_rows(batch: pb.RowBatch) -> None:
    with pytest.raises(pointsman.InternalError, match="does not fit its schema"):
        plan_of(result_set(("a",)).schema).records(batch)
