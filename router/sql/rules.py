"""What each kind of parse tree means where connections are shared: one row per node, then the few that need a look.

Connections outlive a request, so what a statement leaves behind in its session would reach the next caller, and what
it needs from an earlier one would be missing. Inside Transact the connection is the caller's; it is then discarded
(taints). Node names: libpg_query's protobuf, which are PostgreSQL's (src/include/nodes/parsenodes.h).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from postgast.walk import walk

from router.model.reasons import RefuseReason
from router.ports import StatementTraits

UNKNOWN = StatementTraits("unknown")
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


def _session(words: str, kind: str = "session") -> StatementTraits:
    return StatementTraits(
        kind,
        RefuseReason.SESSION_STATE,
        None,
        f"{words} belongs to one session, but connections are shared: use Transact, which has one of its own",
        taints=True,
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
SETTING = _session("SET", "set")
CURSOR = StatementTraits(
    "cursor",
    RefuseReason.SESSION_STATE,
    None,
    "a cursor belongs to one session, but connections are shared: read with StreamQuery, or use Transact",
    taints=True,
)
TEMPORARY = _session("a temporary object", "ddl")
FUNCTION = _session("a function that changes its session (set_config, advisory locks, dblink_connect, setseed)")

_SET = StatementTraits("set")
_DDL = StatementTraits("ddl")
_UTILITY = StatementTraits("utility")

TREES: Mapping[str, StatementTraits] = {
    "select_stmt": StatementTraits("select"),
    "insert_stmt": StatementTraits("insert"),
    "update_stmt": StatementTraits("update"),
    "delete_stmt": StatementTraits("delete"),
    "merge_stmt": StatementTraits("merge"),
    "call_stmt": StatementTraits("call"),
    "do_stmt": StatementTraits("do"),
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
    "discard_stmt": _session("DISCARD"),
    "listen_stmt": _session("LISTEN"),
    "unlisten_stmt": _session("UNLISTEN"),
    "prepare_stmt": _session("PREPARE"),
    "execute_stmt": _session("EXECUTE"),
    "deallocate_stmt": _session("DEALLOCATE"),
    "load_stmt": _session("LOAD"),
}
"""By the name of the statement's node; others are ddl when they create, alter or drop, else utility."""

SESSION_FUNCTIONS = frozenset(
    {
        "set_config",
        "setseed",
        "pg_advisory_lock",
        "pg_advisory_lock_shared",
        "pg_try_advisory_lock",
        "pg_try_advisory_lock_shared",
        "pg_advisory_unlock",
        "pg_advisory_unlock_shared",
        "pg_advisory_unlock_all",
        "dblink_connect",
        "dblink_connect_u",
        "dblink_disconnect",
    }
)
"""Their effects outlive the transaction. The pg_*_xact_* locks end with it and are free to use."""

SESSION_WORDS = (b"set_config", b"setseed", b"advisory_lock", b"advisory_unlock", b"dblink_")
"""In lower case: every text that calls one of them holds one of these, or spells it with escapes (u&"...")."""

_MAY_CALL = (*SESSION_WORDS, b'u&"')
_CALLS_SESSION_FUNCTION = re.compile(
    rb"(?:set_config|setseed|pg_(?:try_)?advisory_(?:un)?lock|dblink_(?:dis)?connect)\w*\"?\s*\(", re.IGNORECASE
)


def names_any(words: Iterable[bytes], sql: bytes) -> bool:
    """Whether any of these lower-case words occurs in the text, in any case. Several times as fast as a pattern."""
    text = sql.lower()
    return any(word in text for word in words)


def judge_tree(node: Any, sql: bytes) -> StatementTraits:
    """The traits of one statement: its pg_query Node, and its text."""
    name = node.WhichOneof("node") or ""
    tree = getattr(node, name)
    traits = _judge_node(name, tree)
    if traits.refuse is None and names_any(_MAY_CALL, sql) and _calls_session_function(tree, name, sql):
        return FUNCTION
    return traits


def calls_by_text(sql: bytes) -> bool:
    """Whether the text seems to call a session function; for texts whose tree cannot be had."""
    return names_any(SESSION_WORDS, sql) and _CALLS_SESSION_FUNCTION.search(sql) is not None


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
    if _is_temporary(name, tree):
        return TEMPORARY
    if name == "select_stmt" and tree.HasField("into_clause"):
        return _DDL
    known = TREES.get(name)
    if known is not None:
        return known
    return _DDL if name.startswith(("create_", "alter_", "drop_")) else _UTILITY


def _transaction(tree: Any) -> StatementTraits:
    kinds = type(tree).DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number
    kind = kinds[tree.kind].name.removeprefix("TRANS_STMT_")
    if kind in ("SAVEPOINT", "RELEASE", "ROLLBACK_TO"):
        return SAVEPOINT
    return _control(kind.replace("_", " "))


def _setting(tree: Any) -> StatementTraits:
    if tree.name in ("TRANSACTION", "TRANSACTION SNAPSHOT"):
        return SET_TRANSACTION
    # SET LOCAL ends with its transaction; alone it does nothing, and PostgreSQL says so.
    return _SET if tree.is_local else SETTING


def _is_temporary(name: str, tree: Any) -> bool:
    """Whether it makes an object that lives with the session. ON COMMIT DROP does not."""
    match name:
        case "create_stmt":
            return _temporary(tree.relation) and not _dropped_at_commit(tree.oncommit, tree)
        case "create_table_as_stmt":
            return _temporary(tree.into.rel) and not _dropped_at_commit(tree.into.on_commit, tree.into)
        case "select_stmt":
            return tree.HasField("into_clause") and _temporary(tree.into_clause.rel)
        case "view_stmt":
            return _temporary(tree.view)
        case "create_seq_stmt":
            return _temporary(tree.sequence)
        case "create_function_stmt":
            return len(tree.funcname) > 1 and tree.funcname[0].string.sval == "pg_temp"
    return False


def _temporary(relation: Any) -> bool:
    return bool(relation.relpersistence == "t" or relation.schemaname == "pg_temp")


def _dropped_at_commit(value: int, owner: Any) -> bool:
    field = "oncommit" if "oncommit" in type(owner).DESCRIPTOR.fields_by_name else "on_commit"
    enum = type(owner).DESCRIPTOR.fields_by_name[field].enum_type
    return bool(enum.values_by_number[value].name == "ONCOMMIT_DROP")


def _calls_session_function(tree: Any, name: str, sql: bytes) -> bool:
    if name == "do_stmt":
        return calls_by_text(sql)  # its body is a literal to the grammar
    return any(_changes_session(one) for _, one in walk(tree) if type(one).__name__ == "FuncCall")


def _changes_session(call: Any) -> bool:
    names = [part.string.sval for part in call.funcname]
    if not names or names[-1] not in SESSION_FUNCTIONS:
        return False
    # set_config(name, value, true) is SET LOCAL; any other third argument may be false.
    local = names[-1] == "set_config" and len(call.args) == 3 and _is_true(call.args[2])
    return not local


def _is_true(node: Any) -> bool:
    return bool(node.WhichOneof("node") == "a_const" and node.a_const.boolval.boolval)
