"""Callers of the case of many tenants: idle channels that hold Multiplex streams, and tenants that read now and then.

`python -m tests.benchmarks.callers.holding`: a JSON line in, a line when everything is up, until the input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import pointsman
from grpc import aio

from tests.benchmarks.callers.contract import POINT_READ, numbered

METHOD = "/pointsman.v1.QueryService/Multiplex"
AT_ONCE = 50
"""Channels being opened at once."""
PAUSE_S = 0.05
"""Between two reads of an active tenant."""


async def hold_streams(address: str, tenants: list[list[str]]) -> list[Any]:
    """A channel of its own for each (tenant, token), with an open stream on it."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def hold(tenant: str, token: str) -> Any:
        async with gate:
            channel = aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            metadata = (("authorization", f"Bearer {token}"), ("pointsman-tenant", tenant))
            call: Any = channel.stream_stream(METHOD)(metadata=metadata)
            await call.initial_metadata()
            return channel, call

    return await asyncio.gather(*(hold(tenant, token) for tenant, token in tenants))


async def read_now_and_then(address: str, tenants: list[list[str]]) -> list[Any]:
    """A client for each (tenant, token), each reading until the process ends."""
    statement = numbered(POINT_READ)

    async def read(client: pointsman.Client, number: int) -> None:
        while True:
            await client.query_one(statement, number + 1)
            await asyncio.sleep(PAUSE_S)

    clients = [pointsman.connect(address, tenant=tenant, token=token) for tenant, token in tenants]
    for number, client in enumerate(clients):
        await client.query_one(statement, number + 1)
    return [asyncio.ensure_future(read(client, number)) for number, client in enumerate(clients)]


async def main() -> None:
    """Up, a word, and down with the input."""
    order = json.loads(sys.stdin.readline())
    work = {"idle": hold_streams, "active": read_now_and_then}[order["work"]]
    try:
        kept = await work(order["address"], order["tenants"])
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        raise
    print(json.dumps({"ready": len(kept)}), flush=True)
    waiting = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    readers = [one for one in kept if isinstance(one, asyncio.Future)]
    done, _ = await asyncio.wait([waiting, *readers], return_when=asyncio.FIRST_COMPLETED)
    failed = next((str(one.exception()) for one in done if one is not waiting and one.exception()), "")
    print(json.dumps({"error": failed} if failed else {"done": True}), flush=True)
    # Closing thousands of channels in good order takes longer than the whole case.
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    asyncio.run(main())
