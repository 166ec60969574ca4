"""`serve` as tests run it, with one thing more: SIGUSR2 writes what the event loop has to do into `tasks` beside the
configuration. Run as a program: serving.py CONFIG."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from router.app import serve
from router.config import reading


def tell_tasks_to(path: Path) -> None:
    """At each SIGUSR2: the names of all tasks' coroutines, as JSON. The file appears as a whole."""

    def tell(*_: object) -> None:
        names = [getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()]
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(sorted(names)))
        fresh.rename(path)

    signal.signal(signal.SIGUSR2, tell)


if __name__ == "__main__":
    config = Path(sys.argv[1])
    tell_tasks_to(config.parent / "tasks")
    sys.exit(serve(reading.begin(config)))
