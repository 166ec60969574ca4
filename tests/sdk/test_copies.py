"""copy_out, copy_in, copy_rows: data from and to anywhere, progress, and what is rolled back."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.copy_data import MAX_PIECE_BYTES, PIECE_BYTES, pieces, row_line
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.copy_router import CopyRouter
from tests.sdk.fake_router import silent, status, until

LOST = status(grpc.StatusCode.UNAVAILABLE, "gone", reason="BACKEND_LOST", executed="rolled_back")
DRAINING = status(grpc.StatusCode.UNAVAILABLE, "draining", reason="DRAINING", executed="no")
BAD = status(grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="BAD_DATA", executed="rolled_back", sqlstate="22P02")
WHOLE = b"1\tone\n2\ttwo\n"


@pytest.fixture
async def router() -> AsyncIterator[CopyRouter]:
    fake = CopyRouter()
    await fake.start()
    yield fake
    await fake.stop()


# --- out -------------------------------------------------------------------------------------------------------------


async def test_out_as_pieces(router: CopyRouter, db: pointsman.Client) -> None:
    told: list[tuple[int, int | None]] = []
    stream = db.copy_out(
        "s.t", columns=["a"], format="csv", header=True, read="any", progress=lambda *so: told.append(so)
    )
    assert [piece async for piece in stream] == router.pieces
    assert told == [(6, None), (12, None), (12, 2)]
    assert stream.result is not None
    assert (stream.result.rows, stream.result.bytes, stream.result.receipt.endpoint) == (2, 12, "one")
    (asked,) = router.out_requests
    assert asked.table == pb.CopyTable(schema="s", name="t", columns=["a"])
    assert (asked.encoding.format, asked.encoding.header) == (pb.COPY_FORMAT_CSV, True)
    assert asked.options.read == 3
    assert db.token != "", "the next read sees no less"
    again = await db.copy_out(query="select 1", null="", delimiter=";", quote="'", read="replica")
    assert b"".join([piece async for piece in again]) == WHOLE
    asked = router.out_requests[1]
    assert (asked.query, asked.encoding.delimiter, asked.encoding.quote) == ("select 1", ";", "'")
    assert asked.encoding.HasField("null_text")
    assert asked.options.after_token == b"t1"


@pytest.mark.parametrize(
    ("then", "first", "again"),
    [("wait", TimeoutError, pointsman.Cancelled), (LOST, pointsman.Unavailable, pointsman.Unavailable)],
    ids=["cancelled", "failed"],
)
async def test_a_part_is_never_taken_for_the_whole(
    router: CopyRouter, db: pointsman.Client, then: Any, first: type[Exception], again: type[Exception]
) -> None:
    router.then = asyncio.Event() if then == "wait" else then
    stream = db.copy_out("t")
    assert [await anext(stream) for _ in range(2)] == router.pieces
    with pytest.raises(first):
        await asyncio.wait_for(anext(stream), 0.1)
    for _ in range(2):
        with pytest.raises(again):
            await anext(stream)
    await stream.aclose()
    assert [data async for data in stream] == []


async def test_out_to_a_path_or_a_file(router: CopyRouter, db: pointsman.Client, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    result = await db.copy_out("t", to=path)
    assert (result.rows, path.read_bytes()) == (2, WHOLE)
    file = io.BytesIO()
    await db.copy_out("t", to=file)
    assert (file.getvalue(), file.closed) == (WHOLE, False)

    class Slow:
        written = b""

        async def write(self, data: bytes) -> None:
            await asyncio.sleep(0)
            self.written += data

    slow = Slow()
    await db.copy_out("t", to=slow)
    assert slow.written == WHOLE


async def test_out_that_fails_leaves_the_file_as_it_was(
    router: CopyRouter, db: pointsman.Client, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("before")
    router.pieces = [b"x" * 100_000] * 30
    router.then = LOST
    with pytest.raises(pointsman.Unavailable) as failed:
        await db.copy_out("t", to=path)
    assert failed.value.executed is pointsman.Executed.ROLLED_BACK
    assert (path.read_text(), [one.name for one in os.scandir(tmp_path)]) == ("before", ["t.csv"])
    with pytest.raises(FileNotFoundError):
        await db.copy_out("t", to=tmp_path / "nowhere" / "t.csv")


async def test_out_left_early_ends_on_the_server(router: CopyRouter, db: pointsman.Client) -> None:
    router.then = asyncio.Event()
    async with db.copy_out("t") as stream:
        async for _ in stream:
            break
    await until(lambda: router.ends == ["left"])
    async for _ in db.copy_out("t"):
        break
    await until(lambda: router.ends == ["left", "left"])


async def test_out_goes_to_the_next_router_when_one_drains(router: CopyRouter, db: pointsman.Client) -> None:
    router.refusals = [DRAINING]
    file = io.BytesIO()
    await db.copy_out("t", to=file)
    assert (file.getvalue(), len(router.out_requests)) == (WHOLE, 2)


async def test_out_within_its_time_also_where_the_target_takes_nothing(
    router: CopyRouter, db: pointsman.Client
) -> None:
    class Full:
        async def write(self, data: bytes) -> None:
            await asyncio.Event().wait()

    with pytest.raises(pointsman.DeadlineExceeded, match=r"within 0\.2 s"):
        await asyncio.wait_for(db.copy_out("s.t", to=Full(), timeout=0.2), 5)


async def test_out_tells_a_target_that_timed_out_by_itself(router: CopyRouter, db: pointsman.Client) -> None:
    class Away:
        async def write(self, data: bytes) -> None:
            raise TimeoutError("the disk is away")

    with pytest.raises(TimeoutError, match="the disk is away"):
        await db.copy_out("s.t", to=Away(), timeout=5)


async def test_out_within_its_time(router: CopyRouter, db: pointsman.Client) -> None:
    router.then = asyncio.Event()
    with pytest.raises(pointsman.DeadlineExceeded):
        await db.copy_out("t", to=io.BytesIO(), timeout=0.2)
    assert router.out_requests[0].options.timeout_ms == 200


# --- in --------------------------------------------------------------------------------------------------------------


async def from_async() -> AsyncIterator[bytes]:
    for piece in (b"1\tone\n", b"2\ttwo\n"):
        await asyncio.sleep(0)
        yield piece


SOURCES: dict[str, Any] = {
    "bytes": lambda path: WHOLE,
    "path": lambda path: path,
    "path as str": str,
    "file": lambda path: io.BytesIO(WHOLE),
    "text file": lambda path: io.StringIO(WHOLE.decode()),
    "iterable": lambda path: [b"1\tone\n", "2\ttwo\n"],
    "generator": lambda path: (bytes([one]) for one in WHOLE),
    "async": lambda path: from_async(),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_in_from(router: CopyRouter, db: pointsman.Client, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(WHOLE)
    told: list[tuple[int, int | None]] = []
    result = await db.copy_in(
        ("s", "a.b"), SOURCES[kind](path), columns=["x"], format="csv", progress=lambda *so: told.append(so)
    )
    assert (result.rows, result.bytes, result.receipt.role) == (2, 12, "primary")
    assert (router.taken, router.ends) == ([WHOLE], ["committed"])
    assert told == [(12, None), (12, 2)]
    assert router.starts[0].table == pb.CopyTable(schema="s", name="a.b", columns=["x"])
    assert router.starts[0].encoding.format == pb.COPY_FORMAT_CSV


async def test_in_without_any_data(router: CopyRouter, db: pointsman.Client) -> None:
    assert (await db.copy_in("t", b"")).bytes == 0
    assert router.ends == ["committed"]


async def test_pieces_are_neither_small_nor_large() -> None:
    small = [piece async for piece in pieces([b"x" * 1000] * 1000)]
    assert b"".join(small) == b"x" * 1_000_000
    assert all(PIECE_BYTES <= len(piece) <= MAX_PIECE_BYTES for piece in small[:-1])
    large = [len(piece) async for piece in pieces(b"x" * 1_000_000)]
    assert (max(large), sum(large)) == (MAX_PIECE_BYTES, 1_000_000)
    with pytest.raises(TypeError, match="bytes or str, not int"):
        [piece async for piece in pieces([1])]  # type: ignore[list-item]


async def test_in_an_exception_of_the_source_rolls_back(router: CopyRouter, db: pointsman.Client) -> None:
    closed = []

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 200_000
            await until(lambda: router.taken)
            raise ZeroDivisionError
        finally:
            closed.append(True)

    with pytest.raises(ZeroDivisionError):
        await db.copy_in("t", source())
    await until(lambda: router.ends == ["undone"])
    assert closed == [True]
    with pytest.raises(FileNotFoundError):
        await db.copy_in("t", "/nowhere/t.csv")


async def test_in_a_cancel_rolls_back(router: CopyRouter, db: pointsman.Client) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        await asyncio.Event().wait()

    running = asyncio.create_task(db.copy_in("t", source()))
    await until(lambda: router.taken)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: router.ends == ["undone"])


async def test_in_a_refusal_ends_the_wait_for_the_source(router: CopyRouter, db: pointsman.Client) -> None:
    router.refuse_data = BAD

    async def source() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        await asyncio.Event().wait()

    async with asyncio.timeout(3):
        with pytest.raises(pointsman.DataError) as failed:
            await db.copy_in("t", source())
    assert (failed.value.sqlstate, failed.value.executed) == ("22P02", pointsman.Executed.ROLLED_BACK)


async def test_in_asks_its_source_only_once_data_is_wanted(router: CopyRouter, db: pointsman.Client) -> None:
    router.refusals = [DRAINING, BAD]
    asked = []

    async def source() -> AsyncIterator[bytes]:
        asked.append(True)
        yield b"x"

    with pytest.raises(pointsman.DataError):
        await db.copy_in("t", source())
    assert (asked, len(router.starts)) == ([], 2), "a router that drains is left for another"


async def test_in_within_its_time(router: CopyRouter, db: pointsman.Client) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(pointsman.DeadlineExceeded) as failed:
        await db.copy_in("t", source(), timeout=0.2)
    assert failed.value.executed is pointsman.Executed.ROLLED_BACK
    assert router.starts[0].options.timeout_ms == 200


async def test_in_a_router_that_dies_has_kept_nothing(router: CopyRouter, db: pointsman.Client) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        await until(lambda: router.taken)
        await router.stop()
        for _ in range(100):
            await asyncio.sleep(0.01)
            yield b"x" * 200_000

    with pytest.raises(pointsman.Error) as failed:
        await db.copy_in("t", source())
    assert failed.value.safe_to_repeat, "without the end message a router keeps nothing"


async def test_a_router_that_is_not_there(db: pointsman.Client, router: CopyRouter) -> None:
    await router.stop()
    for work in (db.copy_in("t", b"x", timeout=0.3), db.copy_out("t", to=io.BytesIO(), timeout=0.3)):
        with pytest.raises((pointsman.Unavailable, pointsman.DeadlineExceeded)) as failed:
            await work
        assert failed.value.safe_to_repeat


# --- rows, and mistakes ----------------------------------------------------------------------------------------------


async def test_rows(router: CopyRouter, db: pointsman.Client) -> None:
    rows = [(n, f"row {n}", None, True, [1, None], b"\x00") for n in range(30_000)]
    result = await db.copy_rows("t", rows, ["a", "b", "c", "d", "e", "f"])
    assert result.rows == 30_000
    data = b"".join(router.taken)
    assert data.startswith(b"0\trow 0\t\\N\tt\t{1,NULL}\t\\\\x00\n1\trow 1\t")
    assert len(router.taken) < 30
    assert list(router.starts[0].table.columns) == ["a", "b", "c", "d", "e", "f"]

    async def source() -> AsyncIterator[tuple[int]]:
        for n in range(3):
            yield (n,)

    assert (await db.copy_rows("t", source())).rows == 3


async def test_a_row_that_has_no_form_rolls_back_and_is_named(router: CopyRouter, db: pointsman.Client) -> None:
    with pytest.raises(TypeError) as failed:
        await db.copy_rows("t", [(1,), (2,), (object(),)])
    assert failed.value.__notes__ == ["row 3 of the copy"]
    await until(lambda: router.ends == ["undone"])
    with pytest.raises(ValueError, match="NUL"):
        await db.copy_rows("t", [("a\0",)])


def test_text_is_escaped() -> None:
    assert row_line(("a\tb\\c\nd\re", "\\N", "", 1.5, -3)) == b"a\\tb\\\\c\\nd\\re\t\\\\N\t\t1.5\t-3\n"


@pytest.mark.parametrize(
    ("table", "options"),
    [
        ("a.b.c", {}),
        ("", {}),
        (("a", "b", "c"), {}),
        ("t", {"format": "xml"}),
        ("t", {"columns": "a"}),
        ("t", {"nonsense": 1}),
        ("t", {"query": "select 1"}),
        (None, {}),
        (None, {"query": "select 1", "columns": ["a"]}),
        ("t", {"timeout": 0}),
        ("t", {"idempotency_key": "k"}),
    ],
    ids=str,
)
async def test_mistakes_are_told_before_anything_is_sent(
    router: CopyRouter, db: pointsman.Client, table: Any, options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        await db.copy_out(table, **options)
    if "query" not in options and table and "idempotency_key" not in options:
        with pytest.raises((ValueError, TypeError)):
            await db.copy_in(table, b"", **options)
    assert not router.out_requests
    assert not router.starts


# --- without asyncio -------------------------------------------------------------------------------------------------


@pytest.fixture
def sync_pair() -> Iterator[tuple[CopyRouter, pointsman.sync.Client]]:
    from pointsman.sync import loop_thread

    fake = CopyRouter()
    loop_thread().run(fake.start())
    with pointsman.sync.connect(fake.address, tenant="acme", token="secret", timeout=5) as client:
        yield fake, client
    loop_thread().run(fake.stop())


def test_the_twins(sync_pair: tuple[CopyRouter, pointsman.sync.Client], tmp_path: Path) -> None:
    fake, db = sync_pair
    with db.copy_out("t") as stream:
        assert b"".join(stream) == WHOLE
    assert stream.result is not None
    assert db.copy_out("t", to=tmp_path / "t").rows == 2
    assert db.copy_in("t", tmp_path / "t").rows == 2
    threads = set()

    def source() -> Iterator[bytes]:
        threads.add(threading.current_thread().name)
        yield WHOLE

    assert db.copy_in("t", source()).rows == 2
    assert not {name for name in threads if name == "pointsman"}, "it does not stop the other clients' loop"
    assert db.copy_rows("t", [(1, "a")], ["n", "t"]).rows == 1

    def wrong() -> Iterator[bytes]:
        yield WHOLE
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.copy_in("t", wrong())
    assert fake.ends.count("committed") == 3


# --- in, with a key --------------------------------------------------------------------------------------------------

UNKNOWN = status(grpc.StatusCode.UNKNOWN, "lost at COMMIT", reason="OUTCOME_UNKNOWN", executed="maybe")
REUSED = status(grpc.StatusCode.INVALID_ARGUMENT, "another", reason="KEY_REUSED", executed="no")


@pytest.mark.parametrize("kind", ["bytes", "path", "path as str", "iterable"])
async def test_with_a_key_it_is_sent_again_from_its_start(
    router: CopyRouter, db: pointsman.Client, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    path.write_bytes(WHOLE)
    router.end_refusals = [LOST, UNKNOWN]
    told: list[int] = []
    done = await db.copy_in("t", SOURCES[kind](path), idempotent=True, progress=lambda size, _: told.append(size))
    assert (done.bytes, router.taken, router.ends.count("committed")) == (12, [WHOLE] * 3, 1)
    assert told == [12, 12, 12, 12]
    keys = {one.idempotency_key for one in router.starts}
    assert len(router.starts) == 3
    assert len(keys) == 1
    assert keys != {""}


async def test_rows_with_a_key_are_sent_again(router: CopyRouter, db: pointsman.Client) -> None:
    router.end_refusals = [LOST]
    await db.copy_rows("t", [(1, "one"), (2, "two")], idempotency_key="k")
    assert (router.taken, [one.idempotency_key for one in router.starts]) == ([WHOLE] * 2, ["k"] * 2)


async def test_with_a_key_until_the_deadline_and_the_doubt_is_told(router: CopyRouter, db: pointsman.Client) -> None:
    router.end_refusals = [UNKNOWN, *[LOST] * 99]
    with pytest.raises(pointsman.Unavailable) as failed:
        await db.copy_in("t", WHOLE, idempotent=True, timeout=0.4)
    assert failed.value.executed is pointsman.Executed.MAYBE
    assert len(router.starts) > 2
    router.end_refusals = [UNKNOWN, REUSED]
    with pytest.raises(pointsman.InvalidRequest) as refused:
        await db.copy_in("t", WHOLE, idempotency_key="k")
    assert (refused.value.reason, refused.value.executed) == ("KEY_REUSED", pointsman.Executed.NO)


async def test_data_that_can_be_read_once_is_sent_once(
    router: CopyRouter, db: pointsman.Client, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for source in (from_async(), iter([WHOLE]), io.BytesIO(WHOLE), pipe):
        with pytest.raises(ValueError, match="read only once"):
            await db.copy_in("t", source, idempotent=True)
    with pytest.raises(ValueError, match="read only once"):
        await db.copy_rows("t", iter([(1, "one")]), idempotent=True)
    assert router.starts == []
    router.end_refusals = [LOST]
    with pytest.raises(pointsman.Unavailable) as failed:
        await db.copy_in("t", iter([WHOLE]), idempotency_key="k")
    assert "read only once" in failed.value.__notes__[0]
    assert len(router.starts) == 1
    assert (await db.copy_in("t", iter([WHOLE]), idempotency_key="k")).bytes == 12


def test_the_synchronous_client_sends_again_as_well(sync_pair: tuple[CopyRouter, pointsman.sync.Client]) -> None:
    fake, db = sync_pair
    fake.end_refusals = [LOST, LOST]
    assert db.copy_in("t", [b"1\tone\n", "2\ttwo\n"], idempotent=True).bytes == 12
    fake.end_refusals = [LOST]
    assert db.copy_rows("t", [(1, "one"), (2, "two")], idempotent=True).bytes == 12
    assert fake.taken == [WHOLE] * 5
    with pytest.raises(ValueError, match="read only once"):
        db.copy_in("t", iter([WHOLE]), idempotent=True)


async def test_a_close_while_a_copy_opens_says_so_at_once() -> None:
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        db = pointsman.connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        opening = asyncio.ensure_future(db.copy_in("t", [WHOLE], timeout=60))
        await asyncio.sleep(0.1)
        await db.close()
        with pytest.raises(pointsman.ClientClosed) as met:
            await asyncio.wait_for(opening, 5)
        assert met.value.executed is pointsman.Executed.NO
