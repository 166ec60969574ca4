"""Healing while servers go on dying: what fails in one look is a failed repair, and the next look mends it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest

from router import dev
from router.devcluster import Healed, HealReason, NoPrimaryError, replication
from router.devcluster import healing as healing_module
from router.devcluster.healing import Healer

GONE = "server closed the connection unexpectedly"
BACK = Healed("n2", HealReason.SERVER_DIED, "started as it was", succeeded=True)


class FakeServer:
    """One that had been killed, or the primary."""

    is_frozen = False

    def __init__(self, name: str, *, runs: bool) -> None:
        self.name, self.is_running = name, runs


class FakeNodes:
    """n1 is the primary, n2 is dead; whatever is asked of the primary fails as often as is said."""

    def __init__(self, failing: int = 0, *, primary: bool = True) -> None:
        self.servers = {"n1": FakeServer("n1", runs=primary), "n2": FakeServer("n2", runs=False)}
        self.state = type("State", (), {"last_primary": "n1"})
        self.failing, self.quorums = failing, 0
        self._has_primary = primary

    def observe(self) -> dict[str, Any]:
        return {}

    def primary_among(self, _: Any) -> FakeServer:
        if not self._has_primary:
            raise NoPrimaryError("none")
        return self.servers["n1"]

    def others(self, server: FakeServer) -> list[str]:
        return [name for name in self.servers if name != server.name]

    def ask(self, *_: Any) -> None:
        if self.failing > 0:
            self.failing -= 1
            raise psycopg.OperationalError(GONE)

    def expect_quorum(self, _: Any) -> None:
        self.ask()
        self.quorums += 1


def heal(healer: Healer, nodes: FakeNodes) -> list[tuple[str, HealReason, bool]]:
    return [(one.name, one.reason, one.succeeded) for one in healer.heal(nodes)]  # type: ignore[arg-type]


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead server comes back at once."""
    back = type("Back", (), {"method": HealReason.SERVER_DIED, "took_s": 0.1})

    def attach(nodes: FakeNodes, server: FakeServer, _: Any) -> Any:
        server.is_running = True
        return back

    monkeypatch.setattr(healing_module, "attach", attach)


def test_a_primary_that_dies_while_a_standby_is_brought_back_is_a_failed_repair(
    attached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, healer = FakeNodes(failing=1), Healer()
    monkeypatch.setattr(replication, "ensure_slots", nodes.ask)
    assert heal(healer, nodes) == [("n2", HealReason.SERVER_DIED, False)]
    assert heal(healer, nodes) == [("n2", HealReason.SERVER_DIED, True)]
    assert nodes.quorums == 1


def test_a_quorum_that_could_not_be_set_is_set_with_the_next_look(
    attached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, healer = FakeNodes(failing=1), Healer()
    monkeypatch.setattr(replication, "ensure_slots", lambda *_: None)
    assert heal(healer, nodes) == [("n2", HealReason.SERVER_DIED, True), ("n1", HealReason.NO_QUORUM, False)]
    monkeypatch.setattr(healing_module.Healer, "_what_is_wrong", lambda *_: None)
    assert heal(healer, nodes) == []
    assert nodes.quorums == 1
    assert heal(healer, nodes) == []
    assert nodes.quorums == 1


def test_a_start_of_all_that_fails_is_a_failed_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = FakeNodes(failing=1, primary=False)
    monkeypatch.setattr(healing_module, "start_all", nodes.ask)
    assert heal(Healer(), nodes) == [("n1", HealReason.ALONE, False)]


async def test_a_look_that_fails_is_told_once_and_the_next_one_heals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it fails with: nothing else would bring servers back, and Ctrl-C would end in a traceback."""
    failures: list[Exception] = [psycopg.OperationalError(GONE), psycopg.OperationalError(GONE), KeyError("n2")]
    rewritten = asyncio.Event()

    class FakeCluster:
        def heal(self) -> list[Healed]:
            if failures:
                raise failures.pop(0)
            return [BACK]

    monkeypatch.setattr(dev, "HEAL_S", 0.001)
    healing = asyncio.create_task(dev._heal(FakeCluster(), rewritten.set))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await rewritten.wait()
    healing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await healing
    told = capsys.readouterr().out
    assert told.count(GONE) == 1
    assert "n2: its process had ended; started as it was" in told
