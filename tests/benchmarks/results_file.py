"""The results file: what was measured, where, and when. A run of some cases replaces those and keeps the others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import CaseResult

FOLDER = Path(__file__).parent / "results"
BUSY = 0.5
"""Load a core above which a machine counts as busy with other work."""
LIBRARIES = ("grpcio", "psycopg", "psycopg-pool", "asyncpg", "protobuf")


@dataclass(frozen=True)
class Results:
    """All cases, and the machine."""

    when: str
    machine: Mapping[str, Any]
    cases: Sequence[CaseResult]

    def to_json(self) -> str:
        """As it is written."""
        data = {"when": self.when, "machine": dict(self.machine), "cases": [one.to_json() for one in self.cases]}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Results:
        """What to_json wrote."""
        data = json.loads(text)
        return Results(data["when"], data["machine"], tuple(CaseResult.from_json(one) for one in data["cases"]))

    def merged_over(self, older: Results | None, order: Sequence[str]) -> Results:
        """These cases, and of the older results those that were not measured now, in the given order."""
        found = {one.name: one for one in (*(older.cases if older else ()), *self.cases)}
        return Results(self.when, self.machine, tuple(found[name] for name in order if name in found))


def read(path: Path) -> Results | None:
    """The results; None when there is no such file."""
    return Results.from_json(path.read_text()) if path.exists() else None


def describe_machine(postgres: str, pgbouncer: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": sys.version.split()[0],
        "postgres": postgres,
        "pgbouncer": pgbouncer,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Whether the machine had other work when the run began."""
    return bool(machine["load_before"] > BUSY * machine["cores"])


def now() -> str:
    """The time of a run."""
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()
