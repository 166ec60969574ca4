"""Sections of a valid file → values of the model, with secrets resolved and files found."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from router.config import caller_sections, certificate_files
from router.config.caller_sections import token_id
from router.config.document import Document
from router.config.file_stamps import stamp_of
from router.config.problems import Place
from router.config.schema import (
    ClusterSection,
    EndpointSection,
    LoginSection,
    OperatorSection,
    TenantSection,
    TlsSection,
)
from router.config.secret_references import SecretReader, SecretUnavailable
from router.model.callers import CallerGrant, CallerId
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import ClusterPolicy, PoolPolicy, ServerPolicy, TenantPolicy
from router.model.port_policies import ListenerTls
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant, TlsSettings

_NONE: dict[Any, Any] = {}
"""Of what most tenants have none, all have the same."""


class Shared:
    """Policies that most tenants have alike, and then as the same object."""

    def __init__(self) -> None:
        self.pools: dict[PoolPolicy, PoolPolicy] = {}
        self.limits: dict[TenantPolicy, TenantPolicy] = {}

    def know(self, tenant: Tenant) -> None:
        """One that was assembled elsewhere."""
        self.pools.setdefault(tenant.pool, tenant.pool)
        self.limits.setdefault(tenant.policy, tenant.policy)


class Assembly:
    """Turns sections into model values. A secret that is missing is reported to the document, not raised."""

    def __init__(
        self,
        document: Document,
        reader: SecretReader,
        *,
        jwt: bool,
        owners: dict[CallerId, str],
        elsewhere: Callable[[CallerId], str | None] = lambda _: None,
        shared: Shared | None = None,
    ) -> None:
        """jwt: whether signed tokens prove anybody. owners: whose the tokens are, filled as they are found; elsewhere:
        the same of those that are not assembled here."""
        self._document = document
        self.reader = reader
        self._base = reader.base
        self._jwt = jwt
        self._owners = owners
        self._elsewhere = elsewhere
        self._shared = shared or Shared()

    def server(self, policy: ServerPolicy) -> ServerPolicy:
        """The process's own section, with the files that it names."""
        jwt = policy.jwt
        if jwt.on and not jwt.by_address:
            jwt = replace(jwt, keys=str(self._base / Path(jwt.keys).expanduser()))
            self._need_file(("server", "jwt", "keys"), jwt.keys)
        audit = policy.audit
        if audit.file not in ("", "-"):
            audit = replace(audit, file=str(self._base / Path(audit.file).expanduser()))
            folder, words = Path(audit.file).parent, f"the folder of {audit.file} cannot be written to"
            self._need(("server", "audit", "file"), folder, os.W_OK, words)
        return replace(
            policy,
            audit=audit,
            jwt=jwt,
            tls=self._listener(("server", "tls"), policy.tls),
            admin_tls=self._listener(("server", "admin_tls"), policy.admin_tls),
        )

    def _listener(self, place: Place, section: ListenerTls) -> ListenerTls:
        """The same with paths that start at the folder of the file, and with files that are what they should be."""
        found = certificate_files.resolved(section, self._base)
        stamps = {path: stamp_of(path) for path in (found.cert, found.key, found.client_ca) if path}
        for kind, message in certificate_files.mistakes(found):
            self._document.report((*place, kind) if kind else place, message)
            self.reader.files.update(stamps)
        return found

    def _need_file(self, place: Place, path: str | Path, *, always: bool = False) -> None:
        self._need(place, path, os.R_OK, f"file {path} does not exist or cannot be read", always=always)

    def _need(self, place: Place, path: str | Path, mode: int, words: str, *, always: bool = False) -> None:
        """Report it when it is not there. Then it is watched as well, as it was before: once it comes, all is judged
        again. always: also when it is there."""
        stamp = stamp_of(path)
        there = os.access(path, mode)
        if always or not there:
            self.reader.files[str(path)] = stamp
        if not there:
            self._document.report(place, words)

    def cluster(self, name: str, section: ClusterSection) -> Cluster:
        """A cluster with its endpoints."""
        place: Place = ("clusters", name)
        return Cluster(
            name=ClusterName(name),
            endpoints=tuple(
                self._endpoint(place, name, endpoint_name, endpoint)
                for endpoint_name, endpoint in section.endpoints.items()
            ),
            control=self._login((*place, "control"), section.control),
            control_database=section.control_database,
            mode=section.mode,
            policy=ClusterPolicy(**{part.name: getattr(section, part.name) for part in fields(ClusterPolicy)}),
        )

    def _endpoint(self, place: Place, cluster: str, name: str, section: EndpointSection) -> Endpoint:
        return Endpoint(
            name=EndpointName(name),
            cluster=ClusterName(cluster),
            host=section.host,
            port=section.port,
            zone=section.zone,
            weight=section.weight,
            max_connections=section.max_connections,
            tls=self._tls((*place, "endpoints", name, "tls"), section.tls),
        )

    def _tls(self, place: Place, section: TlsSection) -> TlsSettings:
        files: dict[str, str | None] = {}
        for kind in ("root_cert", "cert", "key"):
            text: str | None = getattr(section, kind)
            path = None if text is None else self._base / Path(text).expanduser()
            if path is not None:
                self._need_file((*place, kind), path, always=True)
            files[kind] = None if path is None else str(path)
        return TlsSettings(mode=section.mode.value, **files)

    def tenant(self, name: str, section: TenantSection) -> Tenant:
        """A tenant with its secrets."""
        place: Place = ("tenants", name)
        return Tenant(
            name=TenantName(name),
            cluster=ClusterName(section.cluster),
            database=section.database,
            login=self._login((*place, "login"), section.login),
            tokens=self.tokens(place, section.tokens, f"tenant {name}"),
            callers=self.callers(place, section.callers, f"tenant {name}"),
            weights={EndpointName(endpoint): weight for endpoint, weight in section.weights.items()} or _NONE,
            isolation=section.isolation,
            role=section.role or "",
            statements=section.statements or _NONE,
            channels=tuple(dict.fromkeys(section.channels)),
            pool=self._shared.pools.setdefault(section.pool, section.pool),
            policy=self._shared.limits.setdefault(section.limits, section.limits),
            paused=section.paused,
        )

    def _login(self, place: Place, section: LoginSection) -> Login:
        here, reference = (*place, "password"), section.password
        if reference is None:
            return Login(section.user)
        if not reference.startswith("command:"):
            return Login(section.user, self._secret(here, reference))
        try:
            command = self.reader.command(reference, section.command_ttl_s, section.command_timeout_s)
        except SecretUnavailable as missing:
            self._document.report(here, str(missing))
            return Login(section.user)
        return Login(section.user, command)

    def tokens(self, place: Place, references: tuple[str, ...], owner: str) -> tuple[Secret, ...]:
        """Secrets behind references to tokens, which no other owner has."""
        found = []
        for index, reference in enumerate(references):
            here = (*place, "tokens", index)
            secret = self._secret(here, reference)
            if secret is None:
                continue
            if not secret.value.isascii() or not secret.value.isprintable() or secret.value != secret.value.strip():
                self._document.report(here, f"{reference} must be printable ASCII without spaces at its ends")
            self._own(here, reference, token_id(secret.value), owner)
            found.append(secret)
        return tuple(found)

    def callers(self, place: Place, sections: Sequence[OperatorSection], owner: str) -> tuple[CallerGrant, ...]:
        """Who else is let in."""
        found = tuple(caller_sections.grants(place, sections, self._secret, self._document.report, jwt=self._jwt))
        for grant in found:
            if grant.id.startswith("token:"):
                self._own((*place, "callers"), "a token", grant.id, owner)
        return found

    def _own(self, here: Place, what: str, token: CallerId, owner: str) -> None:
        other = self._elsewhere(token) or self._owners.setdefault(token, owner)
        if other != owner:
            self._document.report(here, f"{what} is also a token of {other}: a token proves one identity only")

    def _secret(self, place: Place, reference: str) -> Secret | None:
        try:
            return self.reader.read(reference)
        except SecretUnavailable as missing:
            self._document.report(place, str(missing))
            return None
