"""A network of one millisecond: proxies whose delay is set by measuring what they really add."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

from tests.benchmarks.starting import Process, own_environment, python_module, read_line, started

PINGS = 150
PING = b"x" * 64
TRIES = 5
NEAR_ENOUGH = 0.04


@contextmanager
def delay_proxy(target: int, delay_us: float, log: Path) -> Iterator[tuple[int, Process]]:
    """A proxy in front of a port; its own port and process."""
    command = python_module("tests.benchmarks.delay_proxy", "--target", str(target), "--delay-us", str(delay_us))
    with started(command, log, stdout=subprocess.PIPE, env=own_environment()) as process:
        yield int(read_line(process, 10.0, log)), process


def calibrate(wanted_ms: float, log: Path) -> tuple[float, float]:
    """The delay each way (µs) with which a round trip takes `wanted_ms` longer, and what it then really adds (ms)."""
    with _echo() as port:
        plain = _round_trip_ms(port)
        tried: list[tuple[float, float]] = []
        delay_us = wanted_ms * 500
        for _ in range(TRIES):
            with delay_proxy(port, delay_us, log) as (proxied, _process):
                added = _round_trip_ms(proxied) - plain
            tried.append((delay_us, added))
            if abs(added - wanted_ms) < NEAR_ENOUGH * wanted_ms:
                break
            delay_us = max(0.0, delay_us - (added - wanted_ms) * 500)
    return min(tried, key=lambda one: abs(one[1] - wanted_ms))


def _round_trip_ms(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        took = []
        for _ in range(PINGS):
            start = perf_counter()
            connection.sendall(PING)
            connection.recv(len(PING), socket.MSG_WAITALL)
            took.append(perf_counter() - start)
    return median(took) * 1000


@contextmanager
def _echo() -> Iterator[int]:
    """A port that sends back what it gets, one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        while data := connection.recv(65536):
                            connection.sendall(data)

        threading.Thread(target=answer, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
