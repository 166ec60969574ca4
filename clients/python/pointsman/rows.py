"""Rows of a result: records, lists of records, and the plan that builds them.

A plan belongs to a result's shape (names, kinds, types). It is made once and found again by the schema's bytes,
so that a result costs one lookup, one pass a column, and one zip.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import grpc
from google.protobuf.message import DecodeError

try:
    from _collections import _tuplegetter  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    _tuplegetter = None

from pointsman.decoding import ColumnReader, column_reader
from pointsman.errors import Executed, InternalError
from pointsman.single_rows import single_columns, single_row
from pointsman.v1 import types_pb2 as pb

MAX_PLANS = 1024
"""Shapes kept; all are dropped beyond, for a program that makes up column names without end."""

_MANY_ROWS = 200
"""From so many on, building them would start the garbage collector."""

_RESERVED = frozenset({"_fields", "_asdict", "_index_of"})


class Column(NamedTuple):
    """A column as PostgreSQL describes it."""

    name: str
    type_oid: int
    type_modifier: int
    table_oid: int
    attribute: int


class Record(tuple[Any, ...]):
    """A row: a tuple whose values are also found by `row["name"]` and `row.name`.

    A name that occurs again gets its number: `select 1 as id, 2 as id` has the fields `id` and `id_2`.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _index_of: ClassVar[dict[str, int]] = {}

    if TYPE_CHECKING:  # a column may have any name, also those of tuple's methods
        count: Any
        index: Any

        def __getattr__(self, name: str) -> Any: ...

    else:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"no column {name!r} in this row; it has {_listed(self._fields)}")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return tuple.__getitem__(self, self._index_of[key])
            except KeyError:
                raise KeyError(f"no column {key!r} in this row; it has {_listed(self._fields)}") from None
        return tuple.__getitem__(self, key)

    def _asdict(self) -> dict[str, Any]:
        """The row as a dict, in the columns' order."""
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"Record({inside})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time: pickle must make it again instead of importing it.
        return _rebuild, (self._fields, tuple(self))


def _listed(fields: tuple[str, ...]) -> str:
    return ", ".join(fields) or "no columns"


def _rebuild(fields: tuple[str, ...], values: tuple[Any, ...]) -> Record:
    return tuple.__new__(record_class(fields), values)


_record_classes: dict[tuple[str, ...], type[Record]] = {}


def record_class(fields: tuple[str, ...]) -> type[Record]:
    """The class of records with these (unique) fields."""
    found = _record_classes.get(fields)
    if found is None:
        if len(_record_classes) >= MAX_PLANS:
            _record_classes.clear()
        space: dict[str, Any] = {
            name: _reader_of(position)
            for position, name in enumerate(fields)
            if name not in _RESERVED and not (name.startswith("__") and name.endswith("__"))
        }
        space.update(__slots__=(), _fields=fields, _index_of={name: position for position, name in enumerate(fields)})
        found = _record_classes[fields] = type("Record", (Record,), space)
    return found


def _reader_of(position: int) -> Any:
    """A property that reads one position, past Record.__getitem__."""

    def read(row: Record) -> Any:
        return tuple.__getitem__(row, position)

    # What namedtuple uses: three times as fast, but an implementation detail of CPython.
    return property(read) if _tuplegetter is None else _tuplegetter(position, "")


def unique_fields(names: Iterable[str]) -> tuple[str, ...]:
    """The names, later repetitions of one numbered: id, id_2, id_3."""
    names = tuple(names)
    if len(set(names)) == len(names):
        return names
    taken, fields = set(names), []
    seen: set[str] = set()
    for name in names:
        field, number = name, 1
        while field in seen or (number > 1 and field in taken):
            number += 1
            field = f"{name}_{number}"
        seen.add(field)
        fields.append(field)
    return tuple(fields)


class ColumnBatch:
    """Some rows of a stream, column by column: `batch["price"]` is the list of a column's values."""

    __slots__ = ("_record", "columns", "row_count")

    def __init__(self, record: type[Record], columns: list[list[Any]], row_count: int) -> None:
        self._record = record
        self.columns = columns
        """A list of values a column, in the columns' order."""
        self.row_count = row_count

    @classmethod
    def of(cls, records: list[Record]) -> ColumnBatch:
        """From rows that are built already; at least one."""
        return cls(type(records[0]), [*map(list, zip(*records, strict=True))], len(records))

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns' names, repeated ones numbered as in Record."""
        return self._record._fields

    def __len__(self) -> int:
        return self.row_count

    def __getitem__(self, key: str | int) -> list[Any]:
        if isinstance(key, int):
            return self.columns[key]
        try:
            return self.columns[self._record._index_of[key]]
        except KeyError:
            raise KeyError(f"no column {key!r} in this batch; it has {_listed(self.fields)}") from None

    def __repr__(self) -> str:
        return f"<ColumnBatch of {self.row_count} rows: {_listed(self.fields)}>"


class Plan:
    """How to build the records of one shape of result."""

    __slots__ = ("columns", "readers", "record", "single")

    def __init__(self, schema: pb.ResultSchema) -> None:
        self.columns = tuple(
            Column(column.name, column.type_oid, column.type_modifier, column.table_oid, column.attribute)
            for column in schema.columns
        )
        self.readers: tuple[ColumnReader, ...] = tuple(
            column_reader(column.kind, column.type_oid) for column in schema.columns
        )
        self.single = single_columns(schema.columns)
        self.record = record_class(unique_fields(column.name for column in self.columns))

    def records(self, batch: pb.RowBatch) -> list[Record]:
        """The batch's rows. InternalError when it does not fit the schema."""
        if not self.readers:
            return [tuple.__new__(self.record, ())] * batch.row_count
        columns = self._values(batch)
        if batch.row_count < _MANY_ROWS:
            return self._built(columns)
        collecting = gc.isenabled()
        # Thousands of objects in a row, none of them garbage: the collector would look through them several times.
        gc.disable()
        try:
            return self._built(columns)
        finally:
            if collecting:
                gc.enable()

    def _built(self, columns: list[list[Any]]) -> list[Record]:
        return list(map(self.record, zip(*columns, strict=True)))

    def column_batch(self, batch: pb.RowBatch) -> ColumnBatch:
        """The same rows, column by column, without a record each."""
        return ColumnBatch(self.record, self._values(batch), batch.row_count)

    def _values(self, batch: pb.RowBatch) -> list[list[Any]]:
        try:
            columns = [read(column) for read, column in zip(self.readers, batch.columns, strict=True)]
        except (ValueError, IndexError) as error:
            raise _malformed(str(error)) from error
        for column in columns:
            if len(column) != batch.row_count:
                raise _malformed(f"{batch.row_count} rows announced, {len(column)} sent")
        return columns

    def records_from(self, batch: bytes) -> list[Record]:
        """The rows of a serialised RowBatch. InternalError when it does not fit the schema."""
        values = single_row(self.single, batch)
        if values is not None:
            return [tuple.__new__(self.record, values)]
        try:
            return self.records(pb.RowBatch.FromString(batch))
        except DecodeError as error:
            raise _malformed(str(error)) from error


_plans: dict[bytes, Plan] = {}


def plan_of(schema: pb.ResultSchema) -> Plan:
    """The plan for a schema, made at its first use."""
    return plan_from(schema.SerializeToString())


def plan_from(schema: bytes) -> Plan:
    """The plan for a serialised ResultSchema, made at its first use."""
    found = _plans.get(schema)
    if found is None:
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        found = _plans[schema] = Plan(pb.ResultSchema.FromString(schema))
    return found


def _malformed(words: str) -> InternalError:
    return InternalError(
        f"the router sent a result that does not fit its schema: {words}",
        code=grpc.StatusCode.INTERNAL,
        reason="PROTOCOL",
        executed=Executed.YES,
    )
