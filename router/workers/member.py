"""One worker as the control process sees it: a process of a fresh interpreter, its channel, and what it last told.

Never a fork of the control process, which holds gRPC objects: an exec, so that a replacement also runs whatever code is
installed by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import router
from router.decisions.connection_ledger import WorkerId
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.views import Load, WorkerState, WorkerView
from router.ports import Clock
from router.telemetry.log_setup import process_log
from router.workers.channel import Channel, ChannelClosed
from router.workers.messages import (
    Applied,
    Begin,
    CannotServe,
    Drain,
    Hello,
    Leaving,
    Look,
    LookAsked,
    Serving,
    shape,
)

START_S = 20.0
"""From the exec to serving; importing takes half a second of a free core, the first look at a cluster up to three."""
LOOK_S = 0.5
"""How long a look may take before the worker is shown as silent."""

_T = TypeVar("_T")


class Member:
    """Start it, then talk to it; `gone` is done when the process has ended and was reaped."""

    def __init__(
        self,
        place: int,
        identity: WorkerId,
        clock: Clock,
        on_message: Callable[[Member, object], None],
        on_question: Callable[[Member, object], Awaitable[object]],
        on_begun: Callable[[Member], None],
    ) -> None:
        """identity: of this process among all that this router ever has."""
        self.place = place
        self.identity = identity
        self.state = WorkerState.STARTING
        self.version = router.__version__
        self.look = Look(Load(), 0)
        """The last one."""
        self.applied = 0
        """The newest mark it has confirmed."""
        self.pid = 0
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.started = clock.now()
        self._clock = clock
        self._on_message = on_message
        self._on_question = on_question
        self._on_begun = on_begun
        self._serving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._confirmed = asyncio.Event()
        self._executed = asyncio.Event()
        self._begun = False
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._living: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Member {self.place} pid={self.pid} {self.state.value}>"

    @property
    def words(self) -> str:
        """For messages."""
        return f"worker {self.place} (pid {self.pid})"

    @property
    def told(self) -> bool:
        """Whether it takes part: it has got its configuration, and its process has not ended."""
        return self._begun and not self.gone.done()

    def view(self, restarts: int) -> WorkerView:
        """For operators."""
        return WorkerView(
            self.place,
            self.pid,
            self.state,
            self._clock.now() - self.started,
            self.look.running,
            sum(pool.size for pool in self.look.load.pools),
            restarts,
            self.version,
        )

    # --- life --------------------------------------------------------------------------------------------------

    async def start(self, begin: Callable[[Member], Begin]) -> None:
        """Run a process until it serves. RouterError INTERNAL, with its own words where it had any, when it does not.

        begin: called at the moment when it is told, so that nothing published since is missing.
        """
        self._living = asyncio.create_task(self._live())
        try:
            async with asyncio.timeout(START_S):
                hello = await self._first(self._hello)
                self.version = hello.version
                if hello.shape != shape():
                    raise _cannot(f"{self.words} runs other code ({hello.version}): restart the whole router")
                words = begin(self)
                self._begun = True
                self.tell(words)
                self._on_begun(self)
                await self._first(self._serving)
        except TimeoutError:
            await self.kill()
            raise _cannot(f"{self.words} did not serve within {START_S:g} s") from None
        except BaseException:
            await self.kill()
            raise
        self.state = WorkerState.SERVING

    async def _first(self, wanted: asyncio.Future[_T]) -> _T:
        both: set[asyncio.Future[Any]] = {wanted, self.gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise _cannot(f"{self.words} ended before it served (exit code {self.gone.result()}); its log says why")
        return wanted.result()

    async def _live(self) -> None:
        """The process and its channel, from exec to reaping."""
        ours, theirs = socket.socketpair()
        code = -1
        try:
            with theirs:
                process = self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "router.workers", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    # Ctrl-C reaches the control process only, which drains its workers.
                    start_new_session=True,
                )
            self.pid = process.pid
            self._executed.set()
            self._channel = await Channel.over(ours, self._take, lambda asked: self._on_question(self, asked))
            talking = asyncio.create_task(self._channel.run())
            code = await process.wait()
            # What it said last is still in the socket's buffer.
            await asyncio.wait({talking}, timeout=LOOK_S)
            self._channel.close()
            (fault,) = await asyncio.gather(talking, return_exceptions=True)
            if isinstance(fault, Exception):  # a mistake here, of which its exit code says nothing
                process_log().error("worker's channel failed", worker=self.place, pid=self.pid, exc_info=fault)
        finally:
            self.gone.set_result(code)
            self._confirmed.set()
            self._executed.set()

    def _take(self, message: object) -> None:
        match message:
            case Hello():
                _settle(self._hello, message)
            case Serving():
                _settle(self._serving, None)
            case CannotServe(words):
                if not self._serving.done():
                    self._serving.set_exception(_cannot(f"{self.words}: {words}"))
            case Leaving():
                self.state = WorkerState.DRAINING
            case Applied(number):
                self.applied = max(self.applied, number)
                self._confirmed.set()
            case Look():
                self.look = message
            case _:
                self._on_message(self, message)

    async def drain(self, grace_s: float, slack_s: float) -> int:
        """Let it finish for the grace and end; its exit code. One that takes slack_s longer is killed."""
        self.state = WorkerState.DRAINING
        self.tell(Drain(grace_s))
        await asyncio.wait({self.gone}, timeout=grace_s + slack_s)
        return await self.kill()

    async def kill(self) -> int:
        """End it at once, unless it has ended, and wait until it was reaped; its exit code."""
        await self._executed.wait()
        self._kill()
        return int(await asyncio.shield(self.gone))

    def _kill(self) -> None:
        # The process object knows whether it was reaped; the number may be another process's by then.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    # --- talking -----------------------------------------------------------------------------------------------

    def tell(self, *messages: object) -> None:
        """Send, without waiting. One that does not read any more is killed: it would go by stale states for ever."""
        if self._channel is None:
            return
        self._channel.tell(*messages)
        if self._channel.stuck:
            self._kill()

    async def confirm(self, number: int) -> None:
        """Wait until it has taken everything before the mark, or has ended."""
        while self.applied < number and not self.gone.done():
            self._confirmed.clear()
            await self._confirmed.wait()

    async def ask(self, question: object, timeout_s: float = LOOK_S) -> object:
        """Its answer. ChannelClosed or TimeoutError when there is none."""
        if self._channel is None:
            raise ChannelClosed("it has not started")
        return await self._channel.ask(question, timeout_s)

    async def refresh(self, *, samples: bool) -> None:
        """Take a look; one that does not come in time leaves the last one, and the state says so."""
        try:
            answer = await self.ask(LookAsked(samples))
        except (ChannelClosed, TimeoutError):
            if self.state is WorkerState.SERVING and not self.gone.done():
                self.state = WorkerState.SILENT
            return
        if isinstance(answer, Look):
            self.look = answer if samples else Look(answer.load, answer.running, self.look.samples)
            if self.state is WorkerState.SILENT:
                self.state = WorkerState.SERVING


def _settle(future: asyncio.Future[_T], value: _T) -> None:
    if not future.done():
        future.set_result(value)


def _cannot(words: str) -> RouterError:
    return RouterError(Code.UNAVAILABLE, RefuseReason.INTERNAL, words)
