"""The watch: what changes on disk comes into force by itself, what is wrong changes nothing and is told."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router import live_configuration
from router.config.loaded import LoadedConfig
from router.config.loading import load
from router.live_configuration import LiveConfiguration
from router.model.errors import Code, RouterError
from router.model.events import ConfigChanged
from router.model.reasons import RefuseReason
from router.model.topology import TenantChanges
from router.model.views import ConfigEffect
from tests.config.test_config_loading import ENVIRON, GOOD
from tests.support.builders import Recorder
from tests.support.certificates import Authority
from tests.support.eventually import eventually


class HastyClock:
    """A second is a hundredth."""

    def now(self) -> float:
        return time.monotonic() * 100

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 100)


def stumble(_: LoadedConfig, __: TenantChanges) -> None:
    raise ZeroDivisionError


class Watched:
    """A live configuration of one file, and what it has brought into force."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = Recorder()
        self.applied: list[LoadedConfig] = []
        self.objection = ""
        config = load(path)
        self.live = LiveConfiguration(
            config, HastyClock(), self.events, self.changed, self.changed, lambda _: self.objection
        )

    def changed(self, config: LoadedConfig, _: TenantChanges) -> None:
        self.applied.append(config)

    @property
    def told(self) -> list[bool]:
        return [one.applied for one in self.events.events if isinstance(one, ConfigChanged)]

    def edit(self, old: str, new: str) -> None:
        """Change the file's text."""
        text = self.path.read_text()
        assert old in text
        self.secret(self.path.name, text.replace(old, new))

    def secret(self, name: str, text: str) -> None:
        """Replace a file as a whole: with this clock the watch would see it half written."""
        beside = self.path.parent / "beside"
        beside.write_text(text)
        beside.replace(self.path.parent / name)

    def take_away(self) -> str:
        """Remove the file; its text."""
        text = self.path.read_text()
        self.path.unlink()
        return text

    async def until(self, times: int) -> None:
        await eventually(lambda: len(self.told) >= times, within_s=3, what=f"{times} reads")

    async def quiet(self) -> None:
        told = len(self.told)
        await asyncio.sleep(0.06)
        assert len(self.told) == told


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "router.yaml"
    (tmp_path / "beta.password").write_text("first")
    file.write_text(GOOD.replace("env:BETA_PW", "file:beta.password"))
    return file


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[Watched]:
    watched = Watched(path)
    watched.live.start()
    try:
        yield watched
    finally:
        await watched.live.stop()


async def test_a_changed_file_comes_into_force_once(path: Path) -> None:
    async with watching(path) as watched:
        await watched.quiet()
        watched.edit("max_size: 5", "max_size: 6")
        await watched.until(1)
        await watched.quiet()
        (fresh,) = watched.applied
        assert next(iter(fresh.topology.tenants.values())).pool.max_size == 6
        assert watched.live.view().problems == ()


async def test_a_changed_secret_comes_into_force_and_is_not_shown(path: Path) -> None:
    async with watching(path) as watched:
        watched.secret("beta.password", "second")
        await watched.until(1)
        logins = [one.login for one in watched.applied[0].topology.tenants.values()]
        assert "second" in [one.password.value for one in logins if one.password is not None]
        assert "second" not in str(watched.events.events)


async def test_a_bad_file_changes_nothing_is_told_once_and_the_next_good_one_ends_it(path: Path) -> None:
    async with watching(path) as watched:
        watched.edit("max_size: 5", "max_size: -5")
        await watched.until(1)
        await watched.quiet()
        view = watched.live.view()
        assert (watched.applied, watched.told) == ([], [False])
        assert "tenants.acme.pool" in view.problems[0]
        assert view.refused_s > 0
        bad = watched.take_away()
        await watched.until(2)
        assert watched.live.view().problems[0].endswith("no such file")
        assert watched.live.view().refused_s > view.refused_s, "since the first of them"
        watched.secret(path.name, bad.replace("max_size: -5", "max_size: 5"))
        await watched.until(3)
        assert watched.told == [False, False, True]
        assert watched.live.view().refused_s == 0.0


async def test_a_secret_that_was_missing_and_comes_is_noticed(path: Path) -> None:
    async with watching(path) as watched:
        watched.edit("file:beta.password", "file:new.password")
        await watched.until(1)
        watched.secret("new.password", "third")
        await watched.until(2)
        assert watched.told == [False, True]


_PG1 = "pg1: {host: one.example, zone: a}"
_ACME = "password: env:ACME_PW"
_ADMIN = "admin: {tokens: [env:ADMIN]}"
_ISSUED = Authority().issue(dns=["router"])
MISSING: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a server's CA": (_PG1, "pg1: {host: one.example, tls: {mode: verify-full, root_cert: ca.pem}}", ("ca.pem",)),
    "the router's certificate": (
        _PG1, "pg1: {host: one.example, tls: {mode: require, cert: c.pem, key: c.key}}", ("c.pem", "c.key")),
    "a port's certificate": (_ADMIN, f"server: {{tls: {{cert: port.pem, key: port.key}}}}\n{_ADMIN}", ("port.pem",)),
    "keys of signed tokens": (
        _ADMIN, f"server: {{jwt: {{keys: keys.json, issuer: i, audience: a}}}}\n{_ADMIN}", ("keys.json",)),
    "a program": (_ACME, "password: 'command:bin/ask'", ("bin/ask",)),
    "a program on the path": (_ACME, "password: 'command:ask_for_it'", ("bin/ask_for_it",)),
    "the folder of the audit log": (_ADMIN, f"server: {{audit: {{file: logs/audit.log}}}}\n{_ADMIN}", ("logs/x",)),
}  # fmt: skip
"""What is edited in the configuration, and the files that come after it."""


@pytest.mark.parametrize("what", MISSING)
async def test_what_was_missing_and_comes_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As where the configuration and what it names are mounted one after the other."""
    old, new, files = MISSING[what]
    (path.parent / "bin").mkdir()
    _ISSUED.write(path.parent / "issued.pem", path.parent / "port.key")
    monkeypatch.setenv("PATH", f"/nowhere:{path.parent}/bin")
    async with watching(path) as watched:
        watched.edit(old, new)
        await watched.until(1)
        assert watched.told == [False], watched.live.view()
        for file in files:
            there = path.parent / file
            beside = path.parent / "beside"
            beside.write_bytes(_ISSUED.cert)
            beside.chmod(0o755)
            there.parent.mkdir(exist_ok=True)
            beside.rename(there)
        await eventually(lambda: watched.told[-1], within_s=3, what="the configuration in force")
        assert watched.live.view().problems == ()


async def test_a_servers_ca_that_goes_is_told_and_that_comes_back_ends_it(path: Path) -> None:
    (path.parent / "ca.pem").write_bytes(_ISSUED.cert)
    async with watching(path) as watched:
        watched.edit(*MISSING["a server's CA"][:2])
        await watched.until(1)
        (path.parent / "ca.pem").unlink()
        await watched.until(2)
        assert "ca.pem does not exist" in watched.live.view().problems[0]
        watched.secret("ca.pem", _ISSUED.cert.decode())
        await watched.until(3)
        assert watched.told == [True, False, True]


async def test_a_folder_of_tenants_that_comes_is_noticed(path: Path) -> None:
    async with watching(path) as watched:
        text = watched.path.read_text()
        watched.secret(path.name, text[: text.index("tenants:")] + "tenants_dir: folder\n")
        await watched.until(1)
        assert "make it, empty if need be" in watched.live.view().problems[0]
        (path.parent / "folder").mkdir()
        await watched.until(2)
        assert watched.told == [False, True]


async def test_what_is_still_being_written_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_configuration, "SETTLED_S", 20.0)
    async with watching(path) as watched:
        text = watched.take_away()
        for end in range(0, len(text), 40):
            watched.secret(path.name, text[:end])
            await asyncio.sleep(0.001)
        watched.secret(path.name, text.replace("max_size: 5", "max_size: 6"))
        await watched.until(1)
        assert watched.told == [True]


async def test_an_order_and_the_watch_do_not_read_it_twice(path: Path) -> None:
    async with watching(path) as watched:
        watched.edit("max_size: 5", "max_size: 6")
        assert (await watched.live.reload()).applied
        await watched.quiet()
        assert len(watched.applied) == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_an_order_that_is_refused_when_nobody_waits_any_more_is_no_mistake(path: Path, turns: int) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with watching(path) as watched:

        async def refused() -> None:
            await asyncio.sleep(0.001)
            raise RouterError(Code.FAILED_PRECONDITION, RefuseReason.BAD_REQUEST, "not so")

        asking = asyncio.create_task(watched.live.carried_out(refused))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.sleep(0.02)
        with pytest.raises(RouterError, match="not so"):
            await watched.live.carried_out(refused)
    del asking
    gc.collect()
    assert not told


async def test_an_objection_refuses_and_watch_s_0_does_not_look(path: Path) -> None:
    async with watching(path) as watched:
        watched.objection = "not here"
        watched.edit("clusters:\n", "server: {watch_s: 0}\nclusters:\n")
        await watched.until(1)
        assert watched.live.view().problems == (f"{path}: not here",)
        watched.objection = ""
        assert (await watched.live.reload()).applied
        watched.edit("max_size: 5", "max_size: 7")
        await watched.quiet()


async def test_a_mistake_of_our_own_does_not_end_the_watch(path: Path) -> None:
    async with watching(path) as watched:
        watched.live._change = stumble
        watched.edit("max_size: 5", "max_size: 6")
        await watched.until(1)
        assert "ZeroDivisionError" in watched.live.view().problems[0]
        watched.live._change = watched.changed
        watched.edit("max_size: 6", "max_size: 8")
        await watched.until(2)
        assert len(watched.applied) == 1


@pytest.mark.parametrize("whole", [True, False], ids=["clusters", "tenants"])
async def test_what_has_failed_half_way_is_brought_again(path: Path, whole: bool) -> None:
    watched = Watched(path)
    brought: list[str] = []
    failing = [True]

    def bring(_: LoadedConfig, changes: TenantChanges) -> None:
        if failing and (changes or not whole):
            failing.clear()
            raise ZeroDivisionError
        brought.extend(one.name for one in changes.changed)

    watched.live._apply = watched.live._change = bring
    watched.edit("max_size: 5", "max_size: 6")
    if whole:
        watched.edit("clusters:\n", "retry: {reserve_s: 0.02}\nclusters:\n")
    with pytest.raises(ZeroDivisionError):
        await watched.live.reload()
    assert "cannot be applied: ZeroDivisionError" in watched.live.view().problems[0]
    assert watched.live.view().refused_s > 0
    assert brought == []
    again = await watched.live.reload()
    assert again.applied
    assert any("max_size: 5 → 6" in one for one in again.changes)
    assert brought == ["acme"]
    assert watched.live.view().problems == ()
    assert (await watched.live.reload()).changes == ()
    assert brought == ["acme"]


async def test_what_has_failed_half_way_and_is_taken_back_is_brought_as_it_was(path: Path) -> None:
    watched = Watched(path)
    brought: list[int] = []

    def bring(_: LoadedConfig, changes: TenantChanges) -> None:
        brought.extend(one.pool.max_size for one in changes.changed)
        if len(brought) == 1:
            raise ZeroDivisionError

    watched.live._change = bring
    watched.edit("max_size: 5", "max_size: 6")
    with pytest.raises(ZeroDivisionError):
        await watched.live.reload()
    watched.edit("max_size: 6", "max_size: 5")
    assert (await watched.live.reload()).changes == ()
    assert brought == [6, 5]


async def test_the_difference_to_a_text_or_to_the_file_is_told_and_nothing_applied(path: Path) -> None:
    watched = Watched(path)
    assert (await watched.live.diff("")).changes == ()
    text = GOOD.replace("env:BETA_PW", "file:beta.password")
    found = await watched.live.diff(text.replace("max_size: 5", "max_size: 6"))
    assert [(one.place, one.effect) for one in found.changes] == [
        ("tenants.acme.pool.max_size", ConfigEffect.NEW_CONNECTIONS)
    ]
    assert (await watched.live.diff("a: [")).problems
    watched.secret(path.name, "clusters: {}")
    assert len((await watched.live.diff("")).problems) > 1
    assert watched.applied == []


async def test_tenants_that_have_not_changed_stay_the_very_same(path: Path) -> None:
    """Of ten thousand, a second copy would be 15 MiB."""
    watched = Watched(path)
    before = dict(watched.live._config.topology.tenants)
    watched.edit("max_size: 5", "max_size: 6")
    assert (await watched.live.reload()).applied
    after = watched.applied[-1].topology.tenants
    assert {name for name, one in after.items() if one is not before[name]} == {"acme"}


async def test_many_changes_come_a_few_a_turn_of_the_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_configuration, "_AT_ONCE", 1)
    watched = Watched(path)
    parts: list[TenantChanges] = []
    turns: list[int] = []

    def change(_: LoadedConfig, part: TenantChanges) -> None:
        parts.append(part)
        asyncio.get_running_loop().call_soon(turns.append, len(parts))

    watched.live._change = change
    watched.edit("max_size: 5", "max_size: 6")
    watched.edit("file:beta.password", "env:ACME_PW")
    assert (await watched.live.reload()).applied
    assert [len(one.changed) for one in parts] == [1, 1]
    assert turns == [1, 2]
