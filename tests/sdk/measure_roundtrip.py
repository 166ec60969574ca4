"""What a call costs its caller: python tests/sdk/measure_roundtrip.py [--against DIRECTORY] [--callers 1,16,64,256].

Runs the SDK against a router that only echoes (a process of its own: grpc.aio, canned replies), and prints the client
process's CPU time a call in microseconds (all its threads, user and system), calls a second, and the latency's median.
With --against, another copy of the SDK (the directory that holds its package `pointsman`) is measured in turn with this
one, round by round, and medians of both are printed: figures of two separate runs on a busy machine say nothing.

Not collected by pytest: it states figures, it does not judge them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SDK = Path(__file__).resolve().parents[2] / "clients" / "python"
SQL = "select abalance from pgbench_accounts where aid = $1"
METHOD = "pointsman.v1.QueryService"
FIGURES = ("cpu_us", "rate", "p50_us", "p99_us")
WARM_UP = 2_000
"""Calls before the clock starts."""


def canned_reply() -> bytes:
    """The answer to a point read, as the router makes it, without the reply's id."""
    from pointsman.v1 import query_service_pb2 as pb
    from pointsman.v1 import types_pb2 as types

    column = types.ColumnInfo(name="abalance", kind=types.COLUMN_KIND_INTEGER, type_oid=23, type_modifier=-1)
    schema = types.ResultSchema(columns=[column], has_columns=True)
    batch = types.RowBatch(row_count=1, columns=[types.ColumnData(integers=[-4711])])
    result = types.ResultSet(schema=schema, batch=batch, rows_affected=1, command_tag="SELECT 1")
    receipt = types.Receipt(
        request_id="0123456789abcdef", token=b"0123456789abcdef01234567", endpoint="primary-1", attempts=1, topology=3,
        role=types.ENDPOINT_ROLE_PRIMARY, queued_us=21, executed_us=250, route_reason="weighted",
    )  # fmt: skip
    reply = pb.MultiplexReply(query=pb.QueryResponse(result=result, receipt=receipt))
    return reply.SerializeToString()


async def echo(busy_us: float, share: int, workers: int) -> None:
    """The router: answers each call with the canned reply, `share` calls a message, each after so much work."""
    import grpc
    from grpc import aio
    from pointsman.mux_stream import OPEN_KEY, WORKERS_KEY
    from pointsman.v1 import query_service_pb2 as pb

    canned = canned_reply()

    async def multiplex(requests: Any, context: Any) -> None:
        await context.send_initial_metadata(((OPEN_KEY, "open"), (WORKERS_KEY, str(workers))))
        while (message := await context.read()) is not aio.EOF:
            ids = [call.id for call in message.calls if call.WhichOneof("call") != "cancel"]
            for start in range(0, len(ids), share):
                part = ids[start : start + share]
                until = time.perf_counter() + busy_us * 1e-6 * len(part)
                while time.perf_counter() < until:
                    pass
                await context.write(b"".join(frame(number, canned) for number in part))

    handler = grpc.stream_stream_rpc_method_handler(
        multiplex, request_deserializer=pb.MultiplexRequest.FromString, response_serializer=None
    )
    server = aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD, {"Multiplex": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


def frame(number: int, canned: bytes) -> bytes:
    """One entry of MultiplexResponse.replies."""
    reply = b"\x08" + varint(number) + canned
    return b"\x0a" + varint(len(reply)) + reply


def varint(number: int) -> bytes:
    """Protobuf's form of an unsigned integer."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Measured:
    """Calls of one run: how many, how long, at what cost."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.begun = time.perf_counter()
        self.cpu_s = time.process_time()

    def figures(self) -> dict[str, float]:
        """CPU in µs a call, calls a second, median and 99th percentile of the latency in µs."""
        calls = len(self.latencies)
        cpu_s, wall_s = time.process_time() - self.cpu_s, time.perf_counter() - self.begun
        return {
            "cpu_us": cpu_s / calls * 1e6,
            "rate": calls / wall_s,
            "p50_us": statistics.median(self.latencies) * 1e6,
            "p99_us": statistics.quantiles(self.latencies, n=100)[98] * 1e6,
        }


async def measure_async(address: str, callers: int, seconds: float) -> dict[str, float]:
    """So many tasks on one loop."""
    import pointsman

    async with pointsman.connect(address, tenant="acme", token="secret") as db:

        async def caller(until: float, seen: list[float]) -> None:
            clock, query, number = time.perf_counter, db.query, 0
            while (begun := clock()) < until:
                number += 1
                rows = await query(SQL, number * 7919 % 100_000)
                assert rows[0][0] == -4711
                seen.append(clock() - begun)

        for _ in range(WARM_UP // callers):
            await asyncio.gather(*(db.query(SQL, number) for number in range(callers)))
        measured = Measured()
        until = time.perf_counter() + seconds
        await asyncio.gather(*(caller(until, measured.latencies) for _ in range(callers)))
        return measured.figures()


def measure_sync(address: str, callers: int, seconds: float) -> dict[str, float]:
    """So many threads with the synchronous client."""
    import pointsman

    with pointsman.sync.connect(address, tenant="acme", token="secret") as db, ThreadPoolExecutor(callers) as pool:
        ready = threading.Barrier(callers + 1)

        def caller(seen: list[float]) -> None:
            ready.wait()
            until = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < until:
                assert db.query(SQL, len(seen))[0][0] == -4711
                seen.append(time.perf_counter() - begun)

        db.query(SQL, 1)
        seen: list[list[float]] = [[] for _ in range(callers)]
        running = [pool.submit(caller, mine) for mine in seen]
        measured = Measured()
        ready.wait()
        for future in running:
            future.result()
        measured.latencies = [latency for mine in seen for latency in mine]
        return measured.figures()


def run_client(options: argparse.Namespace) -> None:
    """One measurement in this process; its figures as JSON."""
    if options.sync:
        found = measure_sync(options.client, options.at, options.seconds)
    else:
        work = measure_async(options.client, options.at, options.seconds)
        found = asyncio.run(work)
    print(json.dumps(found))


def start(package: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """This script in another process, with the SDK of that directory."""
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **more)


def compare(options: argparse.Namespace) -> None:
    """All measurements, this SDK and the other in turn, round by round."""
    packages = {"this": SDK} if options.against is None else {"other": Path(options.against), "this": SDK}
    kind = [f"--busy-us={options.busy_us}", f"--share={options.share}", f"--workers={options.workers}"]
    router = start(SDK, "--echo", *kind, stdin=subprocess.PIPE)
    assert router.stdout is not None
    try:
        address = f"127.0.0.1:{router.stdout.readline().strip()}"
        kind = [flag for flag, on in (("--sync", options.sync),) if on]
        for callers in map(int, options.callers.split(",")):
            found: dict[str, list[dict[str, float]]] = {name: [] for name in packages}
            for _ in range(options.rounds):
                for name, package in packages.items():
                    arguments = [f"--client={address}", f"--at={callers}", f"--seconds={options.seconds}", *kind]
                    out, _ = start(package, *arguments).communicate()
                    found[name].append(json.loads(out))
            for name, runs in found.items():
                cpu, rate, p50, p99 = (statistics.median(run[key] for run in runs) for key in FIGURES)
                print(
                    f"{callers:4} callers  {name:5}  {cpu:6.1f} µs CPU a call  {rate:7.0f} a second"
                    f"  p50 {p50:6.0f}  p99 {p99:6.0f} µs"
                )
    finally:
        router.communicate()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="directory that holds another copy of the package `pointsman`")
    parser.add_argument("--callers", default="1,16,64,256")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sync", action="store_true", help="threads and the synchronous client")
    parser.add_argument("--busy-us", type=float, default=20.0, help="the router's own work a call")
    parser.add_argument("--share", type=int, default=64, help="the router's most replies a message")
    parser.add_argument("--workers", type=int, default=1, help="processes that the router says it has")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        asyncio.run(echo(options.busy_us, options.share, options.workers))
    elif options.client:
        run_client(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
