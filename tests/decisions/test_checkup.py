"""What is found wrong with servers' settings: one row a check, and nothing where nothing is wrong."""

from dataclasses import replace

import pytest

from router.decisions.checkup import examine, manager_of, unexamined
from router.model.checkup import Check, ServerSettings, Severity, Unanswered
from router.model.identity import ClusterName, EndpointName
from router.model.policy import ClusterPolicy, FailoverPolicy
from router.model.topology import Cluster, Endpoint, FailoverMode, Login

N1, N2, N3 = (EndpointName(name) for name in ("n1", "n2", "n3"))
MAIN = ClusterName("main")
CLUSTER = Cluster(
    MAIN, tuple(Endpoint(name, MAIN, "db") for name in (N1, N2, N3)), Login("pointsman_control"),
    mode=FailoverMode.PROMOTE,
)  # fmt: skip
GOOD = ServerSettings(180006, False, "", "ANY 1 (n2, n3)", 0.1, 2.0)


def servers(**changed: object) -> dict[EndpointName, ServerSettings]:
    """All as they should be, but for the primary."""
    leader = replace(GOOD, **changed)  # type: ignore[arg-type]
    standbys = {name: replace(GOOD, in_recovery=True, application_name=name) for name in (N2, N3)}
    return {N1: leader, **standbys}


def test_nothing_is_found_where_nothing_is_wrong():
    assert examine(CLUSTER, servers(), N1) == ()


@pytest.mark.parametrize(
    ("changed", "check", "severity", "fix"),
    [
        ({"sync_names": ""}, Check.SYNC_NAMES_EMPTY, Severity.ERROR, """'ANY 1 ("n2", "n3")'; SELECT pg_reload"""),
        ({"sync_names": "ANY 1 (n2, other)"}, Check.SYNC_NAMES_UNKNOWN, Severity.ERROR, "ANY 1"),
        ({"sync_names": "ANY 2 (n2, n3)"}, Check.SYNC_NAMES_ALL, Severity.WARNING, "ANY 1"),
        ({"retry_interval_s": 5.0}, Check.RETRY_INTERVAL, Severity.WARNING, "wal_retrieve_retry_interval = '100ms'"),
        ({"receiver_timeout_s": 60.0}, Check.RECEIVER_TIMEOUT, Severity.WARNING, "wal_receiver_timeout = '2s'"),
        ({"receiver_timeout_s": 0.0}, Check.RECEIVER_TIMEOUT, Severity.WARNING, "wal_receiver_timeout = '2s'"),
        ({"log_hints": False, "checksums": False}, Check.REWIND, Severity.WARNING, "wal_log_hints = on"),
        ({"full_page_writes": False}, Check.REWIND, Severity.WARNING, "full_page_writes = on"),
        ({"hot_standby": False}, Check.HOT_STANDBY, Severity.ERROR, "hot_standby = on"),
        ({"prepared_transactions": 10}, Check.PREPARED_TRANSACTIONS, Severity.WARNING, "= 0; -- then restart"),
        ({"missing_rights": ("pg_monitor",)}, Check.RIGHTS, Severity.ERROR, 'GRANT pg_monitor TO "pointsman_control";'),
        ({"manager": "Patroni is connected"}, Check.MANAGED_ELSEWHERE, Severity.ERROR, "mode: follow"),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_found_with_its_fix(
    changed: dict[str, object], check: Check, severity: Severity, fix: str
):
    [found] = examine(CLUSTER, servers(**changed), N1)
    assert (found.endpoint, found.check, found.severity) == (N1, check, severity)
    assert fix in found.fix


def test_a_standby_must_know_who_is_to_confirm_before_it_is_promoted():
    told = servers()
    told[N2] = replace(told[N2], sync_names="")
    [found] = examine(CLUSTER, told, N1)
    assert (found.endpoint, found.check, found.severity) == (N2, Check.SYNC_NAMES_EMPTY, Severity.WARNING)
    assert """'ANY 1 ("n1", "n3")'; SELECT pg_reload""" in found.fix


def test_versions_are_compared_with_each_other_and_with_what_is_safe():
    found = examine(CLUSTER, servers(version=180003), N1)
    assert [one.check for one in found] == [Check.MINOR_VERSION, Check.MIXED_VERSIONS]
    assert "18.4" in found[0].message
    assert not examine(CLUSTER, {N1: replace(GOOD, version=190000)}, N1), "what is not known is not judged"


def test_either_of_checksums_and_hints_will_do():
    assert not examine(CLUSTER, servers(log_hints=False), N1)
    assert not examine(CLUSTER, servers(checksums=False), N1)


def test_in_follow_mode_who_promotes_and_how_is_not_ours():
    follow = replace(CLUSTER, mode=FailoverMode.FOLLOW)
    assert not examine(follow, servers(sync_names="", missing_rights=("pg_monitor",), manager="Patroni"), N1)
    assert examine(follow, servers(retry_interval_s=5.0), N1)


def test_a_cluster_that_may_lose_writes_needs_no_synchronous_standbys():
    lossy = replace(CLUSTER, policy=ClusterPolicy(failover=FailoverPolicy(may_lose=True)))
    assert not examine(lossy, servers(sync_names=""), N1)


def test_errors_come_first():
    found = examine(CLUSTER, servers(retry_interval_s=5.0, sync_names=""), N1)
    assert [one.severity for one in found] == [Severity.ERROR, Severity.WARNING]


def test_the_old_primary_may_be_listed_and_stars_are_everybody():
    assert not examine(CLUSTER, servers(sync_names="ANY 1 (n1, n3)"), N1)
    assert not examine(CLUSTER, servers(sync_names="*"), N1)


def test_who_else_moves_the_primary():
    assert manager_of(servers()) == ""
    assert manager_of(servers(manager="Patroni is connected")) == "n1: Patroni is connected"


def test_a_server_that_nobody_could_look_at_is_found():
    seen = servers()
    del seen[N2], seen[N3]
    found = tuple(unexamined(CLUSTER, seen, {N3: Unanswered("connection refused", since=100.0)}, 112.4))
    assert [(one.endpoint, one.check, one.message) for one in found] == [
        (N2, Check.NOT_EXAMINED, "not examined yet"),
        (N3, Check.NOT_EXAMINED, "could not be examined, for 12 s: connection refused"),
    ]
    assert tuple(unexamined(CLUSTER, servers(), {}, 0.0)) == ()
