"""The development cluster as the router's configuration knows it."""

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName
from router.model.policy import ClusterPolicy, ProbePolicy
from router.model.topology import Cluster, Endpoint, FailoverMode, Login, Secret

CONTROL_ROLE = "pointsman_control"


def configured(dev: DevCluster, timeout_s: float = 0.5) -> Cluster:
    """All servers of a development cluster, watched by the control role."""
    name = ClusterName("dev")
    endpoints = tuple(Endpoint(EndpointName(e.name), name, e.host, e.port) for e in dev.endpoints())
    login = Login(CONTROL_ROLE, Secret(dev.control_password))
    policy = ClusterPolicy(probe=ProbePolicy(timeout_s=timeout_s))
    return Cluster(name, endpoints, login, mode=FailoverMode.PROMOTE, policy=policy)


def endpoint(cluster: Cluster, name: str) -> Endpoint:
    """One endpoint by name."""
    return next(e for e in cluster.endpoints if e.name == name)
