"""The real thing behind ports.EndpointPool, for the contract."""

from __future__ import annotations

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.policy import PoolPolicy
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.system import SystemChance
from tests.support.budgets import roomy
from tests.support.builders import Recorder


def make_real_pool(pg: DevCluster, access: Access, policy: PoolPolicy) -> PsycopgEndpointPool:
    """A pool of tenant acme at the cluster's primary, generation 1."""
    server = pg.primary()
    main = ClusterName("main")
    endpoint = Endpoint(EndpointName(server.name), main, "127.0.0.1", server.port)
    cluster = Cluster(main, (endpoint,), Login("pointsman_control", Secret(pg.control_password)))
    tenant = Tenant(TenantName("acme"), main, "acme", Login("acme", Secret("acme-secret")), pool=policy)
    return PsycopgPoolFactory(SystemChance(), Recorder(), roomy).make(tenant, cluster, endpoint, access, Generation(1))
