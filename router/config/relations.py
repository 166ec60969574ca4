"""What must fit together across the file: names, shares, addresses, logins. Each check reports all it finds.

A value that was wrong by itself has been replaced by a default or a placeholder, so no relation is judged by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from router.config import isolation
from router.config.addresses import AddressMistake, clash, is_loopback, parse_address
from router.config.document import Document
from router.config.problems import Place
from router.config.schema import ClusterSection, FileConfig, OperatorSection, TenantSection
from router.config.wording import unknown_name
from router.model.policy import ServerPolicy
from router.model.topology import FailoverMode


def check(document: Document, config: FileConfig) -> None:
    """Report every relation that does not hold. config may lack sections that were wrong by themselves."""
    for place, message in _all(document, config):
        document.report(place, message)


def _all(document: Document, config: FileConfig) -> Iterator[tuple[Place, str]]:
    yield from _listeners(config.server, document)
    if not document.values.get("clusters"):
        yield ("clusters",), "must name at least one cluster"
    if not document.values.get("tenants") and not document.values.get("tenants_dir"):
        yield ("tenants",), "must name at least one tenant (or set tenants_dir, to have them in files of their own)"
    elif document.values.get("tenants") and document.values.get("tenants_dir"):
        yield ("tenants_dir",), "cannot stand beside tenants: move each of them into a file NAME.yaml in that folder"
    if not config.admin.tokens and not config.admin.callers:
        yield ("admin", "tokens"), "must hold at least one token: nobody could operate the router otherwise"
    yield from _certificates_are_asked_for(config, document)
    for name, cluster in config.clusters.items():
        yield from _cluster(("clusters", name), cluster, document)
    yield from _endpoints_are_unique(config, document)
    for name, tenant in config.tenants.items():
        yield from _tenant(("tenants", name), tenant, document, config)
    yield from _floors_fit(config, document)
    yield from isolation.check(config, document)


def _listeners(server: ServerPolicy, document: Document) -> Iterator[tuple[Place, str]]:
    taken: list[tuple[str, tuple[str, int]]] = []
    for name in ("listen", "admin_listen", "metrics_listen"):
        text: str = getattr(server, name)
        if (name == "metrics_listen" and not text) or not document.is_sound(("server", name)):
            continue
        try:
            address = parse_address(text)
        except AddressMistake as mistake:
            yield ("server", name), str(mistake)
            continue
        for other, used in taken:
            if clash(address, used):
                yield ("server", name), f"({text}) is the same address as {other}: give each its own port"
        taken.append((name, address))
        tls = {"listen": "tls", "admin_listen": "admin_tls"}.get(name)
        if tls is None or server.allow_plaintext or is_loopback(address) or not document.is_sound(("server", tls)):
            continue
        if not getattr(server, tls).on:
            yield (
                ("server", name),
                f"({text}) can be reached from other machines, and tokens would travel in plain text: "
                f"set server.{tls}.cert and key, or server.allow_plaintext: true where the network is trusted",
            )


def _certificates_are_asked_for(config: FileConfig, document: Document) -> Iterator[tuple[Place, str]]:
    """A caller known by its certificate gets in only where the port asks for one."""
    ports: list[tuple[str, Place, Sequence[OperatorSection]]] = [("admin_tls", ("admin",), config.admin.callers)]
    ports += [("tls", ("tenants", name), tenant.callers) for name, tenant in config.tenants.items()]
    for port, place, callers in ports:
        if getattr(config.server, port).client_ca or not document.is_sound(("server", port)):
            continue
        for index, caller in enumerate(callers):
            if caller.spiffe or caller.dns:
                yield (*place, "callers", index), f"proves itself by a certificate: set server.{port}.client_ca"


def _cluster(place: Place, cluster: ClusterSection, document: Document) -> Iterator[tuple[Place, str]]:
    count = len(_written_endpoints(document.values["clusters"][place[-1]]))
    if not count:
        yield (*place, "endpoints"), "must name at least one endpoint"
    elif _weights_are_sound(place, cluster, document) and not sum(
        endpoint.weight for endpoint in cluster.endpoints.values()
    ):
        yield (*place, "endpoints"), "has no endpoint with a weight above 0: no balanced read could go anywhere"
    if cluster.mode is FailoverMode.PROMOTE and count == 1:
        yield (*place, "mode"), "promote needs at least two endpoints: with one there is nothing to promote"
    for name, endpoint in cluster.endpoints.items():
        tls = (*place, "endpoints", name, "tls")
        verifies = endpoint.tls.mode.value.startswith("verify")
        if verifies and endpoint.tls.root_cert is None and document.is_sound((*tls, "root_cert")):
            yield (*tls, "mode"), f"{endpoint.tls.mode.value} needs root_cert: the authorities to verify against"
        both_or_neither = (endpoint.tls.cert is None) == (endpoint.tls.key is None)
        if not both_or_neither and document.is_sound((*tls, "cert"), (*tls, "key")):
            yield tls, "must have both cert and key, or neither"


def _weights_are_sound(place: Place, cluster: ClusterSection, document: Document) -> bool:
    return document.is_sound(*((*place, "endpoints", name, "weight") for name in cluster.endpoints))


def _endpoints_are_unique(config: FileConfig, document: Document) -> Iterator[tuple[Place, str]]:
    names: dict[str, str] = {}
    servers: dict[tuple[str, int], str] = {}
    for cluster_name, cluster in config.clusters.items():
        for name, endpoint in cluster.endpoints.items():
            place = ("clusters", cluster_name, "endpoints", name)
            if name in names:
                yield place, f"is also the name of an endpoint of cluster {names[name]}: endpoint names are unique"
            names.setdefault(name, cluster_name)
            if not document.is_sound((*place, "host"), (*place, "port")):
                continue
            if not _is_host(endpoint.host):
                words = "is no host name: between two dots stand 1 to 63 characters"
                yield (*place, "host"), f"({endpoint.host}) {words}"
                continue
            server = (endpoint.host.lower(), endpoint.port)
            if server in servers:
                yield (
                    (*place, "host"),
                    f"({endpoint.host}:{endpoint.port}) is the same server as endpoint {servers[server]}",
                )
            servers.setdefault(server, name)


def _is_host(text: str) -> bool:
    """Whether a resolver can be asked for it, or it is an address or a socket's directory."""
    try:
        text.encode("idna")
    except UnicodeError:
        return text.startswith("/")
    return True


def _tenant(place: Place, tenant: TenantSection, document: Document, config: FileConfig) -> Iterator[tuple[Place, str]]:
    if not tenant.tokens and not tenant.callers:
        yield (*place, "tokens"), "must hold at least one token: nobody could call as this tenant otherwise"
    written = document.values.get("clusters")
    clusters = written if isinstance(written, dict) else {}
    if tenant.cluster not in clusters:
        yield (*place, "cluster"), f"({tenant.cluster}) {unknown_name(tenant.cluster, tuple(clusters), 'cluster')}"
        return
    endpoints = _written_endpoints(clusters[tenant.cluster])
    for name in tenant.weights:
        if name not in endpoints:
            yield (*place, "weights", name), unknown_name(name, endpoints, f"endpoint of cluster {tenant.cluster}")
    if tenant.cluster in config.clusters and tenant.weights:
        cluster = config.clusters[tenant.cluster]
        own = cluster.endpoints
        sound = document.is_sound((*place, "weights")) and _weights_are_sound(
            ("clusters", tenant.cluster), cluster, document
        )
        if sound and own and sum(tenant.weights.get(name, endpoint.weight) for name, endpoint in own.items()) == 0:
            yield (*place, "weights"), "leave no endpoint with a weight above 0: no balanced read could go anywhere"
    if tenant.cluster in config.clusters:
        yield from _pool_fits(place, tenant, config.clusters[tenant.cluster], document)


def _pool_fits(
    place: Place, tenant: TenantSection, cluster: ClusterSection, document: Document
) -> Iterator[tuple[Place, str]]:
    """A pool that may grow past an endpoint's cap promises what it cannot keep."""
    if not document.is_sound((*place, "pool")):
        return
    for name, endpoint in cluster.endpoints.items():
        sound = document.is_sound(("clusters", tenant.cluster, "endpoints", name, "max_connections"))
        if sound and tenant.pool.max_size > endpoint.max_connections:
            yield (
                (*place, "pool", "max_size"),
                f"({tenant.pool.max_size}) exceeds max_connections of endpoint {name} ({endpoint.max_connections}), "
                "which all tenants share: lower it, or raise the endpoint's",
            )


def _floors_fit(config: FileConfig, document: Document) -> Iterator[tuple[Place, str]]:
    """Floors are promises to all tenants of a cluster at once."""
    for name, cluster in config.clusters.items():
        floors = {
            tenant: section.pool.floor
            for tenant, section in config.tenants.items()
            if section.cluster == name and section.pool.floor and document.is_sound(("tenants", tenant, "pool"))
        }
        total = sum(floors.values())
        for endpoint_name, endpoint in cluster.endpoints.items():
            place = ("clusters", name, "endpoints", endpoint_name, "max_connections")
            if total > endpoint.max_connections and document.is_sound(place):
                most = sorted(floors, key=lambda one: -floors[one])[:3]
                yield (
                    place,
                    f"({endpoint.max_connections}) is less than the floors of its tenants, {total} in all "
                    f"({', '.join(f'{one}: {floors[one]}' for one in most)}{', …' if len(floors) > 3 else ''}): "
                    "raise it, or lower pool.floor of tenants",
                )


def _written_endpoints(cluster: Any) -> tuple[str, ...]:
    """Names in the file, also of endpoints that are wrong by themselves: their users are not to blame."""
    endpoints = cluster.get("endpoints") if isinstance(cluster, dict) else None
    return tuple(endpoints) if isinstance(endpoints, dict) else ()

