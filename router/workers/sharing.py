"""The ledgers of all endpoints in the control process: hears workers' demands, sends grants.

decisions/connection_ledger.py divides; here is the message's way to it and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from router.decisions import connection_ledger
from router.decisions.connection_ledger import Ledger, WorkerId
from router.model.identity import EndpointName
from router.model.ledger import Demand, Grant
from router.model.topology import Topology
from router.ports import Clock


class Sharing:
    """Divides the endpoints' caps among living workers."""

    def __init__(self, tell: Callable[[WorkerId, Sequence[Grant]], None], clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._ledgers: dict[EndpointName, Ledger] = {}
        self._workers: set[WorkerId] = set()

    def apply(self, topology: Topology) -> None:
        """Take the caps. An endpoint that is gone keeps its ledger: workers may still have connections to it."""
        for cluster in topology.clusters.values():
            for one in cluster.endpoints:
                ledger = self._ledgers.get(one.name)
                if ledger is None:
                    ledger = Ledger(one.name, one.max_connections)
                    for worker in sorted(self._workers):
                        ledger = connection_ledger.join(ledger, worker)
                self._ledgers[one.name] = connection_ledger.resize(ledger, one.max_connections)
        self._divide(self._ledgers)

    def join(self, worker: WorkerId) -> None:
        """A worker begins, with nothing."""
        self._workers.add(worker)
        for name, ledger in self._ledgers.items():
            self._ledgers[name] = connection_ledger.join(ledger, worker)
        self._divide(self._ledgers)

    def hear(self, worker: WorkerId, demands: Iterable[Demand]) -> None:
        """A worker's word."""
        heard = [one for one in demands if one.endpoint in self._ledgers]
        for demand in heard:
            name = demand.endpoint
            self._ledgers[name] = connection_ledger.hear(self._ledgers[name], worker, demand)
        self._divide([one.endpoint for one in heard])

    def gone(self, worker: WorkerId) -> None:
        """Its process was reaped: what it had is free."""
        self._workers.discard(worker)
        for name, ledger in self._ledgers.items():
            self._ledgers[name] = connection_ledger.gone(ledger, worker)
        self._divide(self._ledgers)

    def _divide(self, names: Iterable[EndpointName]) -> None:
        due: dict[WorkerId, list[Grant]] = {}
        for name in list(names):
            self._ledgers[name], grants = connection_ledger.divide(self._ledgers[name], self._clock.now())
            for worker, grant in grants.items():
                due.setdefault(worker, []).append(grant)
        for worker, told in due.items():
            self._tell(worker, told)
