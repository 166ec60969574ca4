"""Waiting for what another process does."""

from __future__ import annotations

import socket
import time

from tests.benchmarks.starting import Process

STEP_S = 0.01


def wait_for_port(port: int, process: Process, timeout_s: float = 15.0) -> bool:
    """Until somebody listens; False when the process ended or took too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(STEP_S)
            continue
        return True
    return False
