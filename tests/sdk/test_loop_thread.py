"""The thread of the synchronous clients: whatever meets it, nobody waits for it for ever."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pointsman
import pytest
from pointsman.loop_thread import LoopThread

from tests.sdk.bounded import Started, bounded, until
from tests.sdk.copy_router import CopyRouter
from tests.sdk.fake_router import never
from tests.sdk.test_transactions import Server, told


@pytest.fixture
def router(copy_router: CopyRouter) -> CopyRouter:
    return copy_router


@pytest.fixture
def thread(own_thread: LoopThread) -> LoopThread:
    return own_thread


@pytest.fixture
def db(own_db: pointsman.sync.Client) -> pointsman.sync.Client:
    assert bounded(lambda: own_db.query_value("select 1")) == 1
    return own_db


class Wakes:
    """In place of the loop's call_soon_threadsafe: before a call is made, `first` is done, once for each in it."""

    def __init__(self, thread: LoopThread, monkeypatch: pytest.MonkeyPatch, *first: Callable[[], object]) -> None:
        self._first = list(first)
        self._call = thread._loop.call_soon_threadsafe
        monkeypatch.setattr(thread._loop, "call_soon_threadsafe", self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._first:
            self._first.pop(0)()
        return self._call(*args, **options)


def interrupt() -> None:
    raise KeyboardInterrupt


# --- interrupts ----------------------------------------------------------------------------------------------------


def test_an_interrupt_in_waking_the_loop_is_one_calls_alone(
    db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    Wakes(thread, monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bounded(lambda: db.query("select 1"))
    assert bounded(lambda: db.query_value("select 1")) == 1
    Wakes(thread, monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bounded(lambda: db.outcome(request_id="r"))  # by a task
    assert bounded(lambda: db.query_value("select 1")) == 1


def test_who_relied_on_an_interrupted_thread_gets_its_answer(
    db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.loop_thread.LOOK_S", 0.05)
    others = []

    def meanwhile() -> None:
        others.append(Started(lambda: db.query_value("select 1")))
        until(lambda: len(thread._posted) == 2)
        raise KeyboardInterrupt

    Wakes(thread, monkeypatch, meanwhile, interrupt, interrupt, interrupt)  # whatever it tries
    with pytest.raises(KeyboardInterrupt):
        bounded(lambda: db.query("select 1"))
    assert others[0].result() == 1


def test_a_finalizer_or_signal_handler_may_call_while_its_thread_wakes_the_loop(
    db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = []
    Wakes(thread, monkeypatch, lambda: nested.append(db.query_value("select 1")))
    assert bounded(lambda: db.query_value("select 1")) == 1
    assert nested == [1]


# --- what ends a program ---------------------------------------------------------------------------------------------


def rows_that_raise(error: BaseException) -> Iterator[tuple[int]]:
    yield (1,)
    raise error


def progress_that_raises(error: BaseException) -> Callable[[int, int | None], None]:
    def progress(size: int, rows: int | None) -> None:
        raise error

    return progress


ENDS: dict[str, Callable[[pointsman.sync.Client, BaseException], object]] = {
    "source": lambda db, error: db.copy_rows("t", rows_that_raise(error)),
    "progress in": lambda db, error: db.copy_rows("t", [(1,)], progress=progress_that_raises(error)),
    "progress out": lambda db, error: list(db.copy_out("t", progress=progress_that_raises(error))),
}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("where", ENDS)
def test_what_ends_a_program_is_raised_in_the_callers_thread(
    router: CopyRouter, db: pointsman.sync.Client, where: str, error: BaseException
) -> None:
    router.on_call = never
    waiting = Started(lambda: db.query("select 1", timeout=0.3))
    with pytest.raises(type(error)):
        bounded(lambda: ENDS[where](db, error))
    with pytest.raises(pointsman.DeadlineExceeded):
        waiting.result()
    router.on_call = CopyRouter().on_call
    assert bounded(lambda: db.query_value("select 1")) == 1
    until(lambda: router.ends in (["undone"], ["left"], ["committed"]))


def test_a_thread_that_a_fault_ends_is_missed_by_who_waits(
    router: CopyRouter, db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.loop_thread.LOOK_S", 0.05)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def fail(timeout: float | None) -> None:
        raise OSError("somebody has closed all files")

    router.on_call = never
    waiting = Started(lambda: db.query("select 1"))
    until(lambda: len(router.calls) == 2)
    assert not thread.lost
    thread._loop._selector.select = fail  # type: ignore[attr-defined]
    thread._loop.call_soon_threadsafe(lambda: None)
    with pytest.raises(pointsman.ClientClosed):
        waiting.result()
    with pytest.raises(pointsman.ClientClosed):
        bounded(lambda: db.query("select 1"))
    assert thread.lost


# --- the thread itself -----------------------------------------------------------------------------------------------


def test_a_client_used_in_its_own_thread_says_so(router: CopyRouter, db: pointsman.sync.Client) -> None:
    uses: list[Callable[[], object]] = [
        lambda: db.query("select 1"),
        lambda: db.outcome(request_id="r"),
        lambda: db.transaction().__enter__(),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="own thread"):
            bounded(lambda use=use: db.copy_rows("t", [(1,)], progress=lambda *_: use()))
    assert bounded(lambda: db.query_value("select 1")) == 1


def test_a_token_function_that_uses_a_client_says_so(
    router: CopyRouter, db: pointsman.sync.Client, thread: LoopThread
) -> None:
    inner = pointsman.connect(router.address, token=lambda: db.query_value("select token"), timeout=2)
    other = pointsman.sync.Client(inner, thread)
    with pytest.raises(pointsman.InternalError, match="own thread"):
        bounded(lambda: other.query("select 1"))
    with pytest.raises(RuntimeError, match="own thread"):
        bounded(lambda: other.copy_rows("t", [(1,)]))
    bounded(other.close)
    assert bounded(lambda: db.query_value("select 1")) == 1


def test_a_close_in_the_thread_itself_is_done_and_not_waited_for(
    router: CopyRouter, db: pointsman.sync.Client, thread: LoopThread
) -> None:
    other = pointsman.sync.Client(pointsman.connect(router.address), thread)
    bounded(lambda: other.query("select 1"))
    bounded(lambda: db.copy_rows("t", [(1,)], progress=lambda *_: other.close()))
    with pytest.raises(pointsman.ClientClosed):
        bounded(lambda: other.query("select 1"))


def in_thread(thread: LoopThread, work: Callable[[], object]) -> None:
    """Does it in the clients' thread."""
    done = threading.Event()
    thread._loop.call_soon_threadsafe(lambda: (work(), done.set()))
    assert done.wait(5), "held up"


class Service:
    """Closes its client when it is collected."""

    def __init__(self, db: pointsman.sync.Client) -> None:
        self.db = db
        self.itself = self

    def __del__(self) -> None:
        self.db.close()


def test_a_finalizer_in_the_thread_itself_closes_its_client(
    router: CopyRouter, db: pointsman.sync.Client, thread: LoopThread
) -> None:
    other = pointsman.sync.Client(pointsman.connect(router.address), thread)
    bounded(lambda: other.query("select 1"))
    Service(other)
    in_thread(thread, gc.collect)
    assert bounded(lambda: db.query_value("select 1")) == 1
    with pytest.raises(pointsman.ClientClosed):
        bounded(lambda: other.query("select 1"))


def test_a_generator_that_is_collected_in_the_thread_itself_rolls_back(
    router: CopyRouter, db: pointsman.sync.Client, thread: LoopThread
) -> None:
    router.on_transact = Server()

    def work() -> Iterator[int]:
        with db.transaction() as tx, tx.savepoint():
            tx.execute("insert")
            yield 1

    generator = work()
    assert bounded(lambda: next(generator)) == 1
    in_thread(thread, generator.close)
    until(lambda: router.transact_ends == 1)
    assert "commit" not in told(router)
    assert bounded(lambda: db.query_value("select 1")) == 1
