"""`pointsman dev` as a user runs it: a process of its own, Ctrl-C, and again on the same data."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pointsman
import pytest

from tests.support.dev_cluster import new_data_root

pytestmark = pytest.mark.pg

COMMAND = Path(sys.executable).parent / "pointsman"


@pytest.fixture
def data() -> Iterator[Path]:
    directory = new_data_root()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


async def start(data: Path, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start it and wait for its welcome; what it has printed so far."""
    process = await asyncio.create_subprocess_exec(
        str(COMMAND),
        "dev",
        "--data",
        str(data),
        "--port",
        "0",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = ""
    async with asyncio.timeout(40):
        while "Ctrl-C stops everything" not in printed:
            line = await process.stdout.readline()
            assert line, printed
            printed += line.decode()
    return process, printed


async def interrupt(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        await process.stdout.read()
        assert await process.wait() == 0


async def order(data: Path, *arguments: str) -> str:
    """`pointsman tenant ARGUMENTS`, and what it tells."""
    process = await asyncio.create_subprocess_exec(
        str(COMMAND), "tenant", *arguments, "--dev", str(data),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(20):
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return told.decode()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


async def test_it_starts_serves_stops_and_keeps_its_data(data: Path) -> None:
    process, printed = await start(data)
    described = json.loads((data / "dev.json").read_text())
    assert set(described) == {"router", "admin", "tenants", "endpoints"}
    assert all(set(one) == {"name", "token"} for one in described["tenants"])
    assert [one["name"] for one in described["tenants"]] == ["acme", "globex"]
    keys = {"name", "host", "port", "pid", "data_dir", "superuser_dsn"}
    assert all(set(one) == keys for one in described["endpoints"])
    assert len(described["endpoints"]) == 3
    for shown in (
        described["router"],
        described["admin"],
        described["tenants"][0]["token"],
        "pointsman sql",
        "kill -9",
    ):
        assert shown in printed
    token = described["tenants"][0]["token"]
    async with pointsman.connect(described["router"], tenant="acme", token=token) as db:
        assert await db.query_value("select count(*) from accounts") > 0
        await db.execute("create table kept (n int)")
    async with pointsman.connect(described["router"], tenant="acme", token=token, consistency="eventual") as db:
        replicas = {(await db.query("select 1", read="replica")).receipt.endpoint for _ in range(10)}
        assert len(replicas) == 2
    assert "cluster: dev" in await order(data, "show", "acme")
    await order(data, "change", "acme", "--set", "pool.max_size=5")
    pids = [one["pid"] for one in described["endpoints"]]
    assert all(alive(pid) for pid in pids)
    await interrupt(process)
    assert not any(alive(pid) for pid in pids)
    assert not (data / "dev.json").exists(), "it would name processes that are gone"

    process, _ = await start(data)
    again = json.loads((data / "dev.json").read_text())
    assert again["tenants"] == described["tenants"]
    async with pointsman.connect(again["router"], tenant="acme", token=token) as db:
        assert await db.query_value("select count(*) from kept") == 0
    assert "max_size: 5" in await order(data, "show", "acme"), "what operators have made of a tenant is kept as well"
    await interrupt(process)

    shutil.rmtree(data / "tenants")  # as a version left it that wrote tenants into the configuration itself
    process, _ = await start(data)
    assert (await order(data, "list")).count("/") == 2
    await interrupt(process)


async def test_a_second_one_on_the_same_data_says_so(data: Path) -> None:
    process, _ = await start(data)
    second = await asyncio.create_subprocess_exec(
        str(COMMAND),
        "dev",
        "--data",
        str(data),
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, problem = await second.communicate()
    assert second.returncode == 1
    assert str(data) in problem.decode()
    await interrupt(process)


async def test_a_wrong_pg_bin_names_what_is_missing(data: Path, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(COMMAND),
        "dev",
        "--data",
        str(data),
        "--pg-bin",
        str(tmp_path),
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, problem = await process.communicate()
    assert process.returncode == 1
    assert "initdb" in problem.decode()
    assert "Traceback" not in problem.decode()
