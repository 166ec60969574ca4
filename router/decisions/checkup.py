"""Reads servers' settings as a doctor would: what makes a failover slow, unsafe or impossible, and the fix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from router.decisions.promotion import read_sync_names
from router.model.checkup import Check, Finding, ServerSettings, Severity, Unanswered
from router.model.identity import EndpointName
from router.model.topology import Cluster, FailoverMode
from router.model.views import CredentialTrouble

LONG_RETRY_S = 1.0
LONG_TIMEOUT_S = 10.0
SAFE_MINORS: Mapping[int, int] = {15: 18, 16: 14, 17: 10, 18: 4}
"""By major: minors before these (of May 2026) let any user who may run SQL corrupt the server's memory."""

Settings = Mapping[EndpointName, ServerSettings]


def examine(cluster: Cluster, settings: Settings, primary: EndpointName | None) -> tuple[Finding, ...]:
    """Everything found on the servers that could be asked; the worst first, then by endpoint."""
    found = [*_together(cluster, settings, primary)]
    for name, one in settings.items():
        found += _alone(cluster, name, one)
    return worst_first(found)


def unexamined(
    cluster: Cluster, settings: Settings, unanswered: Mapping[EndpointName, Unanswered], now: float
) -> Iterator[Finding]:
    """A finding for each server of which nothing is known: that nothing was found there means nothing."""
    for name in (one.name for one in cluster.endpoints if one.name not in settings):
        tried = unanswered.get(name)
        if tried is None:
            message, fix = "not examined yet", "-- ask again in some seconds"
        else:
            message = f"could not be examined, for {now - tried.since:.0f} s: {tried.why}"
            fix = "-- start the server, or mend what keeps the router's own login out; it is asked every few seconds"
        yield Finding(name, Check.NOT_EXAMINED, Severity.WARNING, message, fix)


def worst_first(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by endpoint."""
    return tuple(sorted(found, key=lambda one: (one.severity is not Severity.ERROR, one.endpoint, one.check.value)))


def manager_of(settings: Settings) -> str:
    """Who else moves the primary of these servers, in words; empty when nobody does."""
    told = sorted(f"{name}: {one.manager}" for name, one in settings.items() if one.manager)
    return told[0] if told else ""


def of_credential(trouble: CredentialTrouble) -> Finding:
    """A login that is not in use as configured."""
    whose = "the router's own login" if trouble.tenant is None else f"login of tenant {trouble.tenant}"
    message = f"{whose}, for {trouble.for_s:.0f} s: {trouble.problem}"
    fix = "-- mend the login in PostgreSQL (ALTER ROLE ... PASSWORD, pg_hba.conf), its command, or the configuration"
    return Finding(trouble.endpoint, Check.CREDENTIAL, Severity.ERROR, message, fix)


def _alone(cluster: Cluster, name: EndpointName, one: ServerSettings) -> Iterator[Finding]:
    promotes = cluster.mode is FailoverMode.PROMOTE
    if one.manager and promotes:
        yield Finding(
            name, Check.MANAGED_ELSEWHERE, Severity.ERROR,
            f"{one.manager}: promote mode stays out of its way and does nothing",
            "-- set mode: follow in the configuration of this cluster",
        )  # fmt: skip
    if one.missing_rights and promotes:
        user = cluster.control.user.replace('"', '""')
        yield Finding(
            name, Check.RIGHTS, Severity.ERROR, f"{cluster.control.user} may not: {', '.join(one.missing_rights)}",
            " ".join(f'GRANT {right} TO "{user}";' for right in one.missing_rights),
        )  # fmt: skip
    if not one.hot_standby:
        yield _restart(
            name, Check.HOT_STANDBY, Severity.ERROR, "hot_standby is off: as a standby it answers nobody",
            "ALTER SYSTEM SET hot_standby = on;",
        )  # fmt: skip
    yield from _rewind(name, one)
    if one.retry_interval_s > LONG_RETRY_S:
        yield _reload(
            name, Check.RETRY_INTERVAL,
            f"wal_retrieve_retry_interval is {one.retry_interval_s:g} s: a standby may sleep so long before it follows "
            "a new primary, or becomes it", "ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms';",
        )  # fmt: skip
    if not 0 < one.receiver_timeout_s <= LONG_TIMEOUT_S:
        value = f"{one.receiver_timeout_s:g} s" if one.receiver_timeout_s else "off"
        yield _reload(
            name, Check.RECEIVER_TIMEOUT,
            f"wal_receiver_timeout is {value}: a standby notices a frozen primary only after half of it",
            "ALTER SYSTEM SET wal_receiver_timeout = '2s';",
        )  # fmt: skip
    if one.prepared_transactions:
        yield _restart(
            name, Check.PREPARED_TRANSACTIONS, Severity.WARNING,
            f"max_prepared_transactions is {one.prepared_transactions}: a transaction prepared and forgotten keeps its "
            "locks for ever, over failovers too", "ALTER SYSTEM SET max_prepared_transactions = 0;",
        )  # fmt: skip
    yield from _version(name, one)


def _version(name: EndpointName, one: ServerSettings) -> Iterator[Finding]:
    major, minor = divmod(one.version, 10_000)
    if minor < SAFE_MINORS.get(major, 0):
        yield Finding(
            name, Check.MINOR_VERSION, Severity.WARNING,
            f"PostgreSQL {major}.{minor} lacks security fixes of {major}.{SAFE_MINORS[major]}",
            f"-- update to {major}.{SAFE_MINORS[major]} or newer",
        )  # fmt: skip


def _rewind(name: EndpointName, one: ServerSettings) -> Iterator[Finding]:
    if not (one.log_hints or one.checksums):
        yield _restart(
            name, Check.REWIND, Severity.WARNING,
            "neither wal_log_hints nor checksums: pg_rewind cannot bring it back as a standby after a failover",
            "ALTER SYSTEM SET wal_log_hints = on;",
        )  # fmt: skip
    elif not one.full_page_writes:
        yield _reload(
            name, Check.REWIND, "full_page_writes is off: pg_rewind cannot bring it back as a standby after a failover",
            "ALTER SYSTEM SET full_page_writes = on;",
        )  # fmt: skip


def _together(cluster: Cluster, settings: Settings, primary: EndpointName | None) -> Iterator[Finding]:
    versions = {one.version for one in settings.values()}
    if len(versions) > 1:
        told = ", ".join(f"{name} {one.version // 10_000}.{one.version % 10_000}" for name, one in settings.items())
        newest = max(settings, key=lambda name: settings[name].version)
        yield Finding(
            newest, Check.MIXED_VERSIONS, Severity.WARNING, f"the servers run different versions: {told}",
            "-- update all of them, standbys first",
        )  # fmt: skip
    leader = settings.get(primary) if primary is not None else None
    if primary is not None and leader is not None and cluster.mode is FailoverMode.PROMOTE:
        yield from _synchronous(cluster, settings, primary, leader)


def _synchronous(
    cluster: Cluster, settings: Settings, primary: EndpointName, leader: ServerSettings
) -> Iterator[Finding]:
    others = _others(cluster, settings, primary)
    good = _any_of(others)
    rule = read_sync_names(leader.sync_names)
    if rule.k == 0:
        if not cluster.policy.failover.may_lose:
            yield _reload(
                primary, Check.SYNC_NAMES_EMPTY,
                "synchronous_standby_names is empty: nothing is promoted, as acknowledged writes could be lost", good,
                Severity.ERROR,
            )  # fmt: skip
        return
    for name, one in settings.items():
        if name != primary and one.in_recovery and not one.sync_names:
            yield _reload(
                name, Check.SYNC_NAMES_EMPTY,
                "synchronous_standby_names is empty on this standby: if it is promoted in the middle of a checkpoint, "
                "writes wait until the checkpointer has read the setting, and those that bypass the router are "
                "acknowledged meanwhile without a standby",
                _any_of(_others(cluster, settings, name)),
            )  # fmt: skip
    unknown = [name for name in rule.names if name not in {one.lower() for one in others} and name != "*"]
    unknown = [name for name in unknown if name != primary.lower()]
    if unknown:
        yield _reload(
            primary, Check.SYNC_NAMES_UNKNOWN,
            f"synchronous_standby_names lists {', '.join(unknown)}, which no endpoint of the cluster is called: they "
            "count as standbys that cannot be fenced", good, Severity.ERROR,
        )  # fmt: skip
    elif rule.names != ("*",) and rule.k >= len(rule.names):
        yield _reload(
            primary, Check.SYNC_NAMES_ALL,
            f"synchronous_standby_names asks all {rule.k} of {', '.join(rule.names)}: writes stop when one is lost",
            good,
        )  # fmt: skip


def _others(cluster: Cluster, settings: Settings, name: EndpointName) -> list[str]:
    """What all servers but one are called by synchronous_standby_names."""
    return [
        (settings[one.name].application_name if one.name in settings else "") or one.name
        for one in cluster.endpoints
        if one.name != name
    ]


def _any_of(names: list[str]) -> str:
    listed = ", ".join('"' + name.replace('"', '""').replace("'", "''") + '"' for name in names)
    return f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({listed})';"


def _reload(
    name: EndpointName, check: Check, message: str, sql: str, severity: Severity = Severity.WARNING
) -> Finding:
    return Finding(name, check, severity, message, f"{sql} SELECT pg_reload_conf();")


def _restart(name: EndpointName, check: Check, severity: Severity, message: str, sql: str) -> Finding:
    return Finding(name, check, severity, message, f"{sql} -- then restart the server")
