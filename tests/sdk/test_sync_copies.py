"""Copies of the synchronous client: what their sources and targets may do, and the other clients of the process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pointsman
import pytest

from tests.sdk.bounded import bounded, until
from tests.sdk.copy_router import CopyRouter


@pytest.fixture
def router(copy_router: CopyRouter) -> CopyRouter:
    return copy_router


@pytest.fixture
def db(own_db: pointsman.sync.Client) -> pointsman.sync.Client:
    return own_db


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that somebody holds open and nobody uses."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)
    yield path
    os.close(held)


def ended(router: CopyRouter) -> list[str]:
    """How the copies ended, once one has."""
    until(lambda: router.ends)
    return router.ends


class Readable:
    """A file whose reading is somebody else's function."""

    def __init__(self, read: Any) -> None:
        self._read = read

    def read(self, size: int) -> Any:
        return self._read()


def test_a_source_that_raises_stop_iteration_ends_the_copy(router: CopyRouter, db: pointsman.sync.Client) -> None:
    parts = iter([b"1\tone\n"])
    with pytest.raises(RuntimeError, match="StopIteration"):
        bounded(lambda: db.copy_in("t", Readable(lambda: next(parts))))
    assert ended(router) == ["undone"]


def test_a_source_that_meets_a_cancelled_future_ends_the_copy(router: CopyRouter, db: pointsman.sync.Client) -> None:
    future: Future[bytes] = Future()
    future.cancel()
    with pytest.raises(CancelledError):
        bounded(lambda: db.copy_in("t", Readable(future.result)))
    assert ended(router) == ["undone"]


def cancelled(*_: object) -> Any:
    raise asyncio.CancelledError


def test_a_source_or_progress_that_is_cancelled_itself_ends_the_copy(
    router: CopyRouter, db: pointsman.sync.Client
) -> None:
    with pytest.raises(CancelledError):
        bounded(lambda: db.copy_in("t", Readable(cancelled)))
    assert ended(router) == ["undone"]
    with pytest.raises(CancelledError):
        bounded(lambda: db.copy_in("t", [b"1\n"], progress=cancelled))


class Table:
    """Rows that are asked for once they are wanted."""

    def __init__(self, db: pointsman.sync.Client) -> None:
        self._db = db

    def __iter__(self) -> Iterator[Any]:
        return iter(self._db.query("select n from t"))


def test_an_iterable_may_ask_its_own_client(router: CopyRouter, db: pointsman.sync.Client) -> None:
    assert bounded(lambda: db.copy_rows("t", Table(db))).rows == 1
    assert router.taken == [b"1\n"]
    assert bounded(lambda: db.copy_in("t", (b"%d\n" % row.n for row in Table(db)))).rows == 1


def test_a_silent_pipe_holds_up_its_own_copy_only(db: pointsman.sync.Client, pipe: Path) -> None:
    with pytest.raises(pointsman.DeadlineExceeded):
        bounded(lambda: db.copy_in("t", pipe, timeout=0.2))
    assert bounded(lambda: db.query_value("select 1")) == 1


def test_a_full_pipe_holds_up_its_own_copy_only(
    router: CopyRouter, db: pointsman.sync.Client, pipe: Path
) -> None:
    router.pieces = [b"x" * 100_000 + b"\n"] * 20

    async def copy() -> None:
        async with asyncio.timeout(0.2):
            await db._inner.copy_out("t", to=pipe)

    with pytest.raises(TimeoutError):
        bounded(lambda: db._thread.run(copy()))
    assert bounded(lambda: db.query_value("select 1")) == 1
