"""`\\d` and `\\d NAME`: the tables of a database, the columns and indexes of one."""

from __future__ import annotations

from router.console.sql_session import Outcome, SqlSession
from router.console.trouble import Trouble

DESCRIBING = ("\\d", "\\dt", "\\dv")
_TABLES = """\
select n.nspname as schema, c.relname as name,
       case c.relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view'
                      when 'm' then 'materialized view' when 'f' then 'foreign table' else 'sequence' end as kind,
       pg_get_userbyid(c.relowner) as owner, pg_size_pretty(pg_relation_size(c.oid)) as size
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
   and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'pointsman')
 order by 1, 2"""
_COLUMNS = """\
select a.attname as column, format_type(a.atttypid, a.atttypmod) as type, not a.attnotnull as nullable,
       pg_get_expr(d.adbin, d.adrelid) as default
  from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
 order by a.attnum"""
_INDEXES = """\
select pg_get_indexdef(indexrelid) as index from pg_index where indrelid = to_regclass($1) order by 1"""


def describe(session: SqlSession, relation: str) -> list[Outcome]:
    """What to show for a relation, or for all when it is empty. Trouble when there is none; pointsman.Error."""
    if not relation:
        return [session.run_with(_TABLES)]
    columns = session.run_with(_COLUMNS, relation)
    if not columns.rowcount:
        raise Trouble(f"there is no table or view {relation} in the search path")
    indexes = session.run_with(_INDEXES, relation)
    return [columns, indexes] if indexes.rowcount else [columns]
