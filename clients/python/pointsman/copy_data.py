"""The data of copies on this side: where it comes from, where it goes to, and rows as COPY's text format."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast

from pointsman.parameters import element_text

PIECE_BYTES = 96 << 10
"""Small pieces are put together up to this size."""
MAX_PIECE_BYTES = 128 << 10
READ_BYTES = 1 << 20
"""Of a file at once."""

T = TypeVar("T")


class Readable(Protocol):
    """A file open for reading, of bytes or of text."""

    def read(self, size: int, /) -> Any: ...


class Writable(Protocol):
    """A file open for writing bytes."""

    def write(self, data: bytes, /) -> Any: ...


Source = str | os.PathLike[str] | bytes | Readable | Iterable[bytes | str] | AsyncIterable[bytes | str]
"""A path, the data itself as bytes, an open file, or pieces of any size."""
SyncSource = str | os.PathLike[str] | bytes | Readable | Iterable[bytes | str]
Target = str | os.PathLike[str] | Writable
"""A path or an open file."""
Row = Sequence[Any]


async def pieces(source: Source, *, in_thread: bool = False) -> AsyncGenerator[bytes, None]:
    """The data in pieces of 96 to 128 KiB. in_thread: an iterable is advanced outside the event loop."""
    async with contextlib.aclosing(_raw(source, in_thread)) as raw:
        held: list[bytes] = []
        size = 0
        async for piece in raw:
            data = piece.encode() if isinstance(piece, str) else piece
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"a source of COPY data gives bytes or str, not {type(piece).__name__}")
            held.append(bytes(data))
            size += len(data)
            if size >= PIECE_BYTES:
                for at in _cut(b"".join(held)):
                    yield at
                held.clear()
                size = 0
        for at in _cut(b"".join(held)):
            yield at


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= MAX_PIECE_BYTES:
        if data:
            yield data
        return
    for at in range(0, len(data), MAX_PIECE_BYTES):
        yield data[at : at + MAX_PIECE_BYTES]


async def _raw(source: Source, in_thread: bool) -> AsyncGenerator[Any, None]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield source
    elif isinstance(source, (str, os.PathLike)):
        file = await asyncio.to_thread(open, source, "rb")
        try:
            async for data in _read(file):
                yield data
        except BaseException:
            _close_beside(file)
            raise
        file.close()
    elif hasattr(source, "read"):
        async for data in _read(source):
            yield data
    elif hasattr(source, "__aiter__"):
        async for piece in source:
            yield piece
    else:
        parts = await _in_thread(iter, source) if in_thread else iter(source)
        while found := await _several(parts, in_thread):
            for piece in found:
                yield piece


async def _read(file: Any) -> AsyncGenerator[Any, None]:
    # Of a pipe what is there, not as much as was asked for.
    read = getattr(file, "read1", None) or file.read
    while True:
        data = await _beside(read, READ_BYTES)
        if not data:
            return
        yield data


async def _several(parts: Iterator[T], in_thread: bool) -> list[T]:
    """The next ones of an iterator, about one piece of data at once; none at its end."""

    def take() -> list[T]:
        found: list[T] = []
        size = 0
        for part in parts:
            found.append(part)
            size += len(part) if isinstance(part, (bytes, str)) else 1000
            if size >= PIECE_BYTES:
                break
        return found

    return await _in_thread(take) if in_thread else take()


async def _beside(call: Callable[..., Any], *args: Any) -> Any:
    """Runs what may block in a thread; what an asynchronous file gives is awaited."""
    result = await _in_thread(call, *args)
    return await result if inspect.isawaitable(result) else result


async def _in_thread(call: Callable[..., T], *args: Any) -> T:
    """Runs what may block in a thread. What it raises comes back as a value and is raised here: asyncio would lose a
    StopIteration on the way, and make its own cancel of the CancelledError of concurrent.futures."""

    def carried() -> tuple[T, None] | tuple[None, BaseException]:
        try:
            return call(*args), None
        except BaseException as error:
            return None, error

    result, error = await asyncio.to_thread(carried)
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback would refer to itself
    return cast("T", result)


def _close_beside(file: Any) -> None:
    """Closes a file that a thread may still be reading or writing: of a pipe, the close waits as long as that does."""
    asyncio.get_running_loop().run_in_executor(None, file.close)


class Sink:
    """Writes what comes to a target, a megabyte at a time. A path holds all of it in the end, or what it had."""

    def __init__(self, target: Target) -> None:
        self._path = os.fspath(target) if isinstance(target, (str, os.PathLike)) else None
        self._file: Any = None if self._path is not None else target
        self._unfinished = ""
        self._held: list[bytes] = []
        self._size = 0

    async def __aenter__(self) -> Sink:
        if self._path is not None:
            await asyncio.to_thread(self._open, self._path)
        return self

    def _open(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path).st_mode):
                self._file = open(path, "wb")  # noqa: SIM115 -- a pipe or a device cannot be renamed
                return
        self._path = path = os.path.realpath(path)
        self._unfinished = f"{path}.part-{os.getpid()}-{id(self):x}"
        self._file = open(self._unfinished, "wb")  # noqa: SIM115

    async def write(self, data: bytes) -> None:
        """Takes a piece."""
        self._held.append(data)
        self._size += len(data)
        if self._size >= READ_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._size = 0
            await _beside(self._file.write, data)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._path is None:
            if kind is None:
                await self._flush()
            return
        try:
            if kind is None:
                await self._flush()
                await asyncio.to_thread(self._file.close)
                if self._unfinished:
                    os.replace(self._unfinished, self._path)
                    self._unfinished = ""
        finally:
            if not self._unfinished and not self._file.closed:
                _close_beside(self._file)
            elif self._unfinished:
                self._file.close()
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._unfinished)


_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def row_line(row: Row) -> bytes:
    """One row in COPY's text format. TypeError for a value that has no PostgreSQL form."""
    fields = []
    for value in row:
        if value is None:
            fields.append("\\N")
            continue
        text = value if type(value) is str else element_text(value)
        if "\0" in text:
            raise ValueError("text with a NUL character, which PostgreSQL cannot store")
        fields.append(text.translate(_ESCAPES) if type(value) is not int else text)
    return ("\t".join(fields) + "\n").encode()


async def lines(rows: Iterable[Row] | AsyncIterable[Row], *, in_thread: bool = False) -> AsyncIterator[bytes]:
    """Rows as COPY data, many at once."""
    number = 0
    try:
        if isinstance(rows, AsyncIterable):
            async for row in rows:
                number += 1
                yield row_line(row)
            return
        parts = await _in_thread(iter, rows) if in_thread else iter(rows)
        while found := await _several(parts, in_thread):
            held = []
            for row in found:
                number += 1
                held.append(row_line(row))
            yield b"".join(held)
    except (TypeError, ValueError) as error:
        error.add_note(f"row {number} of the copy")
        raise
