"""Programs with synchronous clients: their ends, their interrupts, and their forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sdk.copy_router import CopyRouter


@pytest.fixture
def router(copy_router: CopyRouter) -> CopyRouter:
    return copy_router


def run(router: CopyRouter, program: str, begin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A program with a client `db` that has made a call. It ends within 30 seconds, or this test fails."""
    if begin is None:
        begin = f"""
        import sys
        import pointsman
        db = pointsman.sync.connect({router.address!r}, timeout=5)
        db.query("select 1")
    """
    lines = [line[8:] for line in (begin + program).splitlines()]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_program_that_is_interrupted_at_a_silent_pipe_ends(router: CopyRouter) -> None:
    program = """
        import os, signal
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        reading, writing = os.pipe()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            db.copy_in("t", open(reading, "rb"))
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = run(router, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_a_copy_goes_on_after_the_main_thread(router: CopyRouter) -> None:
    program = """
        import threading
        def rows():
            yield (1,)
            threading.main_thread().join()
            yield from ((number,) for number in range(1000))
        threading.Thread(target=lambda: print(db.copy_rows("t", rows()).rows)).start()
    """
    done = run(router, program)
    assert (done.stdout, done.stderr) == ("1001\n", "")


def test_a_program_ends_by_its_copys_source(router: CopyRouter) -> None:
    program = """
        def rows():
            yield (1,)
            sys.exit(3)
        db.copy_rows("t", rows())
    """
    assert run(router, program).returncode == 3


def test_calls_at_the_end_of_a_program_are_refused_in_words(router: CopyRouter) -> None:
    program = """
        import atexit
        def at_exit():
            for attempt in range(2):
                try:
                    db.query("select 1")
                except pointsman.ClientClosed as error:
                    print(error.executed, error)
            with db:
                pass
        atexit.unregister(db._thread.stop)
        atexit.register(at_exit)
        atexit.register(db._thread.stop)
    """
    done = run(router, program)
    assert done.returncode == 0
    assert done.stdout.count("Executed.NO the thread of the synchronous clients has ended") == 2, done.stdout
    assert done.stderr == ""


def test_a_fork_among_calls_harms_neither_parent_nor_child(router: CopyRouter) -> None:
    program = """
        import os, threading
        over, failed = threading.Event(), []
        def calls():
            while not over.is_set():
                try:
                    db.query("select 1", timeout=2)
                except pointsman.Error as error:
                    failed.append(error)
        callers = [threading.Thread(target=calls) for _ in range(4)]
        for caller in callers:
            caller.start()
        child = os.fork()
        if not child:
            for use in (lambda: db.query("select 1"), lambda: pointsman.sync.connect("localhost:1")):
                try:
                    use()
                except RuntimeError as error:
                    print(error, flush=True)
            with db:
                sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        for caller in callers:
            caller.join()
        print(failed, db.query_value("select 1"))
    """
    told = run(router, program).stdout.splitlines()
    assert len(told) == 4, told
    assert "before a fork" in told[0]
    assert "gRPC was at work" in told[1]
    assert told[2:] == ["7", "[] 1"]


def test_who_forks_before_the_first_call_has_clients_on_both_sides(router: CopyRouter) -> None:
    program = f"""
        import os, sys, pointsman
        before = pointsman.sync.connect({router.address!r})
        child = os.fork()
        db = before if child else pointsman.sync.connect({router.address!r})
        answer = db.query_value("select 1")
        if child:
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(answer, flush=True)
    """
    assert run(router, program, begin="").stdout.splitlines() == ["1", "child 0", "1"]


def test_a_fork_while_another_thread_makes_the_first_client(router: CopyRouter) -> None:
    program = f"""
        import os, threading, pointsman, pointsman.loop_thread
        made, over = threading.Event(), threading.Event()
        def make():
            with pointsman.loop_thread._making:
                made.set()
                over.wait()
        threading.Thread(target=make).start()
        made.wait()
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            over.set()
        else:
            print(pointsman.sync.connect({router.address!r}).query_value("select 1"), flush=True)
    """
    assert run(router, program, begin="").stdout.split() == ["1", "0"]
