"""Whether files have changed since they were read, by looking at them now and then.

A look follows symbolic links, so that a file replaced by `mv`, an editor, or a Kubernetes volume (which swaps the link
of a whole folder) is seen like one that was written to. inotify would tell sooner, but not over NFS, not for the target
of a link, and not for a file that is not there yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

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
        self._files: Mapping[str, Stamp] = {}
        self._turn: Iterator[str] = iter(())
        self.follow(files)

    def follow(self, files: Mapping[str, Stamp]) -> None:
        """They have been read again. Each with its stamp from before it was read; the most important ones first."""
        self._files = files
        self._turn = iter(())

    def changed(self) -> str | None:
        """One that has changed. Looks at the first one always, at the others in turn; does blocking file I/O."""
        first = next(iter(self._files), None)
        if first is not None and self._differs(first):
            return first
        for _ in range(min(_A_LOOK, len(self._files))):
            one = next(self._turn, None)
            if one is None:
                self._turn = iter(self._files)
                one = next(self._turn)
            if self._differs(one):
                return one
        return None

    def _differs(self, path: str) -> bool:
        return stamp_of(path) != self._files[path]
