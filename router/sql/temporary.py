"""Whether a statement makes an object that lives with its session: one that is TEMP, or stands in the schema pg_temp.

Any kind of object may stand there, not relations only: a type or an operator of pg_temp is left to whoever gets the
connection next as a table is. DISCARD ALL takes them all away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from router.sql.residue import calls_of, constant

__all__ = ["makes_temporary", "may_create_there"]

_SCHEMA = re.compile(r"pg_temp(_\d+)?")
"""pg_temp is the session's own; by its number it may be named as well."""

_NAMES: Mapping[str, str] = {
    "define_stmt": "defnames",  # aggregates, operators, collations, base types, everything of text search
    "create_function_stmt": "funcname",
    "create_domain_stmt": "domainname",
    "create_enum_stmt": "type_name",
    "create_range_stmt": "type_name",
    "create_stats_stmt": "defnames",
    "create_conversion_stmt": "conversion_name",
    "create_op_class_stmt": "opclassname",
    "create_op_family_stmt": "opfamilyname",
}
"""The field of the qualified name, by the node of the statement that makes it."""


def makes_temporary(name: str, tree: Any) -> bool:
    """Whether it makes an object that lives with the session. ON COMMIT DROP does not."""
    field = _NAMES.get(name)
    if field is not None:
        qualified = getattr(tree, field)
        return len(qualified) > 1 and _is_temporary(qualified[0].string.sval)
    match name:
        case "create_stmt":
            return _temporary(tree.relation) and not _dropped_at_commit(tree.oncommit, tree)
        case "create_foreign_table_stmt":
            return _temporary(tree.base_stmt.relation)
        case "create_table_as_stmt":
            return _temporary(tree.into.rel) and not _dropped_at_commit(tree.into.on_commit, tree.into)
        case "select_stmt":
            return tree.HasField("into_clause") and _temporary(tree.into_clause.rel)
        case "view_stmt":
            return _temporary(tree.view)
        case "create_seq_stmt":
            return _temporary(tree.sequence)
        case "composite_type_stmt":
            return _temporary(tree.typevar)
        case "import_foreign_schema_stmt":
            return _is_temporary(tree.local_schema)
        case "create_extension_stmt":
            return any(one.def_elem.defname == "schema" and _is_temporary(one.def_elem.arg.string.sval)
                       for one in tree.options)  # fmt: skip
    return False


def may_create_there(name: str, tree: Any) -> bool:
    """Whether, for the rest of its transaction, what is created without a schema may stand in pg_temp: it is the first
    that exists of a search_path."""
    if name == "variable_set_stmt":
        return tree.name.lower() == "search_path" and _mentions(constant(one) for one in tree.args)
    return any(
        names[-1] == "set_config" and len(call.args) > 1 and constant(call.args[0]) in (None, "search_path")
        and (constant(call.args[1]) is None or _mentions([constant(call.args[1])]))
        for names, call in calls_of(tree)
    )  # fmt: skip


def _mentions(values: Iterable[object]) -> bool:
    return any("pg_temp" in str(value).lower() for value in values)


def _is_temporary(schema: str) -> bool:
    return _SCHEMA.fullmatch(schema) is not None


def _temporary(relation: Any) -> bool:
    return bool(relation.relpersistence == "t" or _is_temporary(relation.schemaname))


def _dropped_at_commit(value: int, owner: Any) -> bool:
    field = "oncommit" if "oncommit" in type(owner).DESCRIPTOR.fields_by_name else "on_commit"
    enum = type(owner).DESCRIPTOR.fields_by_name[field].enum_type
    return bool(enum.values_by_number[value].name == "ONCOMMIT_DROP")
