"""What a server says about itself, in one round trip: the query behind RoleClaim, and reading its answer.

Needs the rights of pg_monitor only. The timeline of a standby comes from its walreceiver; when that is gone, from the
name of the log segment that holds the last received position, the newest timeline that has one. The control file
(pg_control_checkpoint, pg_control_recovery) lags behind by up to a checkpoint and is the last resort only.
Recovery may end while the query runs, and a transaction that began before stays read-only to its end; so whether
a primary takes writes is what the next transaction will find.
The replication password in primary_conninfo is not fetched.
"""

from __future__ import annotations

import json
import math

from router.model.identity import NO_LSN, Lsn, Term, lsn_from_text
from router.model.observation import RoleClaim

FENCED_HOST = "/pointsman-fenced"
"""A socket directory that does not exist: a walreceiver pointed there fails at once, and its login is kept."""

_LAST_TIMELINE = 0x7FFFFFFF
_SEGMENT = """lpad(upper(to_hex((at / bytes) / (4294967296 / bytes))), 8, '0')
           || lpad(upper(to_hex((at / bytes) % (4294967296 / bytes))), 8, '0')"""

ROLE_QUERY = f"""
SELECT pg_is_in_recovery(),
       (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN NOT pg_is_in_recovery()
            THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer
            WHEN r.received_tli > 0 THEN r.received_tli
            ELSE coalesce(
              (SELECT max(('x' || substr(name, 1, 8))::bit(32)::integer)
                 FROM pg_ls_waldir(),
                      (SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0' - 1,
                              pg_size_bytes(current_setting('wal_segment_size'))) AS last(at_exact, bytes),
                      LATERAL (SELECT at_exact::bigint) AS whole(at)
                WHERE name ~ '^[0-9A-F]{{24}}$' AND substr(name, 9) = {_SEGMENT}),
              greatest((SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                       (SELECT timeline_id FROM pg_control_checkpoint())))
       END,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) END,
       CASE WHEN NOT pg_is_in_recovery() THEN 0
            WHEN r.status = 'streaming' AND pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
            ELSE coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), -1) END,
       coalesce(r.status = 'streaming', false),
       coalesce(extract(epoch FROM clock_timestamp() - r.last_msg_receipt_time), -1),
       current_setting('synchronous_standby_names'),
       (SELECT json_agg(json_build_array(application_name, sync_state))
          FROM pg_stat_replication WHERE state = 'streaming'),
       CASE WHEN pg_is_in_recovery() AND pg_has_role('pg_read_all_settings', 'USAGE') THEN
         coalesce((regexp_match(current_setting('primary_conninfo'),
                                'application_name\\s*=\\s*''?([^''\\s]+)'))[1],
                  nullif(current_setting('cluster_name'), ''), 'walreceiver') END,
       NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only')::boolean,
       extract(epoch FROM current_setting('wal_retrieve_retry_interval')::interval) * 1000,
       extract(epoch FROM current_setting('wal_receiver_timeout')::interval) / 2,
       pg_is_in_recovery() AND pg_has_role('pg_read_all_settings', 'USAGE')
         AND position('{FENCED_HOST}' in current_setting('primary_conninfo')) > 0
  FROM (SELECT) AS one LEFT JOIN pg_stat_wal_receiver AS r ON true
"""


def read_claim(row: tuple[str | None, ...], version: int) -> RoleClaim:
    """The claim in the one row that ROLE_QUERY answers. ValueError or TypeError when it makes no sense."""
    # fmt: off
    (in_recovery, system_id, timeline, lsn, received, lag, alive, silent, sync_names, standbys, application_name,
     read_only, retry_ms, ping, fenced) = row
    # fmt: on
    replicating: list[tuple[str, str]] = json.loads(standbys) if standbys else []
    ping_s = _number(ping)
    return RoleClaim(
        in_recovery=in_recovery == "t",
        system_id=int(system_id or 0),
        timeline=_term(timeline),
        lsn=_lsn(lsn),
        received_lsn=_lsn(received),
        lag_s=max(-1.0, _number(lag)),
        receiver_alive=alive == "t",
        receiver_silent_s=_number(silent or "-1"),
        sync_names=sync_names or "",
        sync_standbys=tuple(name for name, state in replicating if state in ("sync", "quorum")),
        standbys=tuple(name for name, _ in replicating),
        application_name=application_name or "",
        read_only=read_only == "t",
        version=version,
        retry_interval_ms=round(_number(retry_ms)),
        receiver_ping_s=ping_s if ping_s > 0 else -1.0,
        fenced=fenced == "t",
    )


def _lsn(text: str | None) -> Lsn:
    return lsn_from_text(text) if text else NO_LSN


def _term(text: str | None) -> Term:
    """A timeline: above zero, and what the query's integer can hold."""
    timeline = int(text or 0)
    if not 0 <= timeline <= _LAST_TIMELINE:
        raise ValueError(f"not a timeline: {timeline}")
    return Term(timeline)


def _number(text: str | None) -> float:
    number = float(text or 0)
    if not math.isfinite(number):
        raise ValueError(f"not a number: {text}")
    return number
