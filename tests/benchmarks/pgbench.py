"""pgbench as the reference in C."""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.benchmarks.database import DATABASE, PASSWORD, pg_environment
from tests.benchmarks.starting import BenchmarkFailed


class Pgbench:
    """`pgbench -S`, run anew for each round. It measures whole seconds and tells a mean, no percentiles."""

    def __init__(self, program: Path, port: int, user: str, clients: int, protocol: str, application: str) -> None:
        dsn = f"postgresql://{user}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}?application_name={application}"
        self._command = [str(program), "-S", "-n", "-M", protocol, "-c", str(clients), "-j", "1"]
        self._dsn = dsn
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> None:
        """No process lasts from round to round; `finish` tells its processor time."""
        return None

    def begin(self, job: dict[str, Any]) -> None:
        """Start it for the job's seconds."""
        duration = str(max(1, math.ceil(float(job["seconds"]))))
        self._process = subprocess.Popen(
            [*self._command, "-T", duration, self._dsn],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=pg_environment(),
        )

    def finish(self, seconds: float) -> dict[str, Any]:
        """What it printed, as a caller answers, and its own processor time."""
        process, self._process = self._process, None
        assert process is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            printed, complaints = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise BenchmarkFailed(f"pgbench ended with status {process.returncode}: {complaints.strip()[-500:]}")
        return {**parse(printed), "client_cpu_us": (used.ru_utime + used.ru_stime) * 1e6}


def parse(printed: str) -> dict[str, Any]:
    """Operations and time out of pgbench's report; BenchmarkFailed when it has none."""
    count = re.search(r"number of transactions actually processed: (\d+)", printed)
    rate = re.search(r"tps = ([\d.]+)", printed)
    if count is None or rate is None:
        raise BenchmarkFailed(f"pgbench printed no result: {printed[-300:]}")
    return {"operations": int(count[1]), "elapsed_s": int(count[1]) / float(rate[1])}
