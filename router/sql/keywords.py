"""The judgement of a text that the parser must not or cannot read, by its first words.

Coarser than a parse tree, and safe in what matters: PostgreSQL itself refuses several statements in one message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from router.model.request import Escape, Residue, StatementTraits
from router.sql.residue import calls_by_text, runs_texts_by_text
from router.sql.rules import (
    BODY_COMMITS,
    CONTROL,
    COPY,
    CURSOR,
    FINAL_FUNCTION,
    FINAL_SETTING,
    SAVEPOINT,
    SETTING,
    TEMPORARY,
    TREES,
    UNKNOWN,
)

# Possessive: an adversary's megabyte of blanks is passed over once.
_FIRST_WORDS = re.compile(
    rb"(?:\s++|--[^\r\n]*+|/\*.*?\*/|\()*+([a-z]++)(?:\s++([a-z]++))?+(?:\s++([a-z]++))?+", re.IGNORECASE | re.DOTALL
)
_INTO_TEMPORARY = re.compile(rb"\binto\b\s*+\"?(?:temp|pg_temp|local|global|u&|/\*|--)", re.IGNORECASE)
"""Also where a comment may hide it: to pass over comments in a search takes time with the square of their number."""
_STANDARD_STREAM = re.compile(rb"\b(?:stdin|stdout)\b", re.IGNORECASE)

_FIRST: Mapping[str, StatementTraits] = {
    "begin": CONTROL,
    "start": CONTROL,
    "commit": CONTROL,
    "end": CONTROL,
    "rollback": CONTROL,
    "abort": CONTROL,
    "savepoint": SAVEPOINT,
    "release": SAVEPOINT,
    "set": replace(FINAL_SETTING, escape=Escape.POSSIBLE),
    "reset": replace(SETTING, escape=Escape.POSSIBLE),
    "discard": TREES["discard_stmt"],
    "listen": TREES["listen_stmt"],
    "unlisten": TREES["unlisten_stmt"],
    "prepare": TREES["prepare_stmt"],
    "execute": TREES["execute_stmt"],
    "deallocate": TREES["deallocate_stmt"],
    "load": TREES["load_stmt"],
    "declare": CURSOR,
    "select": TREES["select_stmt"],
    "values": TREES["select_stmt"],
    "table": TREES["select_stmt"],
    "insert": TREES["insert_stmt"],
    "update": TREES["update_stmt"],
    "delete": TREES["delete_stmt"],
    "merge": TREES["merge_stmt"],
    "call": TREES["call_stmt"],
    "do": TREES["do_stmt"],
    "explain": TREES["explain_stmt"],
    "create": StatementTraits("ddl"),
    "alter": StatementTraits("ddl"),
    "drop": StatementTraits("ddl"),
}
_COMMIT_INSIDE = frozenset({"call", "vacuum", "analyze", "analyse", "cluster", "reindex", "repack"})
_CONCURRENTLY = re.compile(rb"\bconcurrently\b", re.IGNORECASE)


def unknown(sql: bytes) -> StatementTraits:
    """The traits of a text that is not our grammar: PostgreSQL's to judge, but what begins as if it left something in
    its session is taken to do so."""
    judged = judge_words(sql)
    left, commits = judged.residue, _commits_inside(sql)
    return replace(UNKNOWN, residue=left, commits_inside=commits) if left or commits else UNKNOWN


def _commits_inside(sql: bytes) -> bool:
    found = _FIRST_WORDS.match(sql)
    if found is None:
        return False
    first, second, _ = (word.decode().lower() if word else "" for word in found.groups())
    if first in ("create", "alter", "drop"):
        return second in ("database", "tablespace", "subscription") or _CONCURRENTLY.search(sql) is not None
    if first == "do":
        return b"\\" in sql or BODY_COMMITS.search(sql) is not None  # an escape may hide a word
    return first in _COMMIT_INSIDE


def _names_temporary(sql: bytes) -> bool:
    """Whether it may name the schema of what lives with the session; an escape may hide it."""
    text = sql.lower()
    return b"pg_temp" in text or b'u&"' in text


def judge_words(sql: bytes) -> StatementTraits:
    """The traits of a text by its first words; UNKNOWN when they say nothing."""
    found = _FIRST_WORDS.match(sql)
    if found is None:
        return UNKNOWN
    first, second, third = (word.decode().lower() if word else "" for word in found.groups())
    traits = _FIRST.get(first, UNKNOWN)
    match first, second:
        case "set", "local" | "constraints":
            traits = StatementTraits("set", escape=Escape.POSSIBLE, path_to_temporary=_names_temporary(sql))
        case "prepare", "transaction":
            traits = CONTROL
        case "create", _ if {second, third} & {"temp", "temporary"}:
            traits = TEMPORARY
        case "create", _ if _names_temporary(sql):  # a function's body may name it as well: it is not refused
            traits = StatementTraits("ddl", residue=Residue.DISCARD)
        case "select" | "values" | "with" | "table", _ if _INTO_TEMPORARY.search(sql) is not None:
            traits = StatementTraits("ddl", residue=Residue.DISCARD)
        case "copy", _:
            traits = COPY if _STANDARD_STREAM.search(sql) else StatementTraits("copy")
    if traits.refuse is None and (calls_by_text(sql) or runs_texts_by_text(sql)):
        return FINAL_FUNCTION
    return replace(traits, commits_inside=True) if _commits_inside(sql) else traits
