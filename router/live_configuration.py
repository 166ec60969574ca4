"""The configuration while the router runs: watched, read again, judged as a whole, compared, and only then applied.

However a change arrives (a file that was edited, SIGHUP, an operator's order), it goes one way, one at a time. What
cannot be used changes nothing: the running configuration stays, and the status says why and since when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from router.config import loading
from router.config.differences import diff
from router.config.file_stamps import FilesWatched, Stamp, stamp_of
from router.config.loading import LoadedConfig
from router.config.problems import ConfigProblems
from router.model.events import ConfigChanged
from router.model.views import ConfigDiff, ConfigEffect, ConfigView, ReloadResult
from router.ports import Clock, EventSink

SETTLED_S = 0.2
"""A file is read when it has looked the same for so long: who writes it may still be writing."""
MOST_LOOKS = 25
OFF_S = 1.0


class LiveConfiguration:
    """api.surface.Configuration, and the watch. To be used inside one event loop."""

    def __init__(
        self,
        config: LoadedConfig,
        clock: Clock,
        events: EventSink,
        apply: Callable[[LoadedConfig], None],
        objection: Callable[[LoadedConfig], str],
    ) -> None:
        """apply: brings a configuration into force. objection: why this router cannot run it; empty: it can."""
        self._config = config
        self._clock = clock
        self._events = events
        self._apply = apply
        self._objection = objection
        self._problems: tuple[str, ...] = ()
        self._refused_at = 0.0
        self._applied_at = clock.now()
        self._turn = asyncio.Lock()
        self._reads = 0
        self._files = FilesWatched(config.files)
        self._watching: asyncio.Task[None] | None = None

    def view(self) -> ConfigView:
        """As operators see it."""
        now = self._clock.now()
        refused_s = now - self._refused_at if self._problems else 0.0
        return ConfigView(str(self._config.source), now - self._applied_at, self._problems, refused_s)

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """End the watch; may be called without start."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def reload(self) -> ReloadResult:
        """Read the files again; with any mistake in them nothing changes."""
        async with self._turn:
            return await self._reload()

    async def diff(self, document: str) -> ConfigDiff:
        """What a configuration file's text would change here; empty: the file as it stands."""
        try:
            fresh = await asyncio.to_thread(self._read, document)
        except ConfigProblems as problems:
            return ConfigDiff(problems=problems.lines())
        objection = self._objection(fresh)
        return ConfigDiff(diff(self._config, fresh), (objection,) if objection else ())

    def _read(self, document: str = "") -> LoadedConfig:
        source = self._config.source
        return loading.load_text(document, source) if document else loading.load(source)

    async def _reload(self) -> ReloadResult:
        self._reads += 1
        try:
            fresh = await asyncio.to_thread(self._read)
        except ConfigProblems as problems:
            return self._refuse(problems.lines(), problems.files)
        objection = self._objection(fresh)
        if objection:
            return self._refuse((objection,), fresh.files)
        changes = diff(self._config, fresh)
        self._problems = ()
        self._applied_at = self._clock.now()
        self._files.follow(fresh.files)
        self._config = fresh
        self._apply(fresh)
        self._events.emit(ConfigChanged(applied=True, changes=tuple(map(str, changes))))
        later = [f"after a restart: {one}" for one in changes if one.effect is ConfigEffect.RESTART]
        return ReloadResult(applied=True, changes=(*map(str, changes), *later))

    def _refuse(self, problems: tuple[str, ...], files: Mapping[str, Stamp]) -> ReloadResult:
        if not self._problems:
            self._refused_at = self._clock.now()
        self._problems = problems
        self._files.follow(files)
        self._events.emit(ConfigChanged(applied=False, changes=(), problems=problems))
        return ReloadResult(applied=False, problems=problems)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(self._config.server.watch_s or OFF_S)
            reads = self._reads
            on = self._config.server.watch_s > 0
            changed = await asyncio.to_thread(self._files.changed) if on else None
            if changed is None:
                continue
            await self._settle(changed)
            async with self._turn:
                if reads == self._reads:  # else somebody's order was faster
                    await self._reload_or_tell()

    async def _reload_or_tell(self) -> None:
        try:
            await self._reload()
        except Exception as error:  # a mistake of our own must not end the watch
            self._refuse((f"{self._config.source}: cannot be applied: {type(error).__name__}",), self._config.files)

    async def _settle(self, path: str) -> None:
        before = await asyncio.to_thread(stamp_of, path)
        for _ in range(MOST_LOOKS):
            await self._clock.sleep(SETTLED_S)
            now = await asyncio.to_thread(stamp_of, path)
            if now == before:
                return
            before = now
