"""What of a new configuration cannot be had is told before anything of it is in force."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.config.loaded import LoadedConfig
from router.config.loading import load
from router.control_plane import ControlPlane
from router.engine.clusters import ClusterSource
from router.journal.state_directory import StateDirectory
from router.model.errors import RouterError
from router.model.identity import ClusterName
from router.model.journal import ClusterRecord, JournalFailed
from router.model.state import ClusterState
from router.model.topology import TenantChanges
from router.model.views import Load
from router.system import SystemChance, SystemClock
from router.telemetry.event_sink import TelemetrySink

ONE = "  {0}: {{control: {{user: control}}, endpoints: {{{0}1: {{host: 127.0.0.1, port: {1}}}}}}}\n"
TENANT = "  {0}: {{cluster: {1}, database: {0}, login: {{user: {0}}}, tokens: [env:{2}]}}\n"
MAIN = "admin: {tokens: [env:ADMIN]}\nserver: {watch_s: 0}\nclusters:\n"


class Following:
    """Who carries requests: keeps what it was told."""

    def __init__(self) -> None:
        self.clusters: list[str] = []
        self.applied: list[LoadedConfig] = []
        self.changes: list[TenantChanges] = []

    def add_cluster(self, source: ClusterSource, *_: Callable[[ClusterState], None]) -> None:
        self.clusters.append(source.cluster.name)

    def remove_cluster(self, name: ClusterName) -> None:
        self.clusters.remove(name)

    def apply(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        self.applied.append(fresh)
        self.changes.append(changes)

    def change_tenants(self, fresh: LoadedConfig, changes: TenantChanges) -> None:
        self.changes.append(changes)


class Plane:
    """A control plane over a file, and who follows it."""

    def __init__(self, path: Path) -> None:
        self.file = path / "router.yaml"
        self.pages = path / "state"
        self.following = Following()
        sink = TelemetrySink(write=lambda *_, **__: None)
        self.plane = ControlPlane(load(self.file), SystemClock(), SystemChance(), sink, self.following, Load)

    @property
    def ports(self) -> dict[str, int]:
        return {one.cluster.name: one.cluster.endpoints[0].port for one in self.plane.supervisors}

    @property
    def told(self) -> str:
        return "\n".join(self.plane.live.view().problems)


def write(path: Path, clusters: dict[str, int], tenants: dict[str, tuple[str, str]]) -> None:
    """clusters: ports by name. tenants: cluster and token by name."""
    text = MAIN + "".join(ONE.format(*one) for one in clusters.items())
    text += "tenants:\n" + "".join(TENANT.format(name, *two) for name, two in tenants.items())
    (path / "router.yaml").write_text(text)


@asynccontextmanager
async def running(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    for name in ("ADMIN", "OLD", "NEW", "OTHER"):
        monkeypatch.setenv(name, f"a-token-called-{name}")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    write(path, BEFORE, {"acme": ("one", "OLD")})
    plane = Plane(path)
    plane.plane.start()
    try:
        yield plane
    finally:
        await plane.plane.stop()


BEFORE = {"one": 11, "two": 21}
PORTS = {"new": 31, "one": 12, "two": 22}
AFTER = (PORTS, {"acme": ("one", "NEW"), "fresh": ("new", "OTHER")})
"""A cluster, a tenant, and a token are new, two clusters have moved."""


@pytest.mark.parametrize("damage", ["damaged", "unreadable", "binary"])
async def test_a_page_of_a_new_cluster_that_cannot_be_read_refuses_all_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    async with running(tmp_path, monkeypatch) as world:
        page = world.pages / "new.json"
        if damage == "unreadable":
            page.mkdir()
        else:
            page.write_bytes(b"{" if damage == "damaged" else b"\xff\xfe\xfd")
        write(tmp_path, *AFTER)
        assert world.plane.live.view().problems == ()
        told = await world.plane.live.diff("")
        assert "new.json" in told.problems[0]
        refused = await world.plane.live.reload()
        assert not refused.applied
        assert ("cannot be read" if damage == "unreadable" else "is damaged") in world.told
        assert "new.json" in world.told
        assert (world.following.applied, world.following.changes) == ([], [])
        assert world.ports == BEFORE

        page.rmdir() if damage == "unreadable" else page.unlink()
        assert (await world.plane.live.reload()).applied
        assert world.told == ""
        assert world.ports == PORTS
        brought = [one for changes in world.following.changes for one in changes.changed]
        assert {one.name: one.tokens[0].value[-3:] for one in brought} == {"acme": "NEW", "fresh": "HER"}


async def test_a_page_that_is_lost_between_the_look_and_the_act_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as world:
        write(tmp_path, *AFTER)
        reads, failing = StateDirectory.read, iter([False, True])

        def read(directory: StateDirectory, cluster: ClusterName) -> ClusterRecord | None:
            if next(failing, False):
                raise JournalFailed("the disk is gone")
            return reads(directory, cluster)

        monkeypatch.setattr(StateDirectory, "read", read)
        with pytest.raises(JournalFailed):
            await world.plane.live.reload()
        assert "cannot be applied" in world.told
        assert (world.following.clusters, world.ports) == (["one", "two"], BEFORE)
        assert (await world.plane.live.reload()).applied
        assert world.told == ""
        assert world.ports == PORTS
        assert sorted(world.following.clusters) == ["new", "one", "two"]


async def test_what_a_follower_has_not_taken_is_brought_to_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch) as world:

        def stumble(_: LoadedConfig, __: TenantChanges) -> None:
            raise ZeroDivisionError

        write(tmp_path, {"new": 31, "two": 22}, {"acme": ("new", "NEW")})
        takes, world.following.apply = world.following.apply, stumble  # type: ignore[method-assign]
        with pytest.raises(ZeroDivisionError):
            await world.plane.live.reload()
        world.following.apply = takes  # type: ignore[method-assign]
        write(tmp_path, BEFORE, {"acme": ("one", "OLD")})
        assert (await world.plane.live.reload()).applied, "back to what it was: also of that a part was in force"
        assert world.ports == BEFORE
        assert sorted(world.following.clusters) == ["one", "two"]
        ((acme,),) = [changes.changed for changes in world.following.changes]
        assert acme.cluster == "one"


async def test_a_router_does_not_start_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, monkeypatch):
        pass
    (tmp_path / "state" / "two.json").write_text("{")
    plane = Plane(tmp_path)
    with pytest.raises(RouterError, match=r"two\.json is damaged"):
        plane.plane.start()
    assert plane.following.clusters == []
    await plane.plane.stop()
