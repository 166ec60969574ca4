"""COPY as a caller asks for it, its SQL, and what is known of one before and after its data.

Syntax: https://www.postgresql.org/docs/current/sql-copy.html. Names are quoted here; that a query is one query whole
in itself, which cannot close the parentheses around it, is the word of ports.StatementInspector.inspect_nested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, unique

from router.model.result import PgNotice, Receipt

QUERY_PREFIX = b"COPY ("
"""What stands before a query: PostgreSQL counts the position of an error in the query from here."""


@unique
class CopyFormat(Enum):
    """File format of COPY; the value is its SQL."""

    TEXT = "text"
    CSV = "csv"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class CopyTable:
    """A table or view, by its names as the catalogue has them."""

    name: str
    schema: str = ""
    """Empty: found by the search path."""
    columns: tuple[str, ...] = ()
    """Empty: all, in the table's order."""

    def sql(self) -> bytes:
        """The quoted name, and the columns in parentheses."""
        parts = (self.schema, self.name) if self.schema else (self.name,)
        named = b".".join(quoted(part) for part in parts)
        return named + b" (%s)" % b", ".join(quoted(one) for one in self.columns) if self.columns else named


@dataclass(frozen=True, slots=True)
class CopyEncoding:
    """Format and its options; None or empty means PostgreSQL's default for the format."""

    format: CopyFormat = CopyFormat.TEXT
    header: bool = False
    delimiter: str = ""
    null_text: str | None = None
    quote: str = ""

    def sql(self) -> bytes:
        """The options in parentheses."""
        options = [b"FORMAT " + self.format.value.encode()]
        if self.header:
            options.append(b"HEADER true")
        for word, text in ((b"DELIMITER ", self.delimiter), (b"QUOTE ", self.quote)):
            if text:
                options.append(word + literal(text))
        if self.null_text is not None:
            options.append(b"NULL " + literal(self.null_text))
        return b"(%s)" % b", ".join(options)


@dataclass(frozen=True, slots=True)
class CopySource:
    """What a COPY reads, or the table it fills: a table, or (only to read) a query without its semicolon."""

    table: CopyTable | None = None
    query: bytes = b""

    def out_sql(self, encoding: CopyEncoding) -> bytes:
        """COPY ... TO STDOUT."""
        # The line break ends a comment at the query's end.
        what = self.table.sql().join((b"COPY ", b"")) if self.table else QUERY_PREFIX + self.query + b"\n)"
        return what + b" TO STDOUT " + encoding.sql()

    def in_sql(self, encoding: CopyEncoding) -> bytes:
        """COPY ... FROM STDIN; only of a table."""
        if self.table is None:
            raise ValueError("only a table can be filled")
        return b"COPY " + self.table.sql() + b" FROM STDIN " + encoding.sql()


@dataclass(frozen=True, slots=True)
class CopyLayout:
    """What PostgreSQL says when it begins to copy."""

    columns: int
    binary: bool


@dataclass(frozen=True, slots=True)
class CopyAnswer:
    """How a COPY ended."""

    rows: int
    size_bytes: int
    """Bytes of data, as PostgreSQL and the caller see them."""
    command_tag: str
    receipt: Receipt
    notices: tuple[PgNotice, ...] = field(default=())


def quoted(name: str) -> bytes:
    """A quoted identifier."""
    return b'"' + name.replace('"', '""').encode() + b'"'


def literal(text: str) -> bytes:
    """A string constant that means the same whatever standard_conforming_strings says."""
    return b"E'" + text.replace("\\", "\\\\").replace("'", "''").encode() + b"'"
