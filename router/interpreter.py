"""How this process runs: settings of gRPC's core, of the garbage collector, of imports and of where it runs, each
measured to pay.

They belong to a process of our own (`pointsman serve`, its workers, `pointsman dev`), never to the SDK, which lives in
somebody else's.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

GRPC_EXPERIMENTS = "-event_engine_listener,-event_engine_client"
"""gRPC's older poller instead of its event engine: a message of a stream takes half the time and two thirds of the CPU,
on both ends (grpcio 1.85, Linux). To be measured again with each new grpcio."""
_YOUNG, _MIDDLE, _OLD = 50_000, 20, 50
"""Objects made and not freed before the collector looks. A request leaves no cycles, and with Python's own 700 a few
hundred requests under way start a collection many times a second."""


def begin() -> None:
    """Call first, before anything imports grpc. What the operator has set stays."""
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    # Reading the configuration of ten thousand tenants takes 0.7 s, and 1.8 s with the collector looking on.
    gc.disable()
    _import_structlog_plain()


def _import_structlog_plain() -> None:
    """structlog takes rich along, 5 MiB, for tracebacks that our log never draws; the console imports it for itself."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # so that importing it fails, as if it were not installed
    try:
        importlib.import_module("structlog.dev")
    finally:
        del sys.modules["rich"]


def settled() -> None:
    """Call when the process serves: what was made until now stays, so the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    gc.enable()


def stay_on(cpus: Sequence[int], place: int = 1) -> None:
    """Keep this process on one of these processors: on that of its place among its like (1, 2, …), in turn.

    All its threads stay there, also those to come: gRPC's and ours wake each other with every message, and on another
    processor that takes longer. Nothing happens without cpus. ValueError in words, as check_cpus.
    """
    if not cpus:
        return
    check_cpus(cpus)
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cpus[(place - 1) % len(cpus)]})


def check_cpus(cpus: Sequence[int]) -> None:
    """ValueError in words where this process may not use one of these processors, or cannot choose."""
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("server.cpus: this system does not let a process choose its processors; leave it out")
    allowed = os.sched_getaffinity(0)
    for cpu in cpus:
        if cpu not in allowed:
            may = ", ".join(map(str, sorted(allowed)))
            raise ValueError(f"server.cpus: there is no processor {cpu} for this process; it may use {may}")
