"""The synchronous client: same machinery, plain calls, many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pointsman
import pytest
from pointsman.loop_thread import LoopThread, loop_thread
from pointsman.streams import RowStream
from pointsman.sync import SyncRowStream

from tests.sdk.fake_router import FakeRouter, never, until
from tests.sdk.test_streams import FOUR, Source, forever, refuse
from tests.sdk.test_transactions import Server, told


@pytest.fixture
def thread() -> LoopThread:
    return loop_thread()


@pytest.fixture
def sync_router(thread: LoopThread) -> Iterator[FakeRouter]:
    # On the client's own loop, so that the test has one event loop like a program without asyncio.
    fake = FakeRouter()
    thread.run(fake.start())
    yield fake
    thread.run(fake.stop())


@pytest.fixture
def db(sync_router: FakeRouter) -> Iterator[pointsman.sync.Client]:
    with pointsman.sync.connect(sync_router.address, tenant="acme", token="secret", timeout=5) as client:
        yield client


def test_all_calls_have_their_twin(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    rows = db.query("select $1", 1, read="any")
    assert rows == [(1,)]
    assert rows[0].n == 1
    assert rows.receipt.endpoint == "one"
    assert db.query_one("select") == (1,)
    assert db.query_value("select") == 1
    assert db.execute("insert").rowcount == 1
    assert [result.rowcount for result in db.batch(["a", "b"])] == [1, 1]
    assert db.cancel("a-known-request-id") is True
    db.token = "dDE="
    assert db.token == "dDE="
    asynchronous = {name for name in dir(pointsman.Client) if not name.startswith("_")}
    assert asynchronous == {name for name in dir(pointsman.sync.Client) if not name.startswith("_")}


def test_threads_share_one_stream(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: db.query("select $1", number)[0].n, range(100)))
    assert results == [1] * 100
    assert len(sync_router.streams) == 1


def test_a_stream_comes_in_chunks_and_column_by_column(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    sync_router.on_rows = Source(*FOUR)
    assert list(db.stream("select").chunks()) == [[(1,), (2,)], [(3,), (4,)]]
    sync_router.on_rows = Source(*FOUR)
    stream = db.stream("select")
    assert next(stream).n == 1
    assert [batch["n"] for batch in stream.batches()] == [[2], [3, 4]]


@pytest.mark.parametrize("each", [iter, SyncRowStream.chunks, SyncRowStream.batches], ids=["rows", "chunks", "batches"])
def test_a_part_of_a_stream_is_never_taken_for_the_whole(
    sync_router: FakeRouter, db: pointsman.sync.Client, each: Any
) -> None:
    sync_router.on_rows = Source(FOUR[0], then=refuse)
    pieces = each(db.stream("select"))
    while not isinstance(got := first_of(pieces), pointsman.InternalError):
        assert got is not None
    assert isinstance(first_of(pieces), pointsman.InternalError)


def first_of(pieces: Iterator[Any]) -> Any:
    """The next one, the error, or None at the end."""
    try:
        return next(pieces, None)
    except pointsman.Error as error:
        return error


def test_a_stream_has_all_that_its_twin_has() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    # What it is made of there, and how it ends: close() here, aclose() there.
    assert public(RowStream) - public(SyncRowStream) == {"next_chunk", "next_columns", "aclose"}


def test_a_stream_is_iterated_and_closed(
    sync_router: FakeRouter, db: pointsman.sync.Client, thread: LoopThread
) -> None:
    sync_router.on_rows = Source(*FOUR)
    stream = db.stream("select")
    assert [row.n for row in stream] == [1, 2, 3, 4]
    assert stream.rowcount == 4
    assert stream.receipt is not None
    assert stream.columns[0].name == "n"
    sync_router.on_rows = source = Source(FOUR[0], then=forever)
    with db.stream("select") as stream:
        assert next(stream).n == 1

    async def ended() -> None:
        await source.ended.wait()

    thread.run(ended())


def test_a_transaction_with_savepoints(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    sync_router.on_transact = Server()
    with db.transaction() as tx:
        assert tx.query("a") == [(1,)]
        with pytest.raises(pointsman.SqlSyntaxError), tx.savepoint():
            tx.execute("bad")
        assert tx.query_value("b") == 1
        assert tx.query_one("c") == (1,)
    assert told(sync_router) == [
        "begin + a", "savepoint pointsman_1", "bad", "rollback_to pointsman_1", "b", "c", "commit",
    ]  # fmt: skip
    assert tx.receipt is not None

    def work() -> None:
        with db.transaction() as tx:
            tx.execute("d")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert told(sync_router)[-1] == "rollback"


def test_the_timeout_is_kept(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    sync_router.on_call = never
    with pytest.raises(pointsman.DeadlineExceeded):
        db.query("select 1", timeout=0.1)


def test_an_interrupted_call_is_cancelled(
    sync_router: FakeRouter, db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_router.on_call = never
    arrived = threading.Event()

    def interrupt(self: object, look: object) -> None:
        arrived.wait(5)
        raise KeyboardInterrupt

    async def answer(call: object) -> None:
        arrived.set()

    sync_router.on_call = answer
    monkeypatch.setattr("pointsman.loop_thread.Waiting.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        db.query("select pg_sleep(60)")
    monkeypatch.undo()

    async def cancelled() -> None:
        await until(lambda: len(sync_router.cancelled) == 1)

    thread.run(cancelled())


def test_a_closed_client_says_so(sync_router: FakeRouter) -> None:
    db = pointsman.sync.connect(sync_router.address)
    db.close()
    db.close()
    with pytest.raises(pointsman.ClientClosed):
        db.query("select 1")


def test_a_client_from_before_a_fork_is_refused_in_words(
    db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "fork", -1)
    with pytest.raises(RuntimeError, match="fork"):
        db.query("select 1")
    monkeypatch.undo()


def test_calls_of_many_threads_wake_the_loop_once(
    sync_router: FakeRouter, db: pointsman.sync.Client, thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.query("select 1")
    sync_router.messages.clear()
    busy, released, wakings = threading.Event(), threading.Event(), []
    call_soon = thread._loop.call_soon_threadsafe

    def counted(work: Any, *args: Any) -> Any:
        if work == thread._do_posted:  # the loop is shared: others may wake it for themselves
            wakings.append(work)
        return call_soon(work, *args)

    def wait_for_posted(count: int) -> None:
        deadline = time.monotonic() + 5
        while len(thread._posted) < count and time.monotonic() < deadline:
            time.sleep(0.001)

    def hold_up() -> None:
        busy.set()
        released.wait(5)

    call_soon(hold_up)
    assert busy.wait(5)
    monkeypatch.setattr(thread._loop, "call_soon_threadsafe", counted)
    with ThreadPoolExecutor(8) as pool:
        # Two that come first at the very same time may both wake it, without harm; so one comes first here.
        results = [pool.submit(db.query, "select 1")]
        wait_for_posted(1)
        results += [pool.submit(db.query, "select 1") for _ in range(7)]
        wait_for_posted(8)
        released.set()
        assert [future.result()[0].n for future in results] == [1] * 8
    assert wakings == [thread._do_posted]
    assert [len(message.calls) for message in sync_router.messages] == [8]


def test_what_is_wrong_with_a_call_is_raised_in_its_thread(db: pointsman.sync.Client) -> None:
    with pytest.raises(pointsman.InvalidRequest, match="limit"):
        db.execute("insert", b"x" * (4 * 1024 * 1024))
    with pytest.raises(TypeError, match=r"\$1"):
        db.query("select $1", object())


def test_closing_ends_the_waiting_of_other_threads(sync_router: FakeRouter, db: pointsman.sync.Client) -> None:
    sync_router.on_call = never
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(db.execute, "insert")
        deadline = time.monotonic() + 5
        while not sync_router.calls and time.monotonic() < deadline:
            time.sleep(0.005)
        db.close()
        with pytest.raises(pointsman.ClientClosed) as caught:
            waiting.result(5)
    assert caught.value.executed is pointsman.Executed.MAYBE
