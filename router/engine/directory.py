"""Who is calling: a token proves it, a name only chooses among what the token may use."""

from __future__ import annotations

import hashlib

from router.model.errors import Code, RouterError
from router.model.identity import TenantName
from router.model.reasons import RefuseReason
from router.model.topology import Tenant, Topology


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Directory:
    """Tenants by the digest of their tokens: a look-up takes the same time whether a token is nearly right or not."""

    def __init__(self, topology: Topology) -> None:
        self._tenants: dict[TenantName, Tenant] = {}
        self._by_digest: dict[bytes, tuple[TenantName, ...]] = {}
        self.apply(topology)

    def apply(self, topology: Topology) -> None:
        """Take a new topology; calls already admitted keep the tenant they were admitted with."""
        by_digest: dict[bytes, tuple[TenantName, ...]] = {}
        for tenant in topology.tenants.values():
            for token in tenant.tokens:
                digest = _digest(token.value)
                by_digest[digest] = (*by_digest.get(digest, ()), tenant.name)
        self._tenants = dict(topology.tenants)
        self._by_digest = by_digest

    def authenticate(self, token: str | None, claimed_tenant: str | None) -> Tenant:
        """The tenant that a call acts for.

        RouterError UNAUTHENTICATED without a known token; PERMISSION_DENIED for a tenant that the token may not use
        (also for one that does not exist: which names exist is nobody's business).
        """
        names = self._by_digest.get(_digest(token)) if token else None
        if names is None:
            what = "unknown token" if token else "no token"
            raise RouterError(
                Code.UNAUTHENTICATED,
                RefuseReason.UNAUTHENTICATED,
                f"{what}: send metadata 'authorization: Bearer TOKEN' with a token from the tenant's configuration",
            )
        if claimed_tenant:
            name = TenantName(claimed_tenant)
            if name in names:
                return self._tenants[name]
            raise RouterError(
                Code.PERMISSION_DENIED,
                RefuseReason.TENANT_DENIED,
                f"this token may not act for tenant {claimed_tenant!r}",
            )
        if len(names) == 1:
            return self._tenants[names[0]]
        raise RouterError(
            Code.PERMISSION_DENIED,
            RefuseReason.TENANT_DENIED,
            f"this token may act for {len(names)} tenants: name one in metadata 'pointsman-tenant'",
            numbers={"tenants": len(names)},
        )

    def get(self, name: TenantName) -> Tenant | None:
        """A tenant by name."""
        return self._tenants.get(name)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._tenants.values())
