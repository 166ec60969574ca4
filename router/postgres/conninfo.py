"""Endpoint → connection parameters, without the password: that is asked for when a connection is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.model.policy import CommitWait
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, IsolationMode, Login, Secret, Tenant

PINNED = {
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""Settings on which the text form of results depends; the same on every connection."""

_PROVEN = ("verify-ca", "verify-full")
"""TLS modes in which the server has shown who it is before it may ask for a password."""

SYNCHRONOUS_COMMIT = {
    CommitWait.LOCAL: "local",
    CommitWait.WRITTEN: "remote_write",
    CommitWait.FLUSHED: "on",
    CommitWait.APPLIED: "remote_apply",
}


def _base(cluster: Cluster, endpoint: Endpoint, login: Login, database: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "dbname": database,
        "user": login.user,
        "connect_timeout": connect_timeout(cluster.policy.connect_timeout_s),
        "client_encoding": "UTF8",
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "gssencmode": "disable",
    }
    if login.password is not None and endpoint.tls.mode not in _PROVEN:
        # Whoever answers there could ask for it, and would be told: hashed it tells nothing that lasts.
        parameters["require_auth"] = "!password"
    parameters.update(tls_parameters(endpoint))
    return parameters


def connect_timeout(seconds: float) -> int:
    """libpq takes whole seconds."""
    return max(1, round(seconds))


def with_password(parameters: Mapping[str, Any], password: Secret | None) -> dict[str, Any]:
    """The parameters of a connection that is opened now."""
    return {**parameters} if password is None else {**parameters, "password": password.value}


def tls_parameters(endpoint: Endpoint) -> dict[str, str]:
    """libpq's words for how a connection is protected."""
    tls = endpoint.tls
    files = {"sslrootcert": tls.root_cert, "sslcert": tls.cert, "sslkey": tls.key}
    return {"sslmode": tls.mode} | {name: value for name, value in files.items() if value is not None}


def _options(settings: dict[str, str]) -> str:
    quoted = {name: value.replace("\\", "\\\\").replace(" ", "\\ ") for name, value in settings.items()}
    return " ".join(f"-c {name}={value}" for name, value in quoted.items())


def for_tenant(tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access) -> dict[str, Any]:
    """Parameters of a tenant's connection. Read-only access is enforced by PostgreSQL itself."""
    settings = dict(PINNED)
    # A backstop for work whose router is gone; the caller's deadline is kept by the router's own clock.
    settings["statement_timeout"] = str(round(tenant.policy.max_timeout_s * 1000) + 1000)
    settings["idle_in_transaction_session_timeout"] = str(round(tenant.policy.idle_in_transaction_s * 1000) + 5000)
    # An abandoned connection's statement ends when the server sees the closed socket (PostgreSQL 14 and later).
    settings["client_connection_check_interval"] = "1000"
    if access is Access.READ_ONLY:
        settings["default_transaction_read_only"] = "on"
    else:
        # What a transaction of ours comes back to before its COMMIT, whatever the role has been given.
        settings["synchronous_commit"] = SYNCHRONOUS_COMMIT[tenant.policy.commit_wait]
    if tenant.isolation is IsolationMode.REGISTERED:
        # As settings of the connection, RESET and DISCARD come back to them.
        settings["pointsman.tenant"] = tenant.name
        if tenant.role:
            settings["role"] = tenant.role
    parameters = _base(cluster, endpoint, tenant.login, tenant.database)
    parameters["options"] = _options(settings)
    parameters["application_name"] = f"pointsman/{tenant.name}"[:63]
    return parameters


def never_idle(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same for a connection that waits for days: whatever the server or the role says of idle sessions."""
    return parameters | {"options": f"{parameters['options']} {_options({'idle_session_timeout': '0'})}"}


def for_control(cluster: Cluster, endpoint: Endpoint, login: Login) -> dict[str, Any]:
    """Parameters of the router's own connections: probes and surgery."""
    parameters = _base(cluster, endpoint, login, cluster.control_database)
    parameters["options"] = _options({"search_path": "pg_catalog", "TimeZone": "UTC"})
    parameters["application_name"] = "pointsman/control"
    return parameters
