"""engine.doctor.Examiner: a server's settings that matter to a failover, and whether Patroni manages it.

Patroni shows in two ways, either of which is enough. It starts the postmaster with the settings that must agree among
servers as command line options, which hardly anything else does (all of PATRONI_OPTIONS; a server that Patroni took
over while it ran has none until its next start). And its sessions, of a superuser, are called "Patroni heartbeat" and
the like; a name that a tenant gives itself does not count.
"""

from __future__ import annotations

import asyncio

from router.model.checkup import ServerSettings
from router.model.topology import Cluster, Endpoint
from router.postgres.control_door import ControlDoor

PATRONI_OPTIONS = ("cluster_name", "hot_standby", "max_locks_per_transaction", "wal_level", "wal_log_hints")
TIMEOUT_S = 2.0

_OPTIONS = ", ".join(f"'{name}'" for name in PATRONI_OPTIONS)
PATRONI_QUERY = f"""
SELECT CASE
  WHEN (SELECT count(*) FROM pg_settings
         WHERE source = 'command line' AND name IN ({_OPTIONS})) = {len(PATRONI_OPTIONS)}
    THEN 'Patroni has started this server (its settings are on the command line)'
  WHEN EXISTS (SELECT FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.oid = a.usesysid
                WHERE r.rolsuper AND a.application_name ~ '^Patroni (heartbeat|restapi)')
    THEN 'Patroni is connected to this server'
  ELSE '' END
"""
"""In words, who manages the server; empty when nobody does."""

PARAMETERS = ("primary_conninfo", "synchronous_standby_names", "default_transaction_read_only")
_RIGHTS = (
    *(
        (f"has_parameter_privilege('{name}', 'ALTER SYSTEM')", f"ALTER SYSTEM ON PARAMETER {name}")
        for name in PARAMETERS
    ),
    (
        "has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE')",
        "EXECUTE ON FUNCTION pg_catalog.pg_reload_conf()",
    ),
    (
        "has_function_privilege('pg_catalog.pg_promote(boolean, integer)', 'EXECUTE')",
        "EXECUTE ON FUNCTION pg_catalog.pg_promote(boolean, integer)",
    ),
    ("pg_has_role('pg_monitor', 'USAGE')", "pg_monitor"),
    ("pg_has_role('pg_signal_backend', 'USAGE')", "pg_signal_backend"),
)
_MISSING = ", ".join(f"CASE WHEN NOT {test} THEN '{right}' END" for test, right in _RIGHTS)

_QUERY = f"""
SELECT pg_is_in_recovery(),
       CASE WHEN pg_is_in_recovery() AND pg_has_role('pg_read_all_settings', 'USAGE') THEN
         coalesce((regexp_match(current_setting('primary_conninfo'),
                                'application_name\\s*=\\s*''?([^''\\s]+)'))[1],
                  nullif(current_setting('cluster_name'), ''), 'walreceiver') END,
       current_setting('synchronous_standby_names'),
       extract(epoch FROM current_setting('wal_retrieve_retry_interval')::interval),
       extract(epoch FROM current_setting('wal_receiver_timeout')::interval),
       current_setting('hot_standby')::boolean,
       current_setting('wal_log_hints')::boolean,
       current_setting('data_checksums')::boolean,
       current_setting('full_page_writes')::boolean,
       current_setting('max_prepared_transactions'),
       array_to_string(ARRAY[{_MISSING}], '|'),
       ({PATRONI_QUERY})
"""


class PostgresExaminer:
    """Asks the servers of one cluster, each time on a connection of its own."""

    def __init__(self, cluster: Cluster, door: ControlDoor | None = None) -> None:
        self._door = door or ControlDoor(cluster)

    async def examine(self, endpoint: Endpoint) -> ServerSettings:
        """See engine.doctor.Examiner."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        connection = await self._door.open(endpoint, deadline)
        try:
            rows = await connection.query(_QUERY, deadline)
            return _read(rows[0], connection.server_version)
        finally:
            connection.close()


def _read(row: tuple[str | None, ...], version: int) -> ServerSettings:
    # fmt: off
    (in_recovery, name, sync_names, retry, timeout, hot_standby, log_hints, checksums, pages, prepared, missing,
     manager) = row
    # fmt: on
    return ServerSettings(
        version,
        in_recovery == "t",
        name or "",
        sync_names or "",
        float(retry or 0),
        float(timeout or 0),
        hot_standby == "t",
        log_hints == "t",
        checksums == "t",
        pages == "t",
        int(prepared or 0),
        tuple(missing.split("|")) if missing else (),
        manager or "",
    )
