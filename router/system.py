"""The only use of clock and chance. Everything else takes them as ports.Clock and ports.Chance."""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections.abc import Callable

_ID_CHARS = 22
"""6 random bits each, 132 in all."""
_IDS_AT_ONCE = 256
"""A block's bytes make whole base64 characters: 256 ids of 22 characters are 4224 bytes."""


class SystemClock:
    """ports.Clock on the event loop it is made on: monotonic seconds, so that virtual-time loops are followed."""

    now: Callable[[], float]
    """Seconds of the loop's clock; its zero has no meaning."""

    def __init__(self) -> None:
        # The loop's own method, kept: asking for the running loop makes a system call (getpid) each time.
        self.now = asyncio.get_running_loop().time

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less only lets others run."""
        await asyncio.sleep(max(0.0, seconds))


class SystemChance:
    """ports.Chance: cheap draws for balancing and jitter, unguessable identifiers from the operating system."""

    def __init__(self) -> None:
        self._block = ""
        self._next = 0

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return random.random()

    def identifier(self) -> str:
        """132 random bits as 22 characters of URL-safe base64."""
        # Many at once: the operating system is asked once for 256 of them.
        start = self._next
        if start >= len(self._block):
            self._block = base64.urlsafe_b64encode(os.urandom(_IDS_AT_ONCE * _ID_CHARS * 6 // 8)).decode("ascii")
            start = 0
        self._next = end = start + _ID_CHARS
        return self._block[start:end]
