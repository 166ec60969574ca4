"""A server refuses what a command printed: the connection is made with what it prints next, or after that."""

from __future__ import annotations

import pytest

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, FaultKind
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.secret_commands import SecretCommand
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance
from tests.postgres.test_lane import soon
from tests.support.budgets import roomy
from tests.support.builders import Recorder
from tests.support.dev_cluster import TENANTS

pytestmark = pytest.mark.pg

LOGIN = Login("acme", SecretCommand(("/bin/token",)))


class Printed:
    """postgres.passwords.Passwords: one word after the other, each when the one before is refused."""

    def __init__(self, *words: str) -> None:
        self._words = list(map(Secret, words))
        self.refused: list[Secret | None] = []

    async def of(self, login: Login) -> Secret | None:
        return self._words[0]

    async def newer(self, login: Login, refused: Secret | None) -> Secret | None:
        self.refused.append(refused)
        return next(iter(self._words[len(self.refused) :]), None)


def make_pool(pg: DevCluster, printed: Printed) -> PsycopgEndpointPool:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), ClusterName("main"), "127.0.0.1", server.port)
    cluster = Cluster(ClusterName("main"), (endpoint,), Login("pointsman_control", Secret(pg.control_password)))
    tenant = Tenant(TenantName("acme"), ClusterName("main"), "acme", LOGIN)
    factory = PsycopgPoolFactory(SystemChance(), Recorder(), roomy, printed)
    return factory.make(tenant, cluster, endpoint, Access.READ_WRITE, Generation(1))


@pytest.mark.parametrize("late", [0, 1, 2])
async def test_what_was_changed_again_meanwhile_is_asked_for_again(pg_cluster: DevCluster, late: int) -> None:
    printed = Printed(*(f"late-{number}" for number in range(late)), TENANTS["acme"])
    pool = make_pool(pg_cluster, printed)
    try:
        lane = await pool.open_lane(soon())
        await lane.give_back()
        assert len(printed.refused) == late
    finally:
        await pool.close(CloseReason.SHUTDOWN)


@pytest.mark.parametrize("words", [1, 2, 9])
async def test_a_login_that_is_refused_whatever_is_printed_is_told(pg_cluster: DevCluster, words: int) -> None:
    printed = Printed(*(f"wrong-{number}" for number in range(words)))
    pool = make_pool(pg_cluster, printed)
    try:
        with pytest.raises(AttemptFailed) as caught:
            await pool.open_lane(soon())
        assert caught.value.fault.kind is FaultKind.CONNECT_FAILED
        assert 1 <= len(printed.refused) <= 2
    finally:
        await pool.close(CloseReason.SHUTDOWN)
