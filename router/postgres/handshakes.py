"""Logging in outside the event loop: what libpq computes there takes as long as the server says.

SCRAM's number of iterations comes from the server, which has it from the role's verifier, and a role may write its own.
libpq computes them all within one call of PQconnectPoll, which nothing can interrupt: two milliseconds for PostgreSQL's
4096, many minutes for the most there can be. So each call that may read what a server has sent is made in a thread, in
which psycopg's generator lets go of the interpreter's lock: one call at a time for each login, also after its connect
was given up. Who makes a computation without an end has one of them, and no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.waiting import Ready, Wait

from router.model.identity import TenantName

if TYPE_CHECKING:
    from psycopg.abc import PQGenConn
    from psycopg.pq.abc import PGconn

LONG_S: Final = 0.5
"""A connect that failed meanwhile has failed for it (seconds)."""
_NICER: Final = 10
"""By so much a computation that nobody waits for gives way to other work."""

TOO_LONG: Final = "login {}: its password takes too long to prove (SCRAM iterations of the role's verifier)"

Who = tuple[TenantName, str]
"""A tenant, and the user that it logs in as."""


class NeverProven(psycopg.OperationalError):
    """To prove its password takes too long; the text is for the operator."""


class _Step:
    """One call of PQconnectPoll."""

    def __init__(self, polling: PQGenConn[PGconn], ready: Ready, fileno: int, ended: Callable[[], object]) -> None:
        """ended: called in the event loop."""
        self._polling = polling
        self._ready = ready
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        # Not libpq's own descriptor: it may close that at any time, and somebody else may get its number.
        self._socket = socket.socket(fileno=os.dup(fileno))
        self._thread = 0
        self._began = 0.0
        self.done = self.given_up = False
        self.state: tuple[int, Wait] | None = None
        self.won: PGconn | None = None
        self.error: BaseException | None = None

    @property
    def is_long(self) -> bool:
        """It has been at work for long, and is so still."""
        return not self.done and self._began > 0.0 and time.monotonic() - self._began >= LONG_S

    def run(self) -> None:
        """In a thread."""
        if not self.given_up:
            self._thread, self._began = threading.get_native_id(), time.monotonic()
            try:
                self.state = self._polling.send(self._ready)
            except StopIteration as end:
                self.won = end.value
            except BaseException as error:
                self.error = error
        self.done = True
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if not self.given_up:
            self._ended()

    def end(self) -> None:
        """Its result is taken, or nobody wants it any more."""
        if not self.done:
            self.given_up = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # the server need not wait for it either
            if self._thread and not self.done:
                _give_way(self._thread)
        self._socket.close()


class Handshakes:
    """All logins of this process that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[Who, deque[_Step]] = {}
        """What is to be done for each login, in one thread; the first is at work."""

    def computes(self, who: Who) -> bool:
        """Whether a thread has computed for this login for long."""
        with self._lock:
            line = self._lines.get(who)
            return line is not None and line[0].is_long

    def driven(self, who: Who, polling: PQGenConn[PGconn]) -> PQGenConn[PGconn]:
        """A connect of psycopg's, for its own wait functions, with whatever may read done in a thread. NeverProven."""
        fileno, wait = next(polling)
        bell, ring = socket.socketpair()
        with bell, ring:
            bell.setblocking(False)
            reads = False
            while True:
                ready = yield fileno, wait
                if not ready:  # psycopg looks at the clock
                    continue
                reads = reads or bool(ready & Ready.R)
                if not reads:  # the first packet goes out
                    fileno, wait = polling.send(ready)
                    continue
                step = _Step(polling, Ready(ready), fileno, lambda: ring.send(b"\0"))
                try:
                    self._begin(who, step)
                    while not step.done:
                        yield bell.fileno(), Wait.R
                        with contextlib.suppress(BlockingIOError):
                            bell.recv(1)
                finally:
                    step.end()
                if step.error is not None:
                    raise step.error
                if step.state is None:
                    assert step.won is not None
                    return step.won
                fileno, wait = step.state

    def _begin(self, who: Who, step: _Step) -> None:
        with self._lock:
            line = self._lines.setdefault(who, deque())
            if line and line[0].given_up and line[0].is_long:
                raise NeverProven(TOO_LONG.format(who[1]))
            line.append(step)
            if len(line) > 1:
                return
            try:
                start_new_thread(self._work, (who, line))  # unlike threading's it is not waited for, nor at the exit
            except RuntimeError as error:
                del self._lines[who]
                raise psycopg.OperationalError(f"no thread to log in with: {error}") from None

    def _work(self, who: Who, line: deque[_Step]) -> None:
        """In a thread: one step after the other."""
        while True:
            step = line[0]
            step.run()
            with self._lock:
                line.popleft()
                if not line:
                    del self._lines[who]
                    return
            if step.given_up:  # this thread gives way to others
                with contextlib.suppress(RuntimeError):
                    start_new_thread(self._work, (who, line))
                    return


def _give_way(thread: int) -> None:
    """Linux has a priority for each thread; elsewhere there is nothing to be done."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICER))
