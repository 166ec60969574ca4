"""The thread in which all synchronous clients of a process have their event loop, and the way into it and back."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

from pointsman.calls import Call
from pointsman.errors import Error
from pointsman.forking import forks, made_before_fork
from pointsman.multiplex import Multiplexer
from pointsman.replies import Reply

T = TypeVar("T")

Bound: TypeAlias = Callable[[], Multiplexer]
"""The multiplexer of a client, asked for on the loop."""

STOP_S = 2.0
"""How long the end of the process waits for the thread."""


class Waiting:
    """A thread that waits for one result; the loop's thread gives it. In place of an asyncio.Future in a Call."""

    __slots__ = ("_done", "_error", "_given", "_result")

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._given.acquire()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """True when there is nothing to wait for any more."""
        return self._done

    def cancel(self) -> bool:
        """The thread has gone away."""
        was, self._done = self._done, True
        return not was

    def set_result(self, result: Any) -> None:
        """Lets the thread go on."""
        self._result, self._done = result, True
        self._given.release()

    def set_exception(self, exception: BaseException) -> None:
        """Lets the thread go on with an error."""
        self._error, self._done = exception, True
        self._given.release()

    def result(self) -> Any:
        """Waits."""
        self._given.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # the error's traceback would refer to itself
        return self._result


class LoopThread:
    """One event loop in a daemon thread, shared by all synchronous clients of a process."""

    def __init__(self) -> None:
        self.fork = forks()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_on_loop_exception)
        self._posted: deque[Callable[[], object]] = deque()
        self._called = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="pointsman", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it; an interrupt of the waiting thread cancels it."""
        waiting, task = Waiting(), _Task(work)
        try:
            self._check_fork()
            self._post(partial(task.start, self._loop, waiting))
        except BaseException:
            work.close()
            raise
        try:
            return cast("T", waiting.result())
        except BaseException:
            if not waiting.done():
                self._post(task.cancel)
            raise

    def roundtrip(self, bound: Bound, call: Call) -> Reply:
        """Sends a call and waits for its reply: no coroutine, no task, and one wake-up for calls of many threads."""
        self._check_fork()
        call.waiter = waiting = Waiting()
        self._post(partial(_submit, bound, call))
        try:
            return cast("Reply", waiting.result())
        except BaseException:
            if not waiting.done():
                self._post(partial(_abandon, bound, call))
            raise

    def _post(self, work: Callable[[], object]) -> None:
        """Runs something there soon, with all else that is posted until the loop comes to it."""
        self._posted.append(work)
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._do_posted)

    def _do_posted(self) -> None:
        # In this order: what is posted from here on asks for a call of its own.
        self._called = False
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def _check_fork(self) -> None:
        if self.fork != forks():
            raise made_before_fork()

    def stop(self) -> None:
        """Ends loop and thread, and what unclosed clients left running there."""
        if self.fork == forks() and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._wind_down(), self._loop)
            self._thread.join(STOP_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _wind_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)


class _Task:
    """A coroutine on its way to the loop."""

    __slots__ = ("_task", "_work")

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None

    def start(self, loop: asyncio.AbstractEventLoop, waiting: Waiting) -> None:
        self._task = loop.create_task(self._work)
        self._task.add_done_callback(partial(_hand_over, waiting))

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _hand_over(waiting: Waiting, task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        waiting.set_exception(CancelledError())
    elif (error := task.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(task.result())


def _submit(bound: Bound, call: Call) -> None:
    try:
        bound().submit(call)
    except Exception as error:  # too large, closed
        call.waiter.set_exception(error)


def _abandon(bound: Bound, call: Call) -> None:
    with contextlib.suppress(Error):  # the client was closed meanwhile
        bound().abandon(call)


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Older grpcio shares one completion queue among all loops of a process and stumbles, without harm, when
    # another loop was quicker to read it.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


_shared: list[LoopThread] = []
_making = threading.Lock()


def loop_thread() -> LoopThread:
    """The thread of this process, started at its first use."""
    with _making:
        if not _shared or _shared[0].fork != forks():
            _shared[:] = [LoopThread()]
            atexit.register(_shared[0].stop)
        return _shared[0]
