"""Whether a text is one query, whole in itself, so that it can stand between the parentheses of COPY (...).

Asked of the scanner, not of the parser: that no parenthesis closes one the text did not open is a matter of tokens
alone, holds for every grammar newer than ours, and a scanner has no depth to overflow. What stands inside then cannot
get out, and PostgreSQL's own grammar takes only a query there. (A server with standard_conforming_strings off may
read a backslash otherwise; whoever turned that off for its own role gains nothing that Execute does not give it.)
"""

from __future__ import annotations

import postgast
from google.protobuf.message import DecodeError
from postgast.pg_query_pb2 import Token

from router.model.reasons import RefuseReason
from router.model.request import StatementTraits

__all__ = ["NESTED_BYTES", "NOT_A_QUERY", "refusal_inside_parentheses"]

NESTED_BYTES = 64 << 10
"""Longest query that is scanned (bytes): the loop stands still for about 0.2 µs a byte."""

_OPENING, _CLOSING, _SEMICOLON = Token.ASCII_40, Token.ASCII_41, Token.ASCII_59


def _refused(message: str) -> StatementTraits:
    return StatementTraits("unknown", RefuseReason.BAD_REQUEST, RefuseReason.BAD_REQUEST, message)


NOT_A_QUERY = _refused("CopyOut takes a table or one query: SELECT, VALUES, TABLE or WITH ... SELECT")
_TOO_LONG = _refused(f"the query of a CopyOut has at most {NESTED_BYTES} bytes: make it a view")
_SEVERAL = StatementTraits(
    "several",
    RefuseReason.SEVERAL_STATEMENTS,
    RefuseReason.SEVERAL_STATEMENTS,
    "CopyOut takes one query, without a semicolon",
)
_UNBALANCED = _refused("the parentheses, quotes or comments of the query do not match")


def refusal_inside_parentheses(sql: bytes) -> StatementTraits | None:
    """Why the text may not stand between parentheses; None when it may."""
    if len(sql) > NESTED_BYTES:
        return _TOO_LONG
    try:
        tokens = postgast.scan(sql.decode()).tokens
    except (postgast.PgQueryError, DecodeError, UnicodeDecodeError):
        return _UNBALANCED  # something is not terminated: it would swallow our closing parenthesis
    depth = 0
    for token in tokens:
        kind = token.token
        if kind == _OPENING:
            depth += 1
        elif kind == _CLOSING:
            depth -= 1
            if depth < 0:
                return _UNBALANCED
        elif kind == _SEMICOLON:
            return _SEVERAL
    return _UNBALANCED if depth else None
