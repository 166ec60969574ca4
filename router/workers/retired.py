"""What workers that have ended counted: it stays counted, save that of tenants that are removed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from prometheus_client.core import Metric as Family

from router.model.identity import TenantName
from router.model.views import Load
from router.workers.merging import Gone, counted, ended, merge_families, merge_loads

_PUT_OFF = 256
"""To leave tenants out is a walk over everything, so removals wait for the next look, up to this many."""


class Retired:
    """Of all workers that have ended, together."""

    def __init__(self) -> None:
        self._load = Load()
        self._families: list[Family] = []
        self._removed: set[str] = set()

    def add(self, load: Load, families: Iterable[Family], gone: Gone) -> None:
        """A worker has ended; it may not have heard of every removal."""
        self._leave_out()
        self._load = merge_loads([self._load, ended(load, gone)])
        self._families = merge_families({"": self._families, "ended": counted(families, gone)})

    def forget(self, tenants: Collection[TenantName]) -> None:
        """Tenants were removed; should one come back, it begins at 0."""
        self._removed.update(tenants)
        if len(self._removed) > _PUT_OFF:
            self._leave_out()

    @property
    def load(self) -> Load:
        """How requests ended."""
        self._leave_out()
        return self._load

    @property
    def families(self) -> list[Family]:
        """Counters and histograms."""
        self._leave_out()
        return self._families

    def _leave_out(self) -> None:
        if self._removed:
            gone = self._removed.__contains__
            self._load, self._families = ended(self._load, gone), counted(self._families, gone)
            self._removed = set()
