"""The caller's process: the target in the first line, a job in each further line, an answer to each.

It ends with its input.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# What the SDK's README advises to programs that wait for single answers.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")

from tests.benchmarks.callers.contract import MakeCaller, Target
from tests.benchmarks.callers.work import KINDS

CALLERS = {
    "sdk": ("pointsman_sdk", "SdkCaller"),
    "stub": ("plain_stub", "StubCaller"),
    "psycopg": ("psycopg_pool_caller", "PsycopgCaller"),
    "floor": ("grpc_floor", "FloorCaller"),
    "asyncpg": ("asyncpg_pool_caller", "AsyncpgCaller"),
}
"""Module and class by the target's kind; imported when asked for, so that a process holds one library."""


def _make(kind: str) -> MakeCaller:
    module, name = CALLERS[kind]
    made: MakeCaller = getattr(importlib.import_module(f"tests.benchmarks.callers.{module}"), name)
    return made


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def _run(target: Target) -> None:
    caller = _make(target.kind)(target)
    await caller.open()
    _tell({"ready": True})
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            try:
                _tell(await KINDS[job["work"]](caller, target, job))
            except NotImplementedError as error:
                _tell({"unable": str(error) or "not done by this library"})
            except Exception as error:
                traceback.print_exc()
                _tell({"error": f"{type(error).__name__}: {error}"})
    finally:
        await caller.close()


def main() -> None:
    """Answers until the input ends."""
    target = Target(**json.loads(sys.stdin.readline()))
    try:
        asyncio.run(_run(target))
    except Exception as error:
        traceback.print_exc()
        _tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
