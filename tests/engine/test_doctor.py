"""The doctor on virtual time: each finding is told once, and who else moves the primary stops us from doing so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import pytest

from router.engine.doctor import Doctors
from router.model.checkup import Check, ServerSettings
from router.model.errors import RouterError
from router.model.events import Phase, SettingFound
from router.model.identity import ClusterName, EndpointName
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.topology import Endpoint
from tests.engine.supervising import supervised, until
from tests.support.fake_servers import FakeServers, Mood
from tests.support.virtual_time import VirtualClock, virtual

N1, N2 = EndpointName("n1"), EndpointName("n2")
MAIN = ClusterName("main")
GOOD = ServerSettings(180006, False, "", "ANY 1 (n2, n3)", 0.1, 2.0)


@dataclass
class FakeExaminer:
    settings: ServerSettings = GOOD
    answers: bool = True
    asked: int = 0
    dead: str = ""

    async def examine(self, endpoint: Endpoint) -> ServerSettings:
        self.asked += 1
        await asyncio.sleep(0.001)
        if not self.answers or endpoint.name == self.dead:
            raise AttemptFailed(Fault(FaultKind.CONNECT_REFUSED, Stage.CONNECT, message="connection refused"))
        name = "" if endpoint.name == N1 else endpoint.name
        return replace(self.settings, application_name=name, in_recovery=bool(name))


@virtual
async def test_findings_are_told_once_and_shown_until_they_are_mended():
    examiner = FakeExaminer(replace(GOOD, retry_interval_s=5.0))
    async with supervised(FakeServers.of(3)) as (supervisor, told):
        doctors = Doctors(lambda _: examiner, VirtualClock(), told)
        doctors.see(supervisor)
        await asyncio.sleep(200)
        assert examiner.asked == 3 * 4
        assert [one.check for one in doctors.findings(MAIN)] == [Check.RETRY_INTERVAL] * 3
        assert len(told.of(SettingFound)) == 3
        examiner.answers = False
        await asyncio.sleep(60)
        assert len(doctors.findings(MAIN)) == 3, "what a silent server said last still counts"
        examiner.answers, examiner.settings = True, GOOD
        await asyncio.sleep(60)
        assert doctors.findings(MAIN) == ()
        doctors.stop()
        assert doctors.findings(MAIN) == ()


@virtual
async def test_beside_patroni_nothing_is_promoted_and_the_reason_is_shown():
    servers = FakeServers.of(3)
    examiner = FakeExaminer(replace(GOOD, manager="Patroni is connected to this server"))
    async with supervised(servers) as (supervisor, told):
        doctors = Doctors(lambda _: examiner, VirtualClock(), told)
        doctors.see(supervisor)
        await asyncio.sleep(1)
        with pytest.raises(RouterError, match="Patroni is connected"):
            await supervisor.switchover(N2, 5.0)
        servers["n1"].mood = Mood.DEAD
        await until(supervisor, lambda state: state.phase is Phase.STUCK)
        assert "Patroni is connected" in supervisor.state.detail
        assert not servers.journal
        servers.promote("n2")  # as Patroni does
        await until(supervisor, lambda state: state.primary == N2)
        doctors.stop()


@virtual
async def test_a_server_that_has_not_answered_yet_is_asked_again_soon():
    examiner = FakeExaminer(answers=False)
    async with supervised(FakeServers.of(3)) as (supervisor, told):
        doctors = Doctors(lambda _: examiner, VirtualClock(), told)
        doctors.see(supervisor)
        await asyncio.sleep(5)
        assert examiner.asked == 9
        doctors.stop()


@virtual
async def test_a_server_that_was_never_examined_is_not_found_to_be_good():
    examiner = FakeExaminer(dead="n3")
    async with supervised(FakeServers.of(3)) as (supervisor, told):
        doctors = Doctors(lambda _: examiner, VirtualClock(), told)
        doctors.see(supervisor)
        assert [one.message for one in doctors.findings(MAIN)] == ["not examined yet"] * 3
        await asyncio.sleep(30)
        (found,) = doctors.findings(MAIN)
        assert (found.endpoint, found.check) == ("n3", Check.NOT_EXAMINED)
        assert found.message == "could not be examined, for 30 s: connection refused"
        assert told.of(SettingFound) == [], "probes tell the log"
        examiner.dead = ""
        await asyncio.sleep(5)
        assert doctors.findings(MAIN) == ()
        examiner.dead = "n3"
        await asyncio.sleep(120)
        assert doctors.findings(MAIN) == (), "what it said last still counts"
        doctors.stop()
