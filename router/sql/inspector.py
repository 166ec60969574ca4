"""StatementInspector over postgast: the answer for a text is computed once and kept.

Three ways to an answer, cheapest first: the cache; a look at the text, which settles most reads and writes without a
parse; the parse tree. A text that is too long or too deep for the parser is judged by its first words. What nobody
here understands goes to PostgreSQL, whose error is better than ours would be.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import postgast
from google.protobuf.message import DecodeError

from router.model.request import Residue, StatementTraits
from router.sql.keywords import judge_words, unknown
from router.sql.nesting import NOT_A_QUERY, refusal_inside_parentheses
from router.sql.residue import SESSION_WORDS, calls_unknown
from router.sql.rules import EMPTY, NUL_BYTE, SEVERAL, TREES, judge_tree, names_any

__all__ = ["CACHED_TEXTS", "PARSED_BYTES", "PostgastInspector"]

PARSED_BYTES = 8192
"""Longest text that is parsed (bytes). libpg_query has no limit on depth: 30 to 60 KiB of `1+1+1...` overflow an 8 MiB
stack and would take the whole process down, and time grows with the square of the depth."""
CACHED_TEXTS = 4096
"""Texts kept; with PARSED_BYTES this bounds the cache to 32 MiB."""

_PLAIN = re.compile(rb"\s*(select|values|insert|update|delete)\b", re.IGNORECASE)
_NOT_PLAIN = (b";", b"\0", b'u&"', *SESSION_WORDS)
_SELECT_INTO = re.compile(rb"\binto\b", re.IGNORECASE)


class PostgastInspector:
    """Inspects statements. Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, StatementTraits] = OrderedDict()
        self._in_session: OrderedDict[bytes, StatementTraits] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def inspect(self, sql: bytes) -> StatementTraits:
        """What the statement is. Never raises."""
        known = self._known
        traits = known.get(sql)
        if traits is not None:
            known.move_to_end(sql)
            return traits
        traits = _judge(sql)
        if len(sql) <= PARSED_BYTES:
            known[sql] = traits
            if len(known) > CACHED_TEXTS:
                known.popitem(last=False)
        return traits

    def inspect_in_session(self, sql: bytes) -> StatementTraits:
        """What the statement is, with the residue that unknown functions may leave. Never raises."""
        traits = self.inspect(sql)
        if traits.residue or traits.refuse_in_transaction is not None or b"(" not in sql:
            return traits
        known = self._in_session
        inside = known.get(sql)
        if inside is None:
            inside = replace(traits, residue=Residue.DISCARD) if _may_touch(sql) else traits
            if len(sql) <= PARSED_BYTES:
                known[sql] = inside
                if len(known) > CACHED_TEXTS:
                    known.popitem(last=False)
        return inside

    def inspect_nested(self, sql: bytes) -> StatementTraits:
        """What a query is that is to stand between the parentheses of COPY (...). Never raises."""
        traits = self.inspect(sql)
        if traits.refuse is not None:
            return traits
        # What our grammar does not know may be newer than it: PostgreSQL judges.
        if traits.kind not in ("select", "unknown"):
            return NOT_A_QUERY
        return refusal_inside_parentheses(sql) or traits


_PLAIN_TRAITS: Mapping[str, StatementTraits] = {
    word: TREES[f"{word}_stmt"] for word in ("select", "insert", "update", "delete")
}


def _judge(sql: bytes) -> StatementTraits:
    plain = _PLAIN.match(sql)
    if plain is not None and not names_any(_NOT_PLAIN, sql.rstrip(b"; \t\r\n")):
        word = plain[1].decode().lower()
        kind = "select" if word == "values" else word
        # SELECT INTO makes a table; the word may as well stand in a literal, so the parser is asked.
        if kind != "select" or _SELECT_INTO.search(sql) is None:
            return _PLAIN_TRAITS[kind]
    if b"\0" in sql:
        return NUL_BYTE
    if len(sql) > PARSED_BYTES:
        return judge_words(sql)
    return _parse(sql)


def _may_touch(sql: bytes) -> bool:
    """Whether it calls a function that may change its session, for all that is known here."""
    if len(sql) > PARSED_BYTES:
        return True
    try:
        return any(calls_unknown(one.stmt) for one in postgast.parse(sql.decode()).stmts)
    except (UnicodeDecodeError, DecodeError, postgast.PgQueryError):
        return True


def _parse(sql: bytes) -> StatementTraits:
    try:
        text = sql.decode()
        statements = postgast.parse(text).stmts
    except UnicodeDecodeError:
        return unknown(sql)
    except DecodeError:  # protobuf reads a tree to a depth of 100 only
        return judge_words(sql)
    except postgast.PgQueryError:
        return _split(text, sql)
    if not statements:
        return EMPTY
    if len(statements) > 1:
        return SEVERAL
    return judge_tree(statements[0].stmt, sql)


def _split(text: str, sql: bytes) -> StatementTraits:
    """Not our grammar: PostgreSQL judges, unless a statement follows another."""
    try:
        parts = postgast.split(text, method="scanner")
    except (postgast.PgQueryError, UnicodeDecodeError):
        return unknown(sql)
    return SEVERAL if sum(bool(part.strip()) for part in parts) > 1 else unknown(sql)
