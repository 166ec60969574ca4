"""The configuration while the router runs: watched, read again, judged as a whole, compared, and only then applied.

However a change arrives (a file that was edited, SIGHUP, an operator's order), it goes one way, one at a time. What
cannot be used changes nothing: the running configuration stays, and the status says why and since when. Of tenants in
files of their own, each stays or changes by itself, also while the main file is refused, and only what has changed is
read, judged and told to workers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from router.config import problems, reading
from router.config.differences import diff, tenant_differences
from router.config.file_stamps import FilesWatched, Stamp, stamp_of
from router.config.loaded import LoadedConfig
from router.config.problems import ConfigProblems, Problem
from router.model.errors import RouterError
from router.model.events import ConfigChanged
from router.model.identity import TenantName
from router.model.topology import Tenant, TenantChanges, Topology
from router.model.views import ConfigChange, ConfigDiff, ConfigEffect, ConfigView, ReloadResult
from router.ports import Clock, EventSink

if TYPE_CHECKING:
    from router.config.tenant_book import TenantBook

SETTLED_S = 0.2
"""A file is read when it has looked the same for so long: who writes it may still be writing."""
MOST_LOOKS = 25
OFF_S = 1.0
_FEW = 200
"""Tenants in files that are read in this process without anybody noticing."""
_AT_ONCE = 100
"""Tenants that change in one turn of the loop: requests are served in between."""
_T = TypeVar("_T")


class LiveConfiguration:
    """api.surface.Configuration, and the watch. To be used inside one event loop."""

    def __init__(
        self,
        config: LoadedConfig,
        clock: Clock,
        events: EventSink,
        apply: Callable[[LoadedConfig, TenantChanges], None],
        change: Callable[[LoadedConfig, TenantChanges], None],
        objection: Callable[[LoadedConfig], str],
    ) -> None:
        """apply: brings a configuration into force, with what changes of its tenants; change: one that differs in these
        tenants only. objection: why this router cannot run it; empty: it can."""
        self._config = config
        self._clock = clock
        self._events = events
        self._apply = apply
        self._change = change
        self._objection = objection
        self._problems: tuple[str, ...] = ()
        """Of the main file."""
        self._refused: tuple[str, ...] = ()
        """Of tenants' own files."""
        self._failed: tuple[str, ...] = ()
        """Of a change that failed half-way."""
        self._refused_at = self._applied_at = clock.now()
        self._unsettled: frozenset[TenantName] = frozenset()
        """Tenants of a change that failed half-way: whatever comes next brings them again."""
        self._half = False
        """The same of all but tenants: the next reload brings it again."""
        self.turn = asyncio.Lock()
        """Whoever reads or changes the configuration has it."""
        self._orders: set[asyncio.Task[object]] = set()
        self._reads = 0
        self._main = frozenset(config.files)
        """Files that the main one was last read of, itself among them; also if it was refused."""
        self._files = FilesWatched(_watched(config, dict(config.files)))
        self._watching: asyncio.Task[None] | None = None

    @property
    def book(self) -> TenantBook | None:
        """The folder of tenants, to be used in one's turn."""
        return self._config.book

    def view(self) -> ConfigView:
        """As operators see it."""
        now = self._clock.now()
        told = (*self._failed, *self._problems, *self._refused)
        refused_s = max(now - self._refused_at, 1e-9) if told else 0.0
        return ConfigView(str(self._config.source), now - self._applied_at, told, refused_s)

    def start(self) -> None:
        """Begin to watch; what was left out when the router started is told."""
        self._tell_refused()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """End the watch; may be called without start."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def reload(self) -> ReloadResult:
        """Read the files again; with any mistake in the main one nothing changes."""
        return await self.carried_out(self._reload)

    async def carried_out(self, order: Callable[[], Awaitable[_T]]) -> _T:
        """Its result; in its turn, and to its end though the caller may go away: what a thread has read or written by
        then would else be known to the book of tenants, and never come into force."""

        async def in_turn() -> _T | RouterError:
            try:
                async with self.turn:
                    return await order()
            except RouterError as refusal:
                return refusal  # who asked may be gone; a task must not end with what nobody takes

        task = asyncio.get_running_loop().create_task(in_turn())
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
        result = await asyncio.shield(task)
        if isinstance(result, RouterError):
            raise result
        return result

    async def diff(self, document: str) -> ConfigDiff:
        """What a configuration file's text would change here, with tenants' own files as they stand; empty: the file as
        it stands."""
        try:
            return await asyncio.to_thread(_difference, self._config, document, self._objection)
        except ConfigProblems as found:
            return ConfigDiff(problems=found.lines())

    # --- the whole -----------------------------------------------------------------------------------------------

    async def _reload(self) -> ReloadResult:
        self._reads += 1
        try:
            fresh, changes, of_tenants = await asyncio.to_thread(_news, self._config, self._objection)
        except ConfigProblems as found:
            return await self._refuse_main(found.lines(), found.files)
        before = [self._config]
        self._problems = ()
        await self._follow(fresh, fresh.files)
        whole = self._half or _without_tenants(before[0]) != _without_tenants(fresh)
        await self._bring(fresh, of_tenants.also(self._unsettled, fresh.topology.tenants), whole=whole)
        self._tell(changes)
        await asyncio.to_thread(before.clear)  # it may have been a folder of ten thousand
        later = [f"after a restart: {one}" for one in changes if one.effect is ConfigEffect.RESTART]
        return ReloadResult(
            applied=not self._refused, changes=(*map(str, changes), *later), problems=self._refused
        )

    async def _bring(self, fresh: LoadedConfig, changes: TenantChanges, *, whole: bool = False) -> None:
        """A configuration into force, which it is only once all of it is: else what is missing would be no news to the
        next look. whole: not only its tenants."""
        gone = self._config.topology.clusters.keys() - fresh.topology.clusters.keys()
        at_once = bool(gone) or (whole and self._half)
        self._unsettled, self._half = frozenset(changes.names), whole or self._half
        try:
            await self._bring_parts(fresh, changes, whole=whole, at_once=at_once)
        except Exception as error:
            words = (f"{self._config.source}: cannot be applied: {type(error).__name__}",)
            self._tell_problems(words)
            self._failed = words
            raise
        self._config, self._unsettled, self._half = fresh, frozenset(), self._half and not whole
        if not self._half:
            self._failed = ()

    async def _bring_parts(self, fresh: LoadedConfig, changes: TenantChanges, *, whole: bool, at_once: bool) -> None:
        """A few tenants a turn of the loop, so that requests do not wait for all of them. at_once: but those of a
        cluster that goes, as it may after what failed, change with it."""
        if at_once:
            return self._apply(fresh, changes)
        if whole:
            self._apply(fresh, TenantChanges())
        for part in changes.parts(_AT_ONCE):
            self._change(fresh, part)
            await asyncio.sleep(0)
        return None

    async def _refuse_main(self, found: tuple[str, ...], files: Mapping[str, Stamp]) -> ReloadResult:
        """The main file changes nothing; tenants' own files need not wait for it."""
        self._refuse(found)
        changes, told = TenantChanges(), tuple[ConfigChange, ...]()
        if self.book is not None:
            changes = await asyncio.to_thread(_look, self.book, self._config.topology.tenants)
        await self._follow(self._config, files)
        if self.book is not None:
            told = await self.take(changes)
        return ReloadResult(applied=False, changes=tuple(map(str, told)), problems=(*found, *self._refused))

    def _refuse(self, found: tuple[str, ...]) -> None:
        self._tell_problems(found)
        self._problems = found

    def _tell_problems(self, found: tuple[str, ...]) -> None:
        if not self.view().problems:
            self._refused_at = self._clock.now()
        self._events.emit(ConfigChanged(applied=False, changes=(), problems=found))

    async def _follow(self, config: LoadedConfig, files: Mapping[str, Stamp]) -> None:
        self._main = frozenset(files)
        self._files.follow(await asyncio.to_thread(_watched, config, dict(files)))
        self._reads += 1  # what the watch has seen meanwhile may be what has just been read

    def _tell(self, changes: tuple[ConfigChange, ...]) -> None:
        self._applied_at = self._clock.now()
        self._events.emit(ConfigChanged(applied=True, changes=tuple(map(str, changes))))
        self._tell_refused()

    def _tell_refused(self) -> None:
        """Tenants' files with mistakes, once each."""
        told, had = set(self._refused), bool(self.view().problems)
        self._refused = () if self.book is None else problems.lines(self._config.source, self.book.problems)
        new = tuple(one for one in self._refused if one not in told)
        if new:
            if not had:
                self._refused_at = self._clock.now()
            self._events.emit(ConfigChanged(applied=False, changes=(), problems=new))

    # --- some tenants --------------------------------------------------------------------------------------------

    async def take(self, changes: TenantChanges) -> tuple[ConfigChange, ...]:
        """Bring tenants that the book has taken into force. In one's turn."""
        self._reads += 1
        before = self._config.topology
        if self._unsettled and self.book is not None:
            changes = changes.also(self._unsettled, self.book.tenants)
        after, names = changes.of(before.tenants), changes.names
        told = tenant_differences(before.tenants, after, names)
        if changes:
            await self._bring(replace(self._config, topology=Topology(before.clusters, after)), changes)
            self._tell(told)
        else:
            self._tell_refused()
        if self.book is not None:
            self._files.forget([str(self.book.path(name)) for name in changes.removed])
            for name in names:
                self._files.note(self.book.files_of(name))
        return told

    async def _take_folder(self, book: TenantBook, path: str) -> None:
        """What has changed in the folder of tenants, of which the watch has seen one file or the folder itself."""
        before = book.entries.keys() | book.refused.keys()
        own = book.name_of(path)
        users = [own] if own is not None and stamp_of(path) is not None else book.users_of(path)
        if users:
            changes = await asyncio.to_thread(book.update, users)
        else:
            changes = await asyncio.to_thread(lambda: book.look(closely=False, settled_s=SETTLED_S))
        await self.take(changes)
        if path != str(book.frame.folder):
            self._files.forget([path])  # noted again below if it still matters
        after = book.entries.keys() | book.refused.keys()
        for name in (*users, *(before ^ after), *book.refused):
            self._files.note(book.files_of(name))
        self._files.forget([str(book.path(name)) for name in before - after])
        self._files.note({str(book.frame.folder): book.folder_stamp})

    # --- the watch -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(self._config.server.watch_s or OFF_S)
            reads = self._reads
            on = self._config.server.watch_s > 0
            changed = await asyncio.to_thread(self._files.changed) if on else None
            if changed is None:
                continue
            await self._settle(changed)
            async with self.turn:
                if reads == self._reads:  # else somebody's order was faster
                    await self._take_or_tell(changed)

    async def _take_or_tell(self, path: str) -> None:
        told, of_tenants = self._failed, path not in self._main
        try:
            if self.book is not None and of_tenants:
                await self._take_folder(self.book, path)
            else:
                await self._reload()
        except Exception as error:  # a mistake of our own must not end the watch
            untold = self._failed is told or not self._failed
            if untold:
                self._refuse((f"{self._config.source}: cannot be applied: {type(error).__name__}",))
            if untold or of_tenants:  # else what was read is followed
                await self._follow(self._config, self._config.files)

    async def _settle(self, path: str) -> None:
        before = await asyncio.to_thread(stamp_of, path)
        for _ in range(MOST_LOOKS):
            await self._clock.sleep(SETTLED_S)
            now = await asyncio.to_thread(stamp_of, path)
            if now == before:
                return
            before = now


def _read(current: LoadedConfig) -> LoadedConfig:
    """What the files say now. ConfigProblems; blocking."""
    former = current.book
    if former is None or not reading.is_small(current.source):
        return reading.read(current.source)
    from router.config import loading  # with pydantic, which tenants' files have brought along

    fresh = loading.load_main(current.source)
    if fresh.book is not None and fresh.book.frame == former.frame:
        former.frame = fresh.book.frame
        former.look()  # all that it holds counts
        return replace(fresh, topology=Topology(fresh.topology.clusters, former.tenants), book=former)
    fresh = reading.read(current.source, large=len(former.entries) > _FEW)
    lost = fresh.book.inherit(former) if fresh.book is not None else ()
    if lost:
        raise ConfigProblems(current.source, lost, fresh.files)
    tenants = fresh.book.tenants if fresh.book is not None else fresh.topology.tenants
    return replace(fresh, topology=Topology(fresh.topology.clusters, tenants))


def _news(
    before: LoadedConfig, objection: Callable[[LoadedConfig], str]
) -> tuple[LoadedConfig, tuple[ConfigChange, ...], TenantChanges]:
    """What the files say now, with the old tenants where they are the same, so that none is kept twice; what changes,
    in words and for those who follow. ConfigProblems, also for an objection. Blocking; of ten thousand tenants seconds,
    and what it leaves behind tenths of a second, so that it all belongs into a thread."""
    fresh = _read(before)
    if words := objection(fresh):
        raise ConfigProblems(fresh.source, [Problem(0, "", words)], fresh.files)
    old, new = before.topology.tenants, fresh.topology.tenants
    changes = TenantChanges.between(old, new)
    others = {one.name for one in changes.changed}
    tenants = {name: one if name in others else old[name] for name, one in new.items()}
    if fresh.book is not None and fresh.book is not before.book:
        fresh.book.keep(tenants)
    fresh = replace(fresh, topology=Topology(fresh.topology.clusters, tenants))
    return fresh, diff(before, fresh), changes


def _difference(before: LoadedConfig, document: str, objection: Callable[[LoadedConfig], str]) -> ConfigDiff:
    """To what a text, or the file as it stands, would be. ConfigProblems; blocking."""
    large = before.book is not None and len(before.book.entries) > _FEW
    fresh = reading.read(before.source, document, large=large)
    words = objection(fresh)
    told = () if fresh.book is None else problems.lines(before.source, fresh.book.problems)
    return ConfigDiff(diff(before, fresh), (words, *told) if words else told)


def _watched(config: LoadedConfig, main: dict[str, Stamp]) -> dict[str, Stamp]:
    """Files to watch, the main one and the folder first."""
    first = {str(config.source): main.get(str(config.source))}
    return first | (config.book.files() if config.book is not None else {}) | main


def _look(book: TenantBook, before: Mapping[TenantName, Tenant]) -> TenantChanges:
    """What tenants' own files say now, beside those in force. Blocking."""
    book.look()
    return TenantChanges.between(before, book.tenants)


def _without_tenants(config: LoadedConfig) -> LoadedConfig:
    return replace(config, topology=replace(config.topology, tenants={}))
