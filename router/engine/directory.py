"""Which tenant a call acts for: credentials prove it, a name only chooses among what they may use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from router.model.callers import Admission, CallerGrant, CallerId, CallerRole, Evidence, shown
from router.model.errors import Code, RouterError
from router.model.identity import TenantName
from router.model.reasons import RefuseReason
from router.model.topology import Tenant, TenantChanges, Topology

Grants = Mapping[TenantName, Admission[Tenant]]


def token_id(token: str) -> CallerId:
    """What a static token proves. A token has enough entropy that its hash need not be slow."""
    return CallerId(f"token:{hashlib.sha256(token.encode('utf-8', 'surrogateescape')).hexdigest()}")


class Directory:
    """Tenants by those who may call as them: a look-up takes the same time whether a token is nearly right or not."""

    def __init__(self, topology: Topology) -> None:
        self._tenants: dict[TenantName, Tenant] = {}
        self._grants: dict[CallerId, dict[TenantName, Admission[Tenant]]] = {}
        self.change(TenantChanges(tuple(topology.tenants.values())))

    def change(self, changes: TenantChanges) -> None:
        """Take changed tenants and let go of removed ones; what is not of theirs is not looked at. Calls already
        admitted keep the tenant they were admitted with."""
        for name in (*changes.removed, *(one.name for one in changes.changed)):
            former = self._tenants.pop(name, None)
            for grant in _callers(former) if former is not None else ():
                held = self._grants.get(grant.id, {})
                held.pop(name, None)
                if not held:
                    self._grants.pop(grant.id, None)
        for tenant in changes.changed:
            self._tenants[tenant.name] = tenant
            for grant in _callers(tenant):
                self._grants.setdefault(grant.id, {})[tenant.name] = Admission(tenant, grant.role, grant.id)

    def knows(self, who: CallerId) -> bool:
        """Whether an identity may act for any tenant."""
        return who in self._grants

    def admit(self, evidence: Evidence, claimed: str | None) -> Admission[Tenant]:
        """The tenant that a call acts for, and its role there.

        A certificate that stands for nobody here adds nothing to a token; one that stands for somebody narrows it: both
        must agree, and the lesser role counts. RouterError UNAUTHENTICATED without a known identity; TENANT_DENIED for
        a tenant that it may not use (also for one that does not exist: which names exist is nobody's business).
        """
        grants: Grants | None = None
        if evidence.token is not None:
            grants = self._grants.get(evidence.token)
            if grants is None:
                raise _unknown(evidence)
        if evidence.certificate:
            grants = self._narrowed(evidence.certificate, grants)
        if grants is None:
            raise _unknown(evidence)
        if claimed:
            admission = grants.get(TenantName(claimed))
            if admission is None:
                raise _denied(f"this identity may not act for tenant {claimed!r}")
            return admission
        if len(grants) != 1:
            raise _denied(
                f"this identity may act for {len(grants)} tenants: name one in metadata 'pointsman-tenant'", len(grants)
            )
        return next(iter(grants.values()))

    def _narrowed(self, names: tuple[CallerId, ...], by_token: Grants | None) -> Grants | None:
        by_name = {name: one for who in reversed(names) for name, one in self._grants.get(who, {}).items()}
        if not by_name:
            return by_token
        if by_token is None:
            return by_name
        both = {
            name: one if by_name[name].role.allows(one.role) else by_name[name]
            for name, one in by_token.items()
            if name in by_name
        }
        if not both:
            raise _denied("the token and the certificate prove different tenants")
        return both

    def get(self, name: TenantName) -> Tenant | None:
        """A tenant by name."""
        return self._tenants.get(name)

    def has(self, name: TenantName) -> bool:
        """Whether a tenant is configured."""
        return name in self._tenants

    def in_force(self, tenant: Tenant) -> Tenant:
        """What a tenant that was admitted before is by now. RouterError: it has been removed."""
        newest = self._tenants.get(tenant.name)
        if newest is None:
            raise removed(tenant.name)
        return newest

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())


def removed(name: TenantName) -> RouterError:
    """For who was admitted as a tenant that is in the configuration no more."""
    return RouterError(Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED, f"tenant {name} has been removed")


def _callers(tenant: Tenant) -> Iterator[CallerGrant]:
    for token in tenant.tokens:
        yield CallerGrant(token_id(token.value), CallerRole.WRITER)
    yield from tenant.callers


def _unknown(evidence: Evidence) -> RouterError:
    if evidence.token is not None:
        what = "unknown token" if evidence.token.startswith("token:") else f"unknown caller {shown(evidence.token)!r}"
    elif evidence.certificate:
        what = f"the certificate's {', '.join(map(repr, evidence.certificate[:4]))} may act for no tenant"
    else:
        what = "no token"
    return RouterError(
        Code.UNAUTHENTICATED,
        RefuseReason.UNAUTHENTICATED,
        f"{what}: send metadata 'authorization: Bearer TOKEN' with a token from the tenant's configuration, or a "
        "certificate that it names",
    )


def _denied(message: str, tenants: int | None = None) -> RouterError:
    numbers = {} if tenants is None else {"tenants": tenants}
    return RouterError(Code.PERMISSION_DENIED, RefuseReason.TENANT_DENIED, message, numbers=numbers)
