"""The only use of clock and chance. Everything else takes them as ports.Clock and ports.Chance."""

from __future__ import annotations

import asyncio
import random
import secrets


class SystemClock:
    """ports.Clock on the running event loop: monotonic seconds, so that virtual-time loops in tests are followed."""

    def now(self) -> float:
        """Seconds of the running loop's clock; its zero has no meaning."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less only lets others run."""
        await asyncio.sleep(max(0.0, seconds))


class SystemChance:
    """ports.Chance: cheap draws for balancing and jitter, unguessable identifiers from the operating system."""

    def draw(self) -> float:
        """Uniform in [0, 1)."""
        return random.random()

    def identifier(self) -> str:
        """128 random bits as 22 characters of URL-safe base64."""
        return secrets.token_urlsafe(16)
