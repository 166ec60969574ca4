"""What ports.listening promises, asked of the fake and of real PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, Fault, FaultKind
from router.model.reasons import CloseReason
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.ports.listening import ListeningConnection, ListeningFactory
from router.postgres.endpoint_pool import PsycopgPoolFactory
from router.postgres.listening import PsycopgListeningFactory
from router.system import SystemChance
from tests.contracts.promises import soon
from tests.support.budgets import roomy
from tests.support.builders import Recorder
from tests.support.fake_listening import FakeListening, FakeListeningFactory
from tests.support.virtual_time import run_virtual

MAIN = ClusterName("main")
ODD = ('jobs', 'Jobs', 'a"b', '"; UNLISTEN *; --', "a b", "é" * 31, "x" * 63, "\\", "$1")


class Ear:
    """ports.listening.Hearer."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.losses: list[Fault] = []
        self.changed = asyncio.Event()

    def notified(self, channel: str, payload: str, process_id: int) -> None:
        assert process_id > 0
        self.heard.append((channel, payload))
        self.changed.set()

    def lost(self, fault: Fault) -> None:
        self.losses.append(fault)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Place(Protocol):
    """A server where one can notify, and break things."""

    ear: Ear

    async def open(self) -> ListeningConnection: ...

    async def notify(self, channel: str, payload: str) -> None: ...

    async def end_all(self) -> None: ...


class FakePlace:
    def __init__(self) -> None:
        self.ear = Ear()
        self.factory = FakeListeningFactory()

    async def open(self) -> ListeningConnection:
        return await opened(self.factory, 5432, self.ear)

    async def notify(self, channel: str, payload: str) -> None:
        self.factory.notify("n1", channel, payload)

    async def end_all(self) -> None:
        one: FakeListening
        for one in self.factory.present:
            one.break_off()


class RealPlace:
    def __init__(self, pg: DevCluster) -> None:
        self.ear = Ear()
        self.pg = pg
        chance, events = SystemChance(), Recorder()
        self.factory = PsycopgListeningFactory(PsycopgPoolFactory(chance, events, roomy), chance, events)

    async def open(self) -> ListeningConnection:
        return await opened(self.factory, self.pg.primary().port, self.ear)

    async def _ask(self, sql: str, *args: str) -> None:
        def asked() -> None:
            with psycopg.connect(self.pg.tenant_dsn("acme"), autocommit=True) as connection:
                connection.execute(sql, args)

        await asyncio.to_thread(asked)

    async def notify(self, channel: str, payload: str) -> None:
        await self._ask("select pg_notify(%s, %s)", channel, payload)

    async def end_all(self) -> None:
        await self._ask(
            "select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%%' and usename = 'acme'"
        )


async def opened(factory: ListeningFactory, port: int, ear: Ear) -> ListeningConnection:
    """A connection of tenant acme to a server at this machine, which has the name n1."""
    endpoint = Endpoint(EndpointName("n1"), MAIN, "127.0.0.1", port)
    cluster = Cluster(MAIN, (endpoint,), Login("control"))
    tenant = Tenant(TenantName("acme"), MAIN, "acme", Login("acme", Secret("acme-secret")))
    return await factory.open(tenant, cluster, endpoint, Generation(3), ear, soon())


Told = Callable[[Place], Awaitable[None]]


@pytest.fixture(params=["fake", pytest.param("postgresql", marks=pytest.mark.pg)])
def run(request: pytest.FixtureRequest) -> Callable[[Told], None]:
    real: Any = request.getfixturevalue("pg_cluster") if request.param == "postgresql" else None

    def run(told: Told) -> None:
        async def main() -> None:
            await told(RealPlace(real) if real is not None else FakePlace())

        asyncio.run(main()) if real is not None else run_virtual(main())

    return run


def test_what_was_sent_before_an_answered_question_has_been_heard(run: Callable[[Told], None]) -> None:
    async def told(place: Place) -> None:
        connection = await place.open()
        await connection.listen(ODD, soon())
        sent = [(channel, f"payload {number}") for number, channel in enumerate(ODD)]
        for channel, payload in sent:
            await place.notify(channel, payload)
        await place.notify("others", "")
        await place.notify("jobs", "")
        await connection.check(soon())
        assert place.ear.heard == [*sent, ("jobs", "")]
        connection.close(CloseReason.SHUTDOWN)

    run(told)


def test_they_come_without_a_question(run: Callable[[Told], None]) -> None:
    async def told(place: Place) -> None:
        connection = await place.open()
        await connection.listen(("jobs",), soon())
        await place.notify("jobs", "x" * 7999)
        await place.ear.until(lambda: place.ear.heard)
        assert place.ear.heard == [("jobs", "x" * 7999)]
        connection.close(CloseReason.SHUTDOWN)

    run(told)


def test_what_is_unlistened_is_not_heard(run: Callable[[Told], None]) -> None:
    async def told(place: Place) -> None:
        connection = await place.open()
        await connection.listen(("jobs", 'a"b'), soon())
        await connection.unlisten(("jobs",), soon())
        await place.notify("jobs", "1")
        await place.notify('a"b', "2")
        await connection.check(soon())
        assert place.ear.heard == [('a"b', "2")]
        connection.close(CloseReason.SHUTDOWN)

    run(told)


def test_after_a_close_nothing_is_told(run: Callable[[Told], None]) -> None:
    async def told(place: Place) -> None:
        connection = await place.open()
        await connection.listen(("jobs",), soon())
        asked = asyncio.create_task(connection.check(soon()))
        await asyncio.sleep(0)
        connection.close(CloseReason.GENERATION)  # in the middle of a question
        connection.close(CloseReason.GENERATION)
        await place.notify("jobs", "1")
        with pytest.raises(AttemptFailed):
            await asked
        with pytest.raises(AttemptFailed):
            await connection.listen(("news",), soon())
        assert (place.ear.heard, place.ear.losses) == ([], [])

    run(told)


def test_a_loss_is_told_once(run: Callable[[Told], None]) -> None:
    async def told(place: Place) -> None:
        connection = await place.open()
        await connection.listen(("jobs",), soon())
        await place.end_all()
        await place.ear.until(lambda: place.ear.losses)
        assert [fault.kind for fault in place.ear.losses] == [FaultKind.CONNECTION_LOST]
        with pytest.raises(AttemptFailed):
            await connection.check(soon())
        connection.close(CloseReason.CONNECTION_LOST)
        assert len(place.ear.losses) == 1

    run(told)
