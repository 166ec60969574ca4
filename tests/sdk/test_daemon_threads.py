"""The threads that block in place of the synchronous clients' event loop."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait

import pytest
from pointsman.daemon_threads import DaemonThreads


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "pointsman-copy"}


def test_however_many_block_the_next_one_has_a_thread() -> None:
    threads, released = DaemonThreads(), threading.Event()
    blocked = [threads.submit(released.wait, 5) for _ in range(50)]
    assert threads.submit(lambda: "done").result(5) == "done"
    assert not wait(blocked, timeout=0).done
    released.set()
    assert all(future.result(5) for future in blocked)


def test_one_thread_does_what_comes_one_after_the_other() -> None:
    threads, before = DaemonThreads(), own_threads()
    assert len({threads.submit(threading.get_ident).result(5) for _ in range(100)}) == 1
    assert len(own_threads() - before) == 1


def test_what_is_raised_comes_back_and_the_thread_goes_on() -> None:
    threads = DaemonThreads()
    for error in (ZeroDivisionError(), SystemExit(3)):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            threads.submit(fail).result(5)
    assert threads.submit(lambda: 1).result(5) == 1


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.daemon_threads.IDLE_S", 0.02)
    threads, before = DaemonThreads(), own_threads()
    assert threads.submit(lambda: 1).result(5) == 1
    deadline = time.monotonic() + 5
    while own_threads() - before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert threads.submit(lambda: 2).result(5) == 2
