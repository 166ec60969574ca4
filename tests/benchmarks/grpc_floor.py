"""What grpcio alone costs: a bare stream whose messages go back as they came. Nobody reads them, no database is asked.

`python -m tests.benchmarks.grpc_floor` is the server: it tells its port, and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.interpreter import GRPC_EXPERIMENTS
from tests.benchmarks.starting import Process, own_environment, python_module, read_line, started

SERVICE, METHOD = "pointsman.benchmarks.Floor", "Echo"
HOST = "127.0.0.1"
START_S = 30.0


@dataclass(frozen=True)
class Floor:
    """A running one."""

    port: int
    process: Process


@contextmanager
def running_floor(log: Path) -> Iterator[Floor]:
    """Started with what the router's own process sets for gRPC."""
    command = python_module("tests.benchmarks.grpc_floor")
    environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS, **own_environment()}
    with started(command, log, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout:
            yield Floor(int(read_line(process, START_S, log)), process)


async def serve() -> None:
    """Until the process is ended."""
    import grpc  # here: the driver, which only starts this, shall not hold gRPC

    async def echo(_: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    server = grpc.aio.server()
    handlers = {METHOD: grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    os.write(1, b"%d\n" % port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
