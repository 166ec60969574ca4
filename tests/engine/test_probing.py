"""The probe loop: its pace, its jitter, and being woken."""

import asyncio
from itertools import pairwise

import pytest

from router.engine.probing import LONGEST_LOGIN_PAUSE_S, Pace, ProbeLoop
from router.model.identity import EndpointName
from router.model.observation import ProbeOutcome, ProbeResult
from router.model.policy import ProbePolicy
from tests.support.virtual_time import FixedChance, SeededChance, VirtualClock, virtual

N1 = EndpointName("n1")


class Prober:
    """Answers after a while; notes when it was asked, and that probes never overlap."""

    def __init__(self, took_s: float = 0.0) -> None:
        self.took_s = took_s
        self.outcome = ProbeOutcome.OK
        self.logins: list[float] = []
        """When it was asked to log in."""
        self.asked: list[tuple[float, bool]] = []
        self._busy = False

    async def probe(self, *, fresh: bool, log_in: bool = True) -> ProbeResult:
        assert not self._busy
        self._busy = True
        if log_in:
            self.logins.append(asyncio.get_running_loop().time())
        self.asked.append((asyncio.get_running_loop().time(), fresh))
        await asyncio.sleep(self.took_s)
        self._busy = False
        outcome = self.outcome
        if outcome is ProbeOutcome.OK and not log_in:
            outcome = ProbeOutcome.LOGIN_REFUSED  # what a stranger is told
        return ProbeResult(N1, outcome, asyncio.get_running_loop().time(), self.took_s, fresh=log_in)

    async def close(self) -> None:
        return


class Probing:
    def __init__(self, prober: Prober, draw: float = 0.5) -> None:
        self.pace = Pace.CALM
        self.reports: list[ProbeResult] = []
        chance = FixedChance([draw]) if draw >= 0 else SeededChance(3)
        policy = ProbePolicy(interval_s=0.25, fresh_every=4)
        self.loop = ProbeLoop(prober, policy, VirtualClock(), chance, self.reports.append, lambda: self.pace)
        self.task = asyncio.create_task(self.loop.run())

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def gaps(prober: Prober) -> list[float]:
    return [after - before for (before, _), (after, _) in pairwise(prober.asked)]


@virtual
async def test_calm_pace_with_a_jitter_of_a_tenth():
    prober = Prober()
    probing = Probing(prober, draw=-1)
    await asyncio.sleep(60)
    await probing.end()
    assert all(0.225 <= gap <= 0.285 for gap in gaps(prober))
    assert max(gaps(prober)) - min(gaps(prober)) > 0.03
    assert len(probing.reports) == len(prober.asked)


@virtual
async def test_every_fourth_probe_opens_a_fresh_connection_and_in_doubt_every_one():
    prober = Prober()
    probing = Probing(prober)
    await asyncio.sleep(2.0)
    assert [fresh for _, fresh in prober.asked] == [True, False, False, False, True, False, False, False]
    probing.pace = Pace.DOUBT
    before = len(prober.asked)
    await asyncio.sleep(1.0)
    await probing.end()
    assert all(fresh for _, fresh in prober.asked[before:])


@virtual
async def test_a_fresh_probe_that_is_asked_for_comes_at_once_and_not_more_often_than_in_doubt():
    prober = Prober(took_s=0.002)
    probing = Probing(prober)
    await asyncio.sleep(0.3)
    asked = asyncio.get_running_loop().time()
    probing.loop.probe_now(fresh=True)
    await asyncio.sleep(0.001)
    assert prober.asked[-1] == (pytest.approx(asked), True)
    before = len(prober.asked)
    for _ in range(1000):
        probing.loop.probe_now(fresh=True)
        await asyncio.sleep(0.001)
    await probing.end()
    assert 15 <= len(prober.asked) - before <= 21


@virtual
async def test_in_doubt_every_50_ms_and_later_every_100():
    prober = Prober()
    probing = Probing(prober)
    probing.pace = Pace.DOUBT
    await asyncio.sleep(5)
    await probing.end()
    assert gaps(prober)[0] == pytest.approx(0.06)
    assert gaps(prober)[-1] == pytest.approx(0.11)


@virtual
async def test_probe_now_ends_the_pause():
    prober = Prober()
    probing = Probing(prober)
    await asyncio.sleep(0.1)
    probing.loop.probe_now()
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    await probing.end()
    assert [at - prober.asked[0][0] for at, _ in prober.asked] == pytest.approx([0, 0.1])


@virtual
async def test_probe_now_during_a_probe_asks_again_right_after_it():
    prober = Prober(took_s=0.4)
    probing = Probing(prober)
    await asyncio.sleep(0.2)
    for _ in range(1000):
        probing.loop.probe_now()
    await asyncio.sleep(0.3)
    await probing.end()
    assert gaps(prober) == pytest.approx([0.41])


@virtual
async def test_however_often_it_is_asked_for_probes_keep_a_shortest_pause():
    prober = Prober()
    probing = Probing(prober)
    for _ in range(1000):
        probing.loop.probe_now()
        await asyncio.sleep(0.001)
    await probing.end()
    assert min(gaps(prober)) >= 0.0099


# --- a refused login -----------------------------------------------------------------------------------------------


@virtual
async def test_a_refused_login_is_tried_ever_more_seldom_and_the_server_asked_as_often_as_before():
    prober = Prober()
    prober.outcome = ProbeOutcome.LOGIN_REFUSED
    probing = Probing(prober)
    probing.pace = Pace.DOUBT
    await asyncio.sleep(60)
    assert len(prober.logins) <= 17
    assert max(after - before for before, after in pairwise(prober.logins)) < LONGEST_LOGIN_PAUSE_S + 0.2
    assert len(prober.asked) > 500, "whether it lives is known within a tenth of a second"
    assert {one.outcome for one in probing.reports} == {ProbeOutcome.LOGIN_REFUSED}
    prober.outcome = ProbeOutcome.OK  # mended at the server
    before = len(prober.logins)
    await asyncio.sleep(LONGEST_LOGIN_PAUSE_S + 0.2)
    assert probing.reports[-1].outcome is ProbeOutcome.OK
    await asyncio.sleep(1)
    assert len(prober.logins) > before + 5, "nothing is left of the pause"
    await probing.end()


@virtual
async def test_a_server_that_was_away_is_logged_in_to_at_once():
    prober = Prober()
    prober.outcome = ProbeOutcome.LOGIN_REFUSED
    probing = Probing(prober)
    probing.pace = Pace.DOUBT
    await asyncio.sleep(30)
    prober.outcome = ProbeOutcome.REFUSED
    await asyncio.sleep(0.2)
    assert probing.reports[-1].outcome is ProbeOutcome.REFUSED, "seen at the pace of doubt"
    prober.outcome = ProbeOutcome.OK
    await asyncio.sleep(0.2)
    assert probing.reports[-1].outcome is ProbeOutcome.OK
    await probing.end()
