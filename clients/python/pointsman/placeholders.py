"""A word to who writes parameters as other drivers do: PostgreSQL's syntax error alone does not tell what is wrong.

Looked at only after such an error, in the request as it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pointsman.errors import Error, SqlSyntaxError
from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import types_pb2 as pb

_QUOTED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$[A-Za-z_]*\$).*?\1|--[^\n]*|/\*.*?\*/""", re.DOTALL
)
"""Texts, names and comments; nested comments and escaped quotes only nearly, which is enough for a hint."""
_OURS = re.compile(r"\$\d")
_FOREIGN = re.compile(r"%s\b|%\(\w+\)s|(?<![^\s(,=])\?(?![^\s),;])")


def hinted(error: Error, statements: Iterable[pb.Statement]) -> Error:
    """The error, with a hint in its message where it is a syntax error and one of these statements, which has
    parameters, has another driver's placeholders for them."""
    if isinstance(error, SqlSyntaxError):
        for one in statements:
            text = _QUOTED.sub("''", one.sql) if one.params else ""
            found = _FOREIGN.search(text)
            if found is not None and not _OURS.search(text):  # else a ? is an operator, as jsonb has
                error.message += f"; parameters are $1, $2, ... in the text, not {found[0]}"
                error.args = (error.message,)
                break
    return error


def statements_of(call: bytes) -> Iterable[pb.Statement]:
    """Those in a serialised MultiplexCall."""
    message = query_pb.MultiplexCall.FromString(call)
    kind = message.WhichOneof("call")
    if kind == "batch":
        return [step.statement for step in message.batch.steps]
    return [] if kind is None else [getattr(message, kind).statement]
