"""What each kind of parse tree means where connections are shared: one row per node, then the few that need a look.

Connections outlive a request, so what a statement leaves behind in its session would reach the next caller, and what
it needs from an earlier one would be missing. Inside Transact the connection is the caller's; it is then discarded
(taints). Node names: libpg_query's protobuf, which are PostgreSQL's (src/include/nodes/parsenodes.h).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from router.model.reasons import RefuseReason
from router.model.request import Escape, Residue, StatementTraits
from router.sql.residue import (
    SESSION_WORDS,
    calls_by_text,
    constant,
    is_utf8,
    residue_of_calls,
    sequences_read,
    sets_encoding,
    writes_large_objects,
)
from router.sql.temporary import makes_temporary, may_create_there

UNKNOWN = StatementTraits("unknown", escape=Escape.POSSIBLE)
EMPTY = StatementTraits(
    "empty",
    RefuseReason.STATEMENT_MISSING,
    RefuseReason.STATEMENT_MISSING,
    "the SQL text holds no statement",
)
SEVERAL = StatementTraits(
    "several",
    RefuseReason.SEVERAL_STATEMENTS,
    RefuseReason.SEVERAL_STATEMENTS,
    "one statement a message: send the others as further steps of ExecuteBatch (one transaction), or in Transact",
)
NUL_BYTE = StatementTraits(
    "unknown", RefuseReason.BAD_REQUEST, RefuseReason.BAD_REQUEST, "the SQL text contains a NUL byte"
)


def _control(words: str) -> StatementTraits:
    return StatementTraits(
        "transaction",
        RefuseReason.TRANSACTION_CONTROL,
        RefuseReason.TRANSACTION_CONTROL,
        f"{words} is not sent as SQL: use Transact (its messages begin, commit and roll back), or ExecuteBatch for "
        "statements that are known beforehand",
    )


def _session(words: str, kind: str = "session", residue: Residue = Residue.DISCARD) -> StatementTraits:
    return StatementTraits(
        kind,
        RefuseReason.SESSION_STATE,
        None,
        f"{words} belongs to one session, but connections are shared: use Transact, which has one of its own",
        residue=residue,
    )


CONTROL = _control("transaction control")
SAVEPOINT = StatementTraits(
    "transaction",
    RefuseReason.TRANSACTION_CONTROL,
    RefuseReason.TRANSACTION_CONTROL,
    "savepoints are not sent as SQL: use the savepoint, rollback_to and release messages of Transact",
)
SET_TRANSACTION = StatementTraits(
    "transaction",
    RefuseReason.TRANSACTION_CONTROL,
    None,
    "SET TRANSACTION has no effect here: give ExecuteBatch or Transact a mode",
)
COPY = StatementTraits(
    "copy",
    RefuseReason.COPY_NOT_HERE,
    RefuseReason.COPY_NOT_HERE,
    "COPY FROM STDIN and COPY TO STDOUT are RPCs of their own: use CopyIn and CopyOut",
)
ENCODING = StatementTraits(
    "set",
    RefuseReason.NOT_SUPPORTED,
    RefuseReason.NOT_SUPPORTED,
    "texts travel as UTF-8: client_encoding cannot be set to another encoding; use convert_to for bytes of one",
)
SETTING = _session("SET", "set")
FINAL_SETTING = replace(SETTING, residue=Residue.DESTROY)
"""RESET ALL does not undo it, or leaves a trace."""
CURSOR = StatementTraits(
    "cursor",
    RefuseReason.SESSION_STATE,
    None,
    "a cursor belongs to one session, but connections are shared: read with StreamQuery, or use Transact",
    residue=Residue.DISCARD,
)
TEMPORARY = _session("a temporary object", "ddl")
FUNCTION = _session(
    "a function that changes its session (set_config, advisory locks, dblink_connect, setseed), or runs a query that "
    "may (ts_stat, ts_rewrite and query_to_xml of a text that is not a plain constant),"
)
FINAL_FUNCTION = replace(FUNCTION, residue=Residue.DESTROY)
LISTEN = replace(
    TEMPORARY,
    kind="session",
    message="LISTEN belongs to one session, but connections are shared: use the RPC Listen (Transact hears nothing)",
)
_SEQUENCE = (
    "currval and lastval tell what their own session drew from a sequence, but connections are shared: use INSERT ... "
    "RETURNING, ExecuteBatch or Transact"
)

_BLOCK = (
    "DO and CALL are no reads: they may commit, write and change their session, also on a connection that PostgreSQL "
    "keeps from writing; use Execute, or Transact"
)
_SET = StatementTraits("set")
_DDL = StatementTraits("ddl")
_UTILITY = StatementTraits("utility")

TREES: Mapping[str, StatementTraits] = {
    "select_stmt": StatementTraits("select"),
    "insert_stmt": StatementTraits("insert"),
    "update_stmt": StatementTraits("update"),
    "delete_stmt": StatementTraits("delete"),
    "merge_stmt": StatementTraits("merge"),
    "call_stmt": StatementTraits(
        "call", message=_BLOCK, residue=Residue.DISCARD, commits_inside=True, escape=Escape.POSSIBLE
    ),
    "do_stmt": StatementTraits("do", message=_BLOCK, residue=Residue.DISCARD, escape=Escape.POSSIBLE),
    # PostgreSQL takes these two for reads.
    "alter_system_stmt": StatementTraits("ddl", refuse_as_read=RefuseReason.WRITE_ON_READ_METHOD),
    "check_point_stmt": StatementTraits("utility", refuse_as_read=RefuseReason.WRITE_ON_READ_METHOD),
    "notify_stmt": StatementTraits("utility", escape=Escape.POSSIBLE),
    "explain_stmt": StatementTraits("explain"),
    "variable_show_stmt": StatementTraits("show"),
    "constraints_set_stmt": _SET,
    "create_table_as_stmt": _DDL,
    "view_stmt": _DDL,
    "rename_stmt": _DDL,
    "index_stmt": _DDL,
    "comment_stmt": _DDL,
    "truncate_stmt": _DDL,
    "grant_stmt": _DDL,
    "grant_role_stmt": _DDL,
    "rule_stmt": _DDL,
    "define_stmt": _DDL,
    "composite_type_stmt": _DDL,
    "import_foreign_schema_stmt": _DDL,
    "discard_stmt": _session("DISCARD"),
    "listen_stmt": LISTEN,
    "unlisten_stmt": _session("UNLISTEN"),
    "prepare_stmt": _session("PREPARE"),
    "execute_stmt": _session("EXECUTE"),
    "deallocate_stmt": _session("DEALLOCATE"),
    "load_stmt": _session("LOAD", residue=Residue.DESTROY),
}
"""By the name of the statement's node; others are ddl when they create, alter or drop, else utility."""

BODY_COMMITS = re.compile(rb"commit|call", re.IGNORECASE)
"""What the body of a DO must say to commit, in any language: neither what it EXECUTEs nor a function may."""
_COMMIT_INSIDE = frozenset({
    "vacuum_stmt", "cluster_stmt", "reindex_stmt", "createdb_stmt", "dropdb_stmt", "alter_database_stmt",
    "create_table_space_stmt", "drop_table_space_stmt", "create_subscription_stmt", "alter_subscription_stmt",
    "drop_subscription_stmt",
})
"""Beside CALL, DO and what is done CONCURRENTLY: what PostgreSQL takes in no transaction block, since parts of it stay.
vacuum_stmt is ANALYZE too, which commits after each of several tables."""

_MAY_CALL = (*SESSION_WORDS, b'u&"')
_NOT_RESET = frozenset({"role", "session_authorization", "seed"})


def names_any(words: Iterable[bytes], sql: bytes) -> bool:
    """Whether any of these lower-case words occurs in the text, in any case. Several times as fast as a pattern."""
    text = sql.lower()
    return any(word in text for word in words)


def judge_tree(node: Any, sql: bytes) -> StatementTraits:
    """The traits of one statement: its pg_query Node, and its text."""
    name = node.WhichOneof("node") or ""
    tree = getattr(node, name)
    traits = _judge_node(name, tree)
    if _commits_inside(name, tree):
        traits = replace(traits, commits_inside=True)
    return _with_calls(traits, tree, name, sql) if names_any(_MAY_CALL, sql) else traits


def _with_calls(traits: StatementTraits, tree: Any, name: str, sql: bytes) -> StatementTraits:
    """The same, with what the functions do that it calls."""
    if name == "do_stmt":  # its body is a literal to the grammar
        return replace(FINAL_FUNCTION, commits_inside=traits.commits_inside) if calls_by_text(sql) else traits
    if sets_encoding(tree):
        return ENCODING
    residue = residue_of_calls(tree)
    if traits.refuse is not None:
        return replace(traits, residue=max(traits.residue, residue))
    match residue:
        case Residue.DISCARD:
            return FUNCTION
        case Residue.DESTROY:
            return FINAL_FUNCTION
        case Residue.NONE if sequences_read(tree):
            return replace(traits, refuse=RefuseReason.SESSION_STATE, message=_SEQUENCE, reads_sequences=True)
    if writes_large_objects(tree):
        return replace(traits, refuse_as_read=RefuseReason.WRITE_ON_READ_METHOD, escape=Escape.POSSIBLE)
    return replace(traits, path_to_temporary=True) if may_create_there(name, tree) else traits


def _judge_node(name: str, tree: Any) -> StatementTraits:
    match name:
        case "transaction_stmt":
            return _transaction(tree)
        case "variable_set_stmt":
            return _setting(tree)
        case "copy_stmt" if not tree.filename and not tree.is_program:
            return COPY
        case "copy_stmt":
            return StatementTraits("copy")
        case "declare_cursor_stmt":
            return CURSOR
        case "explain_stmt":
            # EXPLAIN ANALYZE executes what it explains.
            inner = judge_tree(tree.query, b"")
            return inner if inner.refuse is not None else TREES[name]
    if makes_temporary(name, tree):
        return TEMPORARY
    if name == "select_stmt" and tree.HasField("into_clause"):
        return _DDL
    known = TREES.get(name)
    if known is not None:
        return known
    return _DDL if name.startswith(("create_", "alter_", "drop_")) else _UTILITY


def _commits_inside(name: str, tree: Any) -> bool:
    match name:
        case "do_stmt":
            return any(BODY_COMMITS.search(one.def_elem.arg.string.sval.encode()) for one in tree.args)
        case "index_stmt" | "drop_stmt":
            return bool(tree.concurrent)
        case "alter_table_stmt":
            parts = (getattr(one.alter_table_cmd, "def") for one in tree.cmds)
            return any(part.WhichOneof("node") == "partition_cmd" and part.partition_cmd.concurrent for part in parts)
    return name in _COMMIT_INSIDE


def _transaction(tree: Any) -> StatementTraits:
    kinds = type(tree).DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number
    kind = kinds[tree.kind].name.removeprefix("TRANS_STMT_")
    if kind in ("SAVEPOINT", "RELEASE", "ROLLBACK_TO"):
        return SAVEPOINT
    return _control(kind.replace("_", " "))


def _setting(tree: Any) -> StatementTraits:
    if tree.name in ("TRANSACTION", "TRANSACTION SNAPSHOT"):
        return replace(SET_TRANSACTION, escape=Escape.CERTAIN) if _unlocks(tree) else SET_TRANSACTION
    if tree.name.lower() == "client_encoding" and tree.args and not is_utf8(constant(tree.args[0])):
        return ENCODING
    # SET LOCAL ends with its transaction; alone it does nothing, and PostgreSQL says so.
    # The connection's own role may be one that a start-up option took; a dotted name stays known, as an empty text.
    final = "." in tree.name or tree.name in _NOT_RESET
    traits = _SET if tree.is_local else FINAL_SETTING if final else SETTING
    if _unlocks(tree):
        traits = replace(traits, escape=Escape.CERTAIN)
    return replace(traits, path_to_temporary=True) if may_create_there("variable_set_stmt", tree) else traits


def _unlocks(tree: Any) -> bool:
    """Whether it makes a transaction writable that was begun read-only: PostgreSQL lets it, before the first query. A
    function cannot, as whoever calls it is a query."""
    if tree.name == "TRANSACTION":
        return any(
            one.def_elem.defname == "transaction_read_only" and one.def_elem.arg.a_const.ival.ival == 0
            for one in tree.args
        )
    return tree.name.lower() == "transaction_read_only" and not (
        len(tree.args) == 1 and str(constant(tree.args[0])).lower() in ("on", "true")
    )

