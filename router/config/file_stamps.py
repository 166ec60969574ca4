"""Whether files have changed since they were read, by looking at them now and then.

A look follows symbolic links, so that a file replaced by `mv`, an editor, or a Kubernetes volume (which swaps the link
of a whole folder) is seen like one that was written to. inotify would tell sooner, but not over NFS, not for the target
of a link, and not for a file that is not there yet.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping

Stamp = tuple[int, int, int] | None
"""Time of the last change (ns), size, inode; None: it cannot be looked at."""

_A_LOOK = 1000
"""Files looked at in one look at most, a few milliseconds; of ten thousand, each is seen every tenth time."""


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """What a file looks like now."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class FilesWatched:
    """Files, as they were when they were read."""

    def __init__(self, files: Mapping[str, Stamp]) -> None:
        self._files: dict[str, Stamp] = {}
        self._turn: Iterator[str] = iter(())
        self.follow(files)

    def follow(self, files: Mapping[str, Stamp]) -> None:
        """They have been read again. Each with its stamp from before it was read; the most important ones first."""
        self._files = dict(files)
        self._turn = iter(())

    def note(self, files: Mapping[str, Stamp]) -> None:
        """Some of them have been read again, or are new."""
        self._files |= files

    def forget(self, paths: Iterable[str]) -> None:
        """They are of no interest any more."""
        for path in paths:
            self._files.pop(path, None)

    def changed(self) -> str | None:
        """One that has changed. Looks at the first two always, at the others in turn; does blocking file I/O."""
        for path in itertools.islice(list(self._files), 2):
            if self._differs(path):
                return path
        for _ in range(min(_A_LOOK, len(self._files))):
            one = next(self._turn, None)
            if one is None:
                self._turn = iter(list(self._files))
                one = next(self._turn)
            if self._differs(one):
                return one
        return None

    def _differs(self, path: str) -> bool:
        return path in self._files and stamp_of(path) != self._files.get(path)
