"""The program of clients/README.md, which has generated stubs and no SDK, as printed there, against a real router."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from router.devcluster import DevCluster
from tests.support.running_router import running_router

pytestmark = pytest.mark.pg

ROOT = Path(__file__).parents[2]
NO_SDK = "\nimport pointsman\nassert not hasattr(pointsman, 'connect')\n"
DEV_JSON = "/tmp/demo/dev.json"


def printed(folder: Path) -> str:
    """The page's only program, with another demo's file."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "clients" / "README.md").read_text(), re.DOTALL)
    assert DEV_JSON in program
    return str(program).replace(DEV_JSON, str(folder / "dev.json"))


def stubs_alone(folder: Path) -> Path:
    """The generated stubs as who has no SDK has them: a folder that holds nothing else."""
    made = folder / "stubs" / "pointsman" / "v1"
    made.mkdir(parents=True)
    for path in (ROOT / "clients/python/pointsman/v1").glob("*_pb2*.py"):
        (made / path.name).write_text(path.read_text())
    (made.parent / "__init__.py").touch()  # or the SDK, which is installed here, would be found behind the folder
    return folder / "stubs"


async def test_a_program_with_stubs_alone_runs_as_printed(pg_cluster: DevCluster, tmp_path: Path):
    async with running_router(pg_cluster) as router:
        tenant = {"name": "acme", "token": router.tokens["acme"]}
        (tmp_path / "dev.json").write_text(json.dumps({"router": router.address, "tenants": [tenant]}))
        environment = {**os.environ, "PYTHONPATH": str(stubs_alone(tmp_path))}
        program = printed(tmp_path) + NO_SDK
        ended = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60,
            env=environment,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = ended.stdout.splitlines()
    assert re.fullmatch(r"\[(\(\d+, 'acme account \d+', (None|[\d.]+)\)(, )?){3}\] \w+", first), first
    assert second == "INVALID_ARGUMENT BAD_SQL 42P01 rolled_back"
