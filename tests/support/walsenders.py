"""Standbys that confirm nothing: the primary's walsenders are stopped, and with them every synchronous commit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from router.devcluster import DevCluster, Server
from tests.support.eventually import ask, rows_of

PATIENT = {"wal_sender_timeout": "0", "wal_receiver_timeout": "60s"}
"""Settings of a cluster whose standbys do not give a stopped walsender up within a test."""

_WAITING = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and usename = 'acme'"


@contextmanager
def confirming_nothing(cluster: DevCluster) -> Iterator[Server]:
    """The primary, whose commits wait meanwhile. It may be killed inside."""
    primary = cluster.primary()
    pids = [int(row[0]) for row in rows_of(primary.superuser_dsn, "select pid from pg_stat_replication")]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield primary
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def waiting(cluster: DevCluster) -> int:
    """How many commits of acme wait for a standby."""
    return int(ask(cluster, _WAITING))


def end_waits(cluster: DevCluster, function: str) -> list[int]:
    """As an administrator: pg_cancel_backend or pg_terminate_backend on all of them; their process ids."""
    rows = rows_of(cluster.primary().superuser_dsn, _WAITING.replace("count(*)", f"pid, {function}(pid)"))
    return [int(row[0]) for row in rows]
