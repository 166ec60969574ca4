"""What an endpoint's pools have and want at one moment: each pool is asked once, however much is computed from it."""

from __future__ import annotations

from collections.abc import Iterator

from router.decisions.shares import Claim, dues, targets
from router.engine.permit_line import PermitLine
from router.engine.tenant_claims import TenantClaims
from router.model.identity import TenantName
from router.ports.budgets import BudgetHolder

Beyond = dict[TenantName, float]
"""Connections that each tenant has beyond its due; negative: that it lacks."""


def wanted(claims: TenantClaims, line: PermitLine) -> dict[TenantName, int]:
    """Connections that those in line would use, and that their tenants' ceilings allow."""
    found: dict[TenantName, int] = {}
    for tenant, places in line.of.items():
        count = 0
        for holder in dict.fromkeys(place.holder for place in places):
            count += max(0, min(max(1, holder.waiting), claims.room(holder) - count))
        if count:
            found[tenant] = count
    return found


class Survey:
    """Facts by tenant, of those that have or want a connection, and what each is due by them."""

    def __init__(self, claims: TenantClaims, line: PermitLine, in_use: int, granted: int) -> None:
        self.claims = claims
        self.line = line
        self.granted = granted
        self.lowered = in_use > granted
        """An order to close some, not a wish."""
        self.wanted = wanted(claims, line)
        self.keeps, leaving = claims.count(self.wanted)
        wished = sum(min(len(line.of[tenant]), count) for tenant, count in self.wanted.items())
        self.short = wished + in_use - granted - leaving
        """Permits that are missing and not on their way back."""
        self._division: tuple[list[Claim], list[float]] | None = None

    def lets_go(self, tenant: TenantName) -> None:
        """One of its pools has just been asked for a connection."""
        self.short -= 1
        self.keeps[tenant] -= 1
        self._division = None

    def holders(self) -> Iterator[tuple[TenantName, BudgetHolder]]:
        """Pools of all tenants that keep some."""
        for tenant, keeps in self.keeps.items():
            if keeps:
                for holder in self.claims.of(tenant):
                    yield tenant, holder

    def beyond_due(self) -> Beyond:
        """Connections that each has beyond what it is due, with fractions."""
        _, due = self._divided()
        return {tenant: self.keeps[tenant] - one for tenant, one in zip(self.keeps, due, strict=True)}

    def targets(self) -> dict[TenantName, int]:
        """Whole connections that each is due now."""
        claims, due = self._divided()
        return dict(zip(self.keeps, targets(claims, self.granted, due), strict=True))

    def beyond_targets(self) -> dict[TenantName, int]:
        """Connections that each has beyond them."""
        return {tenant: self.keeps[tenant] - due for tenant, due in self.targets().items()}

    def _divided(self) -> tuple[list[Claim], list[float]]:
        if self._division is None:
            claims = self.claims.claims(self.keeps, self.wanted)
            self._division = claims, dues(claims, self.granted)
        return self._division
