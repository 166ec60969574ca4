"""Messages nobody thought of: any message class filled by its descriptor from a seed, and bytes that were valid.

Everything a type allows is drawn: every branch of a oneof, numbers at both ends of their range, enums that there are
not, texts with NUL and without end. Where chance alone would hardly ever get past the first check (SQL, names, times),
a field's name brings words that mean something.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

READS = (
    "select 1",
    "select $1::int",
    "select $1, $2::text, $3::bytea",
    "select * from fuzzed where id = $1",
    "select id, note, at, data from fuzzed",
    "select count(*) from accounts",
    "select generate_series(1, 2000)",
    "select repeat('x', 200000)",
    "select repeat('y', 3000000)",
    "select pg_sleep(0.02)",
    "select pg_sleep(5)",
    "values (1, null, 'x'), (2, 3.5, null)",
    "table fuzzed",
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < 50) select sum(i) from n",
    "select 'NaN'::float8, 'infinity'::timestamptz, '{1,null}'::int[], '\\xff00'::bytea, null::json",
    "select 1 / 0",
    "select nowhere from nothing",
    "explain select 1",
    "show work_mem",
    "select now(), txid_current_if_assigned(), pg_backend_pid()",
)
WRITES = (
    "insert into fuzzed (id, note) values ($1, $2) on conflict do nothing",
    "insert into fuzzed (note) values ('x') returning id, note",
    "update fuzzed set note = $2 where id = $1",
    "update fuzzed set note = note where id = 1",
    "delete from fuzzed where id = $1",
    "do $$ begin raise notice 'one'; raise exception 'no more' using errcode = 'P0123'; end $$",
    "do $$ begin for i in 1..100 loop raise notice 'again %', i; end loop; end $$",
    "select pg_terminate_backend(pg_backend_pid())",
    "select pg_cancel_backend(pg_backend_pid())",
    "insert into fuzzed (id) values (1)",
    "lock table fuzzed in share mode",
)
OUT_OF_PLACE = (
    "",
    " ",
    "-- words",
    "selct 1",
    "select 1; select 2",
    "begin",
    "commit",
    "rollback",
    "savepoint s",
    "set search_path = elsewhere",
    "set local work_mem = '1MB'",
    "reset all",
    "discard all",
    "listen news",
    "notify news",
    "prepare p as select 1",
    "execute p",
    "declare c cursor for select 1",
    "create temp table t (id int)",
    "select pg_advisory_xact_lock(7)",
    "select set_config('work_mem', '1MB', true)",
    "copy fuzzed to stdout",
    "copy fuzzed from stdin",
    "@registered",
    "select '",
    "select $$",
    "select " + "(" * 4000 + "1" + ")" * 4000,
    "select " + "1," * 3000 + "1",
    "select 1 " + "/* " * 2000,
    "select \"\N{GRINNING FACE}\", 'é\N{COMBINING ACUTE ACCENT}'",
    "select $1 " + "union all select $1 " * 300,
)
SQL = (READS * 4) + (WRITES * 2) + OUT_OF_PLACE

WORDS: Mapping[str, Sequence[str]] = {
    "sql": SQL,
    "query": READS + OUT_OF_PLACE,
    "name": ("fuzzed", "fuzzed", "accounts", "nothing", 'quo"ted'),
    "schema": ("", "public", "pg_catalog", "nowhere"),
    "columns": ("id", "note", "nothing"),
    "savepoint": ("a", "b"),
    "rollback_to": ("a", "b"),
    "release": ("a", "b"),
    "request_id": ("", "0123456789abcdef", "fedcba9876543210"),
    "idempotency_key": ("", "", "once", "twice"),
    "delimiter": ("", ",", "\t", "\\"),
    "quote": ("", '"', "'"),
    "endpoint": ("n1", "n2", "n9"),
    "cluster": ("", "main", "other"),
    "tenant": ("", "acme", "nobody"),
}
NUMBERS: Mapping[str, Sequence[int]] = {
    "timeout_ms": (0, 0, 1, 5, 50, 1000, 2**32 - 1),
    "max_rows": (0, 0, 1, 100, 2**32 - 1),
    "max_bytes": (0, 0, 1, 1000, 1 << 20, 2**64 - 1),
    "max_staleness_ms": (0, 0, 1, 2**32 - 1),
    "type_oid": (0, 0, 0, 17, 23, 25, 2**32 - 1),
    "step": (0, 1, 2**32 - 1),
    "weight": (0, 1, 100, 2**32 - 1),
}
OFTEN = frozenset({"statement", "sql", "begin", "start", "calls", "steps", "table"})
"""Without these a message means nothing."""
TEXTS = ("", "a", "x" * 300, "é" * 20, "\N{GRINNING FACE}", "a\nb\rc\tc", "\x01\x1b[31m", "\0", "%s%n{}", "../../etc")
REALS = (0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308)

_INTS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DEPTH = 6


class MessageMaker:
    """Draws messages; the same seed and the same calls give the same ones."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def make(self, descriptor: Descriptor) -> Message:
        """A message of this kind, with whatever in it."""
        message = GetMessageClass(descriptor)()
        self._fill(message, 0)
        return message

    def _fill(self, message: Message, depth: int) -> None:
        chosen = {oneof.name: self._chance.choice(oneof.fields).name for oneof in message.DESCRIPTOR.oneofs}
        for field in message.DESCRIPTOR.fields:
            oneof = field.containing_oneof
            if oneof is not None and chosen[oneof.name] != field.name:
                continue
            if self._chance.random() < (0.97 if field.name in OFTEN else 0.85 if oneof is not None else 0.4):
                self._set(message, field, depth)

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                return
            values = getattr(message, field.name)
            for _ in range(self._count(depth)):
                if field.message_type is not None:
                    self._fill(values.add(), depth + 1)
                else:
                    values.append(self._value(field))
        elif field.message_type is not None:
            if depth < _DEPTH:
                part = getattr(message, field.name)
                part.SetInParent()
                self._fill(part, depth + 1)
        else:
            setattr(message, field.name, self._value(field))

    def _count(self, depth: int) -> int:
        many = 200 if depth < 3 else 20
        return self._chance.choice((0, 1, 1, 2, 2, 3, 3)) if self._chance.random() < 0.99 else many

    def _value(self, field: FieldDescriptor) -> object:
        chance, kind = self._chance, field.cpp_type
        if kind in _INTS:
            return self._number(field.name, *_INTS[kind])
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            known = [value.number for value in field.enum_type.values]
            return chance.choice(known) if chance.random() < 0.93 else chance.choice((-1, 99, 2**31 - 1))
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return chance.choice(REALS)
        text = self._text(field.name)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text

    def _number(self, name: str, least: int, most: int) -> int:
        chance = self._chance
        usual = NUMBERS.get(name, (0, 1, 2, 7))
        if chance.random() < 0.85:
            return min(most, chance.choice(usual))
        return chance.choice((least, most, least + 1, most - 1, chance.randint(least, most)))

    def _text(self, name: str) -> str:
        chance = self._chance
        if name in WORDS and chance.random() < 0.9:
            text = chance.choice(WORDS[name])
            return _scratched(text, chance) if text and chance.random() < 0.1 else text
        if chance.random() < 0.02:
            return chance.choice(TEXTS) * 2000
        return chance.choice(TEXTS)


def _scratched(text: str, chance: random.Random) -> str:
    """Some characters of a text gone, doubled or others."""
    letters = list(text)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(letters))
        letters[place] = chance.choice(("", letters[place] * 2, "'", '"', "$", ";", "(", "\0", "\x7f", "\N{BOM}", "é"))
    return "".join(letters)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Bytes of a message after something has happened to them."""
    damage: Callable[[bytearray, random.Random], None] = chance.choice(
        (_flip, _flip, _cut, _insert, _drop, _double, _lengthen, _noise)
    )
    changed = bytearray(raw)
    damage(changed, chance)
    return bytes(changed)


def _flip(raw: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4) if raw else 0):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _cut(raw: bytearray, chance: random.Random) -> None:
    del raw[chance.randint(0, len(raw)) :]


def _insert(raw: bytearray, chance: random.Random) -> None:
    place = chance.randint(0, len(raw))
    raw[place:place] = chance.randbytes(chance.randint(1, 9))


def _drop(raw: bytearray, chance: random.Random) -> None:
    place = chance.randint(0, len(raw))
    del raw[place : place + chance.randint(1, 9)]


def _double(raw: bytearray, chance: random.Random) -> None:
    begin = chance.randint(0, len(raw))
    raw += raw[begin:]


def _lengthen(raw: bytearray, chance: random.Random) -> None:
    """A varint without an end, where a tag or a length may have been."""
    place = chance.randint(0, len(raw))
    raw[place:place] = b"\xff" * chance.choice((1, 5, 10, 20))


def _noise(raw: bytearray, chance: random.Random) -> None:
    raw[:] = chance.randbytes(chance.randint(0, 64))
