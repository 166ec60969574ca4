"""What happened in a run, in order: the last lines to read, and one hash over all of them to compare runs by."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque

KEPT = 400


class Trace:
    """Lines with their virtual time."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._hash = hashlib.blake2b(digest_size=8)
        self._verbose = verbose
        self.lines: deque[str] = deque(maxlen=KEPT)
        self.count = 0

    def note(self, text: str) -> None:
        line = f"{self._loop.time() - self._began:9.4f}  {text}"
        self._hash.update(line.encode())
        self.count += 1
        self.lines.append(line)
        if self._verbose:
            print(line)

    def digest(self) -> str:
        return self._hash.hexdigest()
