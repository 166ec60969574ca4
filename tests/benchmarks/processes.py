"""What the kernel says about processes: their time, memory and children (Linux)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_TICK_US = 1_000_000 / os.sysconf("SC_CLK_TCK")


def with_children(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for tasks in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting.extend(int(word) for word in tasks.read_text().split())
            except OSError:
                continue
    return found


def cpu_us(pids: Iterable[int]) -> float:
    """Processor time of processes so far, user and system (microseconds, in steps of the kernel's tick).

    With that of their children which have ended: a server's connections come and go, and the difference of two
    readings must not lose them.
    """
    total = 0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, words[11:15]))
    return total * _TICK_US


def memory_mib(pids: Iterable[int]) -> float:
    """Resident memory now, added up."""
    return _memory(pids, "VmRSS")


def peak_memory_mib(pids: Iterable[int]) -> float:
    """Largest resident memory since `forget_peaks`, added up."""
    return _memory(pids, "VmHWM")


def forget_peaks(pids: Iterable[int]) -> None:
    """Let the peaks start again from now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory(pids: Iterable[int], name: str) -> float:
    total = 0
    for pid in pids:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024
