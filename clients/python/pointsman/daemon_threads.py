"""Threads for what may block for ever, such as the read of a pipe that a copy takes its data from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

IDLE_S = 10.0
"""A thread without work ends after this."""

Work: TypeAlias = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads(ThreadPoolExecutor):
    """The executor of the synchronous clients' event loop, which takes nothing but a ThreadPoolExecutor.

    Python's own has a bounded number of threads, so that copies which feed one another through pipes may have none
    left; the end of the program waits for all of them, however long they block; and it takes no more work once the
    main thread has ended, while others go on copying. Here each call finds a thread at once, and none keeps a program
    from ending.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # which is never started
        self._free: list[SimpleQueue[Work]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs it in a thread that has nothing to do, or in a new one."""
        future: Future[Any] = Future()
        try:
            inbox = self._free.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="pointsman-copy", daemon=True).start()
        inbox.put((future, partial(fn, *args, **kwargs)))
        return future

    def _serve(self, inbox: SimpleQueue[Work]) -> None:
        while True:
            try:
                work = inbox.get(timeout=IDLE_S)
            except Empty:
                try:
                    self._free.remove(inbox)
                except ValueError:
                    continue  # somebody has taken it out a moment ago
                return
            self._do(work, inbox)
            del work

    def _do(self, work: Work, inbox: SimpleQueue[Work]) -> None:
        future, call = work
        result: Any = None
        error: BaseException | None = None
        wanted = future.set_running_or_notify_cancel()
        if wanted:
            try:
                result = call()
            except BaseException as raised:
                error = raised
        self._free.append(inbox)  # before whoever hears of this asks for the next
        if error is not None:
            future.set_exception(error)
            error = None  # its traceback refers to this frame
        elif wanted:
            future.set_result(result)
