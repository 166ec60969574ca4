"""The thread in which all synchronous clients of a process have their event loop, and the way into it and back."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from functools import partial
from threading import Lock, get_ident
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from pointsman.calls import Call
from pointsman.daemon_threads import DaemonThreads
from pointsman.errors import ClientClosed, Error, Executed
from pointsman.forking import forks, made_before_fork
from pointsman.multiplex import Multiplexer
from pointsman.replies import Reply

T = TypeVar("T")

Bound: TypeAlias = Callable[[], Multiplexer]
"""The multiplexer of a client, asked for on the loop."""

STOP_S = 2.0
"""How long the end of the process waits for the thread."""

LOOK_S = 5.0
"""How often who waits looks whether the thread is there."""


class Waiting:
    """A thread that waits for one result; the loop's thread gives it. In place of an asyncio.Future in a Call."""

    __slots__ = ("_done", "_error", "_given", "_result")

    def __init__(self) -> None:
        self._given = Lock()
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

    def result(self, look: Callable[[], None]) -> Any:
        """Waits. Every now and then it calls `look`, which raises when nothing will come any more."""
        while not self._given.acquire(True, LOOK_S):
            look()
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # the error's traceback would refer to itself
        return self._result


class LoopThread:
    """One event loop in a daemon thread, shared by all synchronous clients of a process.

    Whoever may not wait for it is told in words: RuntimeError in the child of a fork and in the thread itself,
    ClientClosed once it has ended.
    """

    def __init__(self) -> None:
        self.fork = forks()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_on_loop_exception)
        self._loop.set_default_executor(DaemonThreads())
        self._posted: deque[Callable[[], object]] = deque()
        self._waker = 0
        """The thread that has called for _do_posted, which has not begun yet; 0 for none."""
        self._unwatched: set[asyncio.Task[None]] = set()
        """Ends that nobody waits for."""
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._keep_running, name="pointsman", daemon=True)
        self._thread.start()
        self._ident = self._thread.ident

    def _keep_running(self) -> None:
        try:
            while True:
                # asyncio gives these two to who waits for the task, and then raises them out of the loop as well: here
                # that would be the end of all clients.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self._loop.run_forever()
                    return
        finally:
            self._ended = True

    @property
    def lost(self) -> bool:
        """Another one is to be made: in the child of a fork, or where a fault has ended the thread."""
        return self.fork != forks() or (self._ended and not self._stopping)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there and waits for it; an interrupt of the waiting thread cancels it."""
        waiting, task = Waiting(), _Task(work)
        if self.fork != forks() or self._ended or get_ident() == self._ident:
            work.close()
            raise self._refusal()
        try:
            self._post(partial(task.start, self._loop, waiting))
            return cast("T", waiting.result(self._look))
        except BaseException:
            if not waiting.done():
                self._take_back(task.cancel)
            raise

    def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what ends something. In the thread itself, where finalizers may run, it is not waited for; and where
        nothing is left to end, in the child of a fork or after the thread's end, nothing is done."""
        if self.fork != forks() or self._ended:
            work.close()
        elif get_ident() == self._ident:
            self._post(partial(self._start_unwatched, work))
        else:
            self.run(work)

    def leave(self, work: Coroutine[Any, Any, None], error: BaseException | None) -> None:
        """Leaves a block of a transaction. One that raised is only undone, perhaps by a generator that is collected; a
        commit is always waited for."""
        if error is None:
            self.run(work)
        else:
            self.end(work)

    def _start_unwatched(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._unwatched.add(task)
        task.add_done_callback(self._unwatched.discard)

    def roundtrip(self, bound: Bound, call: Call) -> Reply:
        """Sends a call and waits for its reply: no coroutine, no task, and one wake-up for calls of many threads."""
        if self.fork != forks() or self._ended or get_ident() == self._ident:
            raise self._refusal()
        call.waiter = waiting = Waiting()
        try:
            self._post(partial(_submit, bound, call))
            reply: Reply = waiting.result(self._look)
            return reply
        except BaseException:
            if not waiting.done():
                self._take_back(partial(_abandon, bound, call))
            raise

    def _post(self, work: Callable[[], object]) -> None:
        """Runs something there soon, with all else that is posted until the loop comes to it."""
        self._posted.append(work)
        # A thread that has called for it and is here again was interrupted in that: by an exception, or by a signal
        # handler or a finalizer that uses a client, and its own call may come only when those have their answer.
        if self._waker and self._waker != get_ident():
            return
        self._waker = get_ident()
        try:
            self._loop.call_soon_threadsafe(self._do_posted)
        except BaseException:
            self._wake()  # other threads rely on it
            raise

    def _wake(self) -> None:
        """Lets what is posted be done, and those wake the loop that come next. ClientClosed when it has ended."""
        self._waker = 0
        if self._loop.is_closed():
            raise _thread_ended(Executed.NO) from None
        self._loop.call_soon_threadsafe(self._do_posted)

    def _take_back(self, work: Callable[[], object]) -> None:
        with contextlib.suppress(ClientClosed):
            self._post(work)

    def _do_posted(self) -> None:
        # In this order: what is posted from here on asks for a call of its own.
        self._waker = 0
        posted = self._posted
        try:
            for _ in range(len(posted)):
                posted.popleft()()
        except BaseException:
            self._loop.call_soon(self._do_posted)
            raise

    def _refusal(self) -> Exception:
        if self.fork != forks():
            return made_before_fork()
        if self._ended:
            return _thread_ended(Executed.NO)
        return RuntimeError(
            "a synchronous client was used in its own thread (by a progress= or token= function, or a finalizer): "
            "it would wait for itself"
        )

    def _look(self) -> None:
        """For who has waited for long."""
        if self.fork != forks():
            raise made_before_fork()
        if not self._thread.is_alive():
            raise _thread_ended(Executed.MAYBE)
        if self._posted:
            self._wake()  # whoever should have done it was interrupted twice

    def stop(self) -> None:
        """Ends loop and thread, and what unclosed clients left running there."""
        if self.fork == forks():
            self._stopping = True
            if not self._ended:
                self._ended = True
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
        if self._task is None:
            self._work.close()
        else:
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
    except BaseException as error:  # too large, closed
        call.waiter.set_exception(error)


def _abandon(bound: Bound, call: Call) -> None:
    with contextlib.suppress(Error):  # the client was closed meanwhile
        bound().abandon(call)


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Older grpcio shares one completion queue among all loops of a process and stumbles, without harm, when
    # another loop was quicker to read it.
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


def _thread_ended(executed: Executed) -> ClientClosed:
    return ClientClosed(
        "the thread of the synchronous clients has ended, as it does at the end of the program",
        code=grpc.StatusCode.CANCELLED,
        reason="CLIENT_CLOSED",
        executed=executed,
    )


_shared: list[LoopThread] = []
_making = threading.RLock()
"""A signal handler may come here while its thread is here."""


def loop_thread() -> LoopThread:
    """The thread of this process, started at its first use."""
    with _making:
        if not _shared or _shared[0].lost:
            _shared[:] = [LoopThread()]
            atexit.register(_shared[0].stop)
        return _shared[0]


def _let_child_make() -> None:
    """Another thread of the parent may have been making one."""
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_child_make)
