"""Files that anybody may have put there, read whole and never waited for: who reads a FIFO, a socket or a terminal in
the place of a file may wait for ever, and everybody who waits for the reader with it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def read_regular(path: Path, most: int) -> bytes:
    """A file's content, through links. OSError when there is none, when it is no file, or larger than most (bytes)."""
    _check(path, os.stat(path), most)  # first: to open a device may do something
    with open(os.open(path, _FLAGS), "rb") as source:
        _check(path, os.fstat(source.fileno()), most)
        text = source.read(most + 1)
    if len(text) > most:
        raise _too_large(path, most)
    return text


def why(error: OSError) -> str:
    """In words that end a sentence."""
    return (error.strerror or "unknown error").lower()


def _check(path: Path, found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for test, words in _KINDS if test(found.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    if found.st_size > most:
        raise _too_large(path, most)


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
