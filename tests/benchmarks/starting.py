"""Child processes of a run: started, awaited, ended; their errors are kept for the report."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
END_S = 10.0
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

Process = subprocess.Popen[bytes]


class BenchmarkFailed(Exception):
    """A case cannot run. str() says why."""


class PeerMissing(Exception):
    """A contender cannot run here. str() says why, and what to do about it."""


def own_environment() -> dict[str, str]:
    """For our Python processes: they import from where we do, and gRPC is silent."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    return {**os.environ, "PYTHONPATH": path, "GRPC_VERBOSITY": "ERROR", "GRPC_ENABLE_FORK_SUPPORT": "false"}


@contextmanager
def started(command: Sequence[str | Path], log: Path, **more: Any) -> Iterator[Process]:
    """A process whose errors go to `log`; ended by SIGTERM, or killed when that takes too long."""
    with log.open("ab") as errors:
        process = subprocess.Popen([str(word) for word in command], **{
            "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors, "process_group": 0,
            "preexec_fn": _die_with_us, **more})
    try:
        yield process
    finally:
        end(process)


def _die_with_us() -> None:
    """In the child: a driver that is killed leaves nothing behind."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules."""
    return [sys.executable, "-m", name, *arguments]


def end(process: Process) -> None:
    """SIGTERM, then SIGKILL to whatever is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_line(process: Process, timeout_s: float, log: Path) -> bytes:
    """A line of its standard output. BenchmarkFailed when none comes in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    line: bytes = process.stdout.readline() if ready else b""
    if not line:
        what = "said nothing" if ready else f"said nothing for {timeout_s:g} s"
        raise BenchmarkFailed(f"{Path(str(process.args[0])).name} {what}{tail(log)}")  # type: ignore[index]
    return line


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, to be put behind a message; empty when there is none."""
    text = log.read_text(errors="replace").strip().splitlines()[-lines:] if log.exists() else []
    return "".join(f"\n    {line}" for line in text)
