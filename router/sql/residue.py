"""What the functions that a statement calls leave behind in its session, by their names.

Three kinds: those known to change it, those known not to, and all others. A function of the tenant's own may do
anything; only an interactive transaction, which had its connection alone, can be cleaned up after for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import postgast
from google.protobuf.message import DecodeError
from postgast.walk import walk

from router.model.request import Residue

SESSION_FUNCTIONS: Mapping[str, Residue] = {
    "pg_advisory_lock": Residue.DISCARD,
    "pg_advisory_lock_shared": Residue.DISCARD,
    "pg_try_advisory_lock": Residue.DISCARD,
    "pg_try_advisory_lock_shared": Residue.DISCARD,
    "pg_advisory_unlock": Residue.DISCARD,
    "pg_advisory_unlock_shared": Residue.DISCARD,
    "pg_advisory_unlock_all": Residue.DISCARD,
    # DISCARD ALL forgets neither the seed of random() nor connections to elsewhere.
    "setseed": Residue.DESTROY,
    "dblink_connect": Residue.DESTROY,
    "dblink_connect_u": Residue.DESTROY,
    "dblink_disconnect": Residue.DESTROY,
}
"""Their effects outlive the transaction; set_config is judged by its arguments. The pg_*_xact_* locks end with it."""

_RUN_TEXTS: Mapping[str, int] = {
    "query_to_xml": 0, "query_to_xmlschema": 0, "query_to_xml_and_xmlschema": 0, "ts_stat": 0, "ts_rewrite": 1,
}  # fmt: skip
"""PostgreSQL's own that run a query which is given to them as a text, and which of their arguments that is."""

_LARGE_OBJECTS = frozenset({
    "lo_create", "lo_creat", "lo_from_bytea", "lo_put", "lo_unlink", "lo_truncate", "lo_truncate64", "lowrite",
    "lo_import",
})  # fmt: skip

SESSION_WORDS = (
    b"set_config", b"setseed", b"advisory_lock", b"advisory_unlock", b"dblink_", b"currval", b"lastval",
    b"query_to_xml", b"ts_stat", b"ts_rewrite",
    b"lo_creat", b"lo_from_bytea", b"lo_put", b"lo_unlink", b"lo_truncate", b"lowrite", b"lo_import",
)  # fmt: skip
"""In lower case: every text that calls one of them holds one of these, or spells it with escapes (u&"...")."""

_CALLS_SESSION_FUNCTION = re.compile(
    rb"\b(?:set_config|setseed|pg_(?:try_)?advisory_(?:un)?lock|dblink_(?:dis)?connect)\w*\"?\s*\(", re.IGNORECASE
)

_RUNS_TEXT = re.compile(rb"\b(?:query_to_xml\w*|ts_stat|ts_rewrite)\"?\s*\(", re.IGNORECASE)

_PUNCTUATION = re.compile(r"[^a-z0-9]")
"""PostgreSQL ignores it in the name of an encoding."""

_NAMES = """
    abs age any_value array_agg array_append array_cat array_length array_position array_positions array_prepend
    array_remove array_replace array_to_json array_to_string array_upper avg bit_length bool_and bool_or btrim
    cardinality ceil ceiling char_length character_length chr clock_timestamp concat concat_ws count cume_dist
    current_database current_schema current_setting date_bin date_part date_trunc decode dense_rank encode every
    exp extract first_value floor format format_type gen_random_uuid generate_series greatest initcap json_agg
    json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_object_agg json_to_record json_to_recordset jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object_agg jsonb_object_keys jsonb_path_exists
    jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_set jsonb_strip_nulls jsonb_to_record
    jsonb_to_recordset jsonb_typeof lag last_value lead least left length like_escape ln log lower lpad ltrim
    make_date make_interval make_time make_timestamp make_timestamptz max md5 min mod mode now ntile nth_value
    nullif num_nonnulls num_nulls octet_length overlaps overlay percent_rank percentile_cont percentile_disc
    pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_backend_pid pg_column_size pg_is_in_recovery pg_notify
    pg_relation_size pg_sleep pg_total_relation_size pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
    pg_typeof plainto_tsquery phraseto_tsquery position power quote_ident quote_literal quote_nullable radians
    random rank regexp_count regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr repeat replace reverse right round row_number row_to_json rpad rtrim
    sha256 sign similarity split_part sqrt starts_with statement_timestamp stddev string_agg string_to_array
    string_to_table strpos substr substring sum timezone to_char to_date to_json to_jsonb to_number to_timestamp
    to_tsquery to_tsvector transaction_timestamp translate trim trunc ts_headline ts_rank ts_rank_cd
    txid_current unnest upper uuidv4 uuidv7 var_pop variance version websearch_to_tsquery width_bucket nextval
    setval currval lastval
"""
_HARMLESS = frozenset(_NAMES.split())
"""PostgreSQL's own that change nothing in their session. Sequences are cared for elsewhere."""

_KNOWN = _HARMLESS | SESSION_FUNCTIONS.keys() | {"set_config"}


def calls_by_text(sql: bytes) -> bool:
    """Whether the text seems to call a session function; for texts whose tree cannot be had."""
    return _CALLS_SESSION_FUNCTION.search(sql) is not None


def runs_texts_by_text(sql: bytes) -> bool:
    """Whether the text seems to call a function that runs a query; for texts whose tree cannot be had."""
    return _RUNS_TEXT.search(sql) is not None


def residue_of_calls(tree: Any) -> Residue:
    """What the functions leave of which it is known that they leave something."""
    return max((_residue_of(names, call) for names, call in calls_of(tree)), default=Residue.NONE)


def sets_encoding(tree: Any) -> bool:
    """Whether it calls set_config for client_encoding, with a value that is not plainly UTF-8."""
    return any(
        names[-1] == "set_config" and len(call.args) > 1 and _lower(call.args[0]) == "client_encoding"
        and not is_utf8(constant(call.args[1]))
        for names, call in calls_of(tree)
    )


def is_utf8(value: object) -> bool:
    """Whether it is one of PostgreSQL's names for UTF-8."""
    return isinstance(value, str) and _PUNCTUATION.sub("", value.lower()) in ("utf8", "unicode")


def _lower(node: Any) -> str:
    return str(constant(node)).lower()


def sequences_read(tree: Any) -> bool:
    """Whether it asks what its session drew from a sequence, and draws nothing by itself that could be meant."""
    names = {called[-1] for called, _ in calls_of(tree)}
    return bool(names & {"currval", "lastval"}) and "nextval" not in names


def calls_unknown(tree: Any) -> bool:
    """Whether it calls a function of which nobody here knows what it does."""
    return any(names[-1] not in _KNOWN or names[:-1] not in ([], ["pg_catalog"]) for names, _ in calls_of(tree))


def writes_large_objects(tree: Any) -> bool:
    """Whether it writes large objects, which PostgreSQL before 16 does not take for writing."""
    return any(names[-1] in _LARGE_OBJECTS for names, _ in calls_of(tree))


def calls_of(tree: Any) -> Iterator[tuple[list[str], Any]]:
    """The functions that are called by their names, in parts, and each call."""
    for _, node in walk(tree):
        if type(node).__name__ == "FuncCall":
            yield [part.string.sval for part in node.funcname] or [""], node


def _residue_of(names: list[str], call: Any) -> Residue:
    name = names[-1]
    if name in _RUN_TEXTS:
        return _residue_of_text(name, call)
    if name != "set_config":
        return SESSION_FUNCTIONS.get(name, Residue.NONE)
    # set_config(name, value, true) is SET LOCAL; any other third argument may be false.
    if len(call.args) == 3 and constant(call.args[2]) is True:
        return Residue.NONE
    setting = constant(call.args[0]) if call.args else None
    # The name of a setting of one's own stays known, as an empty text; one that is computed may be any.
    plain = isinstance(setting, str) and "." not in setting and setting.lower() not in _NOT_RESET
    return Residue.DISCARD if plain else Residue.DESTROY


def _residue_of_text(name: str, call: Any) -> Residue:
    """What a query leaves that stands there as a text; one that is computed may leave anything."""
    place = _RUN_TEXTS[name]
    if name == "ts_rewrite" and len(call.args) == 3:  # its other form runs nothing
        return Residue.NONE
    text = constant(call.args[place]) if len(call.args) > place else None
    if not isinstance(text, str):
        return Residue.DESTROY
    try:
        return max((residue_of_calls(one.stmt) for one in postgast.parse(text).stmts), default=Residue.NONE)
    except (DecodeError, postgast.PgQueryError):
        return Residue.DESTROY


_NOT_RESET = frozenset({"role", "session_authorization", "seed"})


def constant(node: Any) -> str | bool | None:
    """A text or truth value that stands there as such."""
    if node.WhichOneof("node") != "a_const":
        return None
    match node.a_const.WhichOneof("val"):
        case "sval":
            return str(node.a_const.sval.sval)
        case "boolval":
            return bool(node.a_const.boolval.boolval)
    return None
