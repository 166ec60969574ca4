"""One YAML file → LoadedConfig, or ConfigProblems with every mistake in it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from router.config import caller_sections, certificate_files, relations
from router.config.caller_sections import token_id
from router.config.document import Document, parse
from router.config.file_stamps import Stamp, stamp_of
from router.config.problems import ConfigProblems, Place, Problem
from router.config.schema import (
    ClusterSection,
    EndpointSection,
    FileConfig,
    LoginSection,
    LogSection,
    OperatorSection,
    TenantSection,
    TlsSection,
)
from router.config.secret_references import SecretReader, SecretUnavailable
from router.config.validation import validate
from router.model.callers import CallerGrant, CallerId
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import ClusterPolicy, PoolPolicy, RetryPolicy, ServerPolicy, TenantPolicy
from router.model.port_policies import ListenerTls
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant, TlsSettings, Topology

_MOST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration with its secrets resolved."""

    topology: Topology
    server: ServerPolicy
    retry: RetryPolicy
    admin_tokens: tuple[Secret, ...]
    admin_callers: tuple[CallerGrant, ...]
    log: LogSection
    source: Path
    files: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)
    """All that was read, the file itself first, each as it was just before."""


def load(path: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read and check a configuration file. ConfigProblems when anything is wrong with it.

    environ: where env: references are looked up, the process's own when None. Relative file: references start at the
    folder of the file. Does blocking file I/O.
    """
    files = {str(path): stamp_of(path)}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigProblems(path, [Problem(0, "", "is larger than 32 MiB: is it a configuration file?")], files)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigProblems(path, [Problem(0, "", "no such file")], files) from None
    except OSError as error:
        why = (error.strerror or "unknown error").lower()
        raise ConfigProblems(path, [Problem(0, "", f"cannot be read: {why}")], files) from None
    except UnicodeDecodeError:
        raise ConfigProblems(path, [Problem(0, "", "is not UTF-8 text")], files) from None
    try:
        loaded = load_text(text, path, environ)
    except ConfigProblems as problems:
        problems.files = files | problems.files
        raise
    return replace(loaded, files=files | dict(loaded.files))


def load_text(text: str, source: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The same for a text that is already read; source names it in messages and anchors relative paths."""
    loaded = _loaded(text, source, os.environ if environ is None else environ)
    # Ten thousand tenants take 15 MB, scattered over 100 MB of memory that reading them took: none of it could go back.
    # By now all the rest is free; a copy lies close together, and the scattered ones go.
    raw = pickle.dumps(loaded, pickle.HIGHEST_PROTOCOL)
    del loaded
    copy: LoadedConfig = pickle.loads(raw)
    return copy


def _loaded(text: str, source: Path, environ: Mapping[str, str]) -> LoadedConfig:
    document = parse(text)
    config = validate(document) if document.values else None
    reader = SecretReader(source.resolve().parent, environ)
    if config is not None:
        relations.check(document, config)
        loaded = _Assembly(document, reader, source.resolve().parent).assemble(config, source)
        if not document.problems:
            return replace(loaded, files=reader.files)
    raise ConfigProblems(source, document.problems, reader.files)


class _Assembly:
    """Turns the sections into model values, resolving secrets; a secret that is missing is reported, not raised."""

    def __init__(self, document: Document, reader: SecretReader, base: Path) -> None:
        self._document = document
        self._reader = reader
        self._base = base
        self._jwt = False
        self._token_owners: dict[CallerId, str] = {}
        self._pools: dict[PoolPolicy, PoolPolicy] = {}
        self._limits: dict[TenantPolicy, TenantPolicy] = {}
        """Most tenants have the same, and then the same object."""

    def assemble(self, config: FileConfig, source: Path) -> LoadedConfig:
        clusters = {ClusterName(name): self._cluster(name, section) for name, section in config.clusters.items()}
        self._jwt = config.server.jwt.on
        admin_tokens = self._tokens(("admin",), config.admin.tokens, "the operators")
        tenants = {TenantName(name): self._tenant(name, section) for name, section in config.tenants.items()}
        server = self._server(config.server)
        operators = self._callers(("admin",), config.admin.callers, "the operators")
        topology = Topology(clusters, tenants)
        return LoadedConfig(topology, server, config.retry, admin_tokens, operators, config.log, source)

    def _server(self, policy: ServerPolicy) -> ServerPolicy:
        jwt = policy.jwt
        if jwt.on and not jwt.by_address:
            jwt = replace(jwt, keys=str(self._base / Path(jwt.keys).expanduser()))
            if not os.access(jwt.keys, os.R_OK):
                self._document.report(("server", "jwt", "keys"), f"file {jwt.keys} does not exist or cannot be read")
        audit = policy.audit
        if audit.file not in ("", "-"):
            audit = replace(audit, file=str(self._base / Path(audit.file).expanduser()))
            if not os.access(Path(audit.file).parent, os.W_OK):
                self._document.report(("server", "audit", "file"), f"the folder of {audit.file} cannot be written to")
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
        for kind, message in certificate_files.mistakes(found):
            self._document.report((*place, kind) if kind else place, message)
        return found

    def _cluster(self, name: str, section: ClusterSection) -> Cluster:
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
            if path is not None and not os.access(path, os.R_OK):
                self._document.report((*place, kind), f"file {path} does not exist or cannot be read")
            files[kind] = None if path is None else str(path)
        return TlsSettings(mode=section.mode.value, **files)

    def _tenant(self, name: str, section: TenantSection) -> Tenant:
        place: Place = ("tenants", name)
        return Tenant(
            name=TenantName(name),
            cluster=ClusterName(section.cluster),
            database=section.database,
            login=self._login((*place, "login"), section.login),
            tokens=self._tokens(place, section.tokens, f"tenant {name}"),
            callers=self._callers(place, section.callers, f"tenant {name}"),
            weights={EndpointName(endpoint): weight for endpoint, weight in section.weights.items()},
            isolation=section.isolation,
            role=section.role or "",
            statements=section.statements,
            pool=self._pools.setdefault(section.pool, section.pool),
            policy=self._limits.setdefault(section.limits, section.limits),
        )

    def _login(self, place: Place, section: LoginSection) -> Login:
        password = None if section.password is None else self._secret((*place, "password"), section.password)
        return Login(section.user, password)

    def _tokens(self, place: Place, references: tuple[str, ...], owner: str) -> tuple[Secret, ...]:
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

    def _callers(self, place: Place, sections: Sequence[OperatorSection], owner: str) -> tuple[CallerGrant, ...]:
        found = tuple(caller_sections.grants(place, sections, self._secret, self._document.report, jwt=self._jwt))
        for grant in found:
            if grant.id.startswith("token:"):
                self._own((*place, "callers"), "a token", grant.id, owner)
        return found

    def _own(self, here: Place, what: str, token: CallerId, owner: str) -> None:
        other = self._token_owners.setdefault(token, owner)
        if other != owner:
            self._document.report(here, f"{what} is also a token of {other}: a token proves one identity only")

    def _secret(self, place: Place, reference: str) -> Secret | None:
        try:
            return self._reader.read(reference)
        except SecretUnavailable as missing:
            self._document.report(place, str(missing))
            return None
