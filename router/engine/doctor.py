"""Looks at the settings of a cluster's servers when it is first seen, then once a minute; tells each finding once.

Asks on connections of its own and judges nothing (decisions/checkup does): it only remembers. A server that does not
answer is judged by what it said last; one that never did is shown as not examined. The log is not told of these: probes
tell of servers that do not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from router.decisions import checkup
from router.engine.supervisor import ClusterSupervisor
from router.model.checkup import Finding, ServerSettings, Unanswered
from router.model.events import SettingFound
from router.model.identity import ClusterName, EndpointName
from router.model.observation import AttemptFailed
from router.model.topology import Cluster, Endpoint
from router.ports import Clock, EventSink

EVERY_S = 60.0
SOON_S = 2.0
"""Pause while some server has not answered yet (seconds)."""


class Examiner(Protocol):
    """Asks the servers of one cluster for their settings."""

    async def examine(self, endpoint: Endpoint) -> ServerSettings:
        """AttemptFailed when it does not answer."""
        ...


class Doctor:
    """Examines one cluster."""

    def __init__(
        self, supervisor: ClusterSupervisor, examiner: Callable[[Cluster], Examiner], clock: Clock, events: EventSink
    ) -> None:
        self._supervisor = supervisor
        self._examiner = examiner
        self._clock = clock
        self._events = events
        self._settings: dict[EndpointName, ServerSettings] = {}
        self._unanswered: dict[EndpointName, Unanswered] = {}
        self._found: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with the servers, and which of them nobody has seen; the worst first."""
        cluster = self._supervisor.cluster
        unseen = checkup.unexamined(cluster, self._settings, self._unanswered, self._clock.now())
        return checkup.worst_first([*self._found, *unseen])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            endpoints = self._supervisor.cluster.endpoints
            known = all(one.name in self._settings for one in endpoints) and self._supervisor.state.primary is not None
            await self._clock.sleep(EVERY_S if known else SOON_S)

    async def look(self) -> None:
        """Ask all servers once."""
        cluster = self._supervisor.cluster
        examiner = self._examiner(cluster)
        names = {one.name for one in cluster.endpoints}
        self._settings = {name: one for name, one in self._settings.items() if name in names}
        self._unanswered = {name: one for name, one in self._unanswered.items() if name in names}
        await asyncio.gather(*(self._ask(examiner, one) for one in cluster.endpoints))
        before = {(one.endpoint, one.check, one.message) for one in self._found}
        self._found = checkup.examine(cluster, self._settings, self._supervisor.state.primary)
        for one in self._found:
            if (one.endpoint, one.check, one.message) not in before:
                self._events.emit(SettingFound(cluster.name, one))
        self._supervisor.know_manager(checkup.manager_of(self._settings))

    async def _ask(self, examiner: Examiner, endpoint: Endpoint) -> None:
        asked = self._clock.now()
        try:
            self._settings[endpoint.name] = await examiner.examine(endpoint)
        except AttemptFailed as error:
            before = self._unanswered.get(endpoint.name)
            why = error.fault.message or error.fault.kind.value
            self._unanswered[endpoint.name] = Unanswered(why, before.since if before is not None else asked)
        else:
            self._unanswered.pop(endpoint.name, None)


class Doctors:
    """One for each cluster of a router."""

    def __init__(self, examiner: Callable[[Cluster], Examiner], clock: Clock, events: EventSink) -> None:
        self._examiner, self._clock, self._events = examiner, clock, events
        self._doctors: dict[ClusterName, Doctor] = {}
        self._rounds: dict[ClusterName, asyncio.Task[None]] = {}

    def see(self, supervisor: ClusterSupervisor) -> None:
        """Begin to look at a cluster."""
        name = supervisor.cluster.name
        doctor = self._doctors[name] = Doctor(supervisor, self._examiner, self._clock, self._events)
        self._rounds[name] = asyncio.get_running_loop().create_task(doctor.run())

    def findings(self, name: ClusterName) -> tuple[Finding, ...]:
        """What is wrong with a cluster's servers, and which were never examined; the worst first."""
        doctor = self._doctors.get(name)
        return doctor.findings if doctor is not None else ()

    def forget(self, name: ClusterName) -> None:
        """A cluster ends."""
        self._doctors.pop(name)
        self._rounds.pop(name).cancel()

    def stop(self) -> None:
        """Look no more."""
        for name in tuple(self._rounds):
            self.forget(name)
