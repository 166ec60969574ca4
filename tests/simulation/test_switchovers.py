"""Planned switchovers of a busy cluster whose standbys confirm nothing: what is acknowledged during one is not lost."""

from __future__ import annotations

import pytest

from tests.simulation.callers import Callers
from tests.simulation.faults import Kind
from tests.simulation.report import story
from tests.simulation.workload import Workload
from tests.simulation.world import World, simulate
from tests.support.virtual_time import SeededChance

AT_ONCE = 12
"""More than the lanes that their tenants have."""


class Crowd(Workload):
    """Batches only, by so many at once that some always wait for a lane."""

    CLIENTS = AT_ONCE

    async def _client(self, number: int) -> None:
        while not self._stopping:
            life = await self._next_life(0.001)
            if life is not None:
                await self._write(life, self._tenant(number), 2)

    def _writes(self, count: int) -> tuple[bytes, ...]:
        return tuple(one.replace(b"'w", b"'crowd") for one in super()._writes(count))


class Unconfirmed(World):
    """Nobody has to confirm commits."""

    def __init__(self, seed: int, **options: object) -> None:
        super().__init__(seed, kinds=[Kind.SWITCHOVER], scenarios=frozenset())
        for node in self.servers.nodes.values():
            node.sync_names = ""

    def _further_callers(self) -> list[Callers]:
        return [Crowd(self.judge, self._to_ask, SeededChance(self.seed + 6_000_003))]


@pytest.mark.parametrize("seed", [4, 8])
def test_a_planned_switchover_loses_nothing_without_confirmation(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.world.World", Unconfirmed)
    result = simulate(seed, fault_s=5.0)
    assert result.broken is None, story(result)
    assert result.counts["failover"] > 0
