"""Mistakes of operators: in the file, at the start, and servers that are not what the file says."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pointsman
import pytest
import yaml
from pointsman import Executed

from router.devcluster import DevCluster
from router.devcluster.server import free_port
from tests.stories.conftest import undisturbed
from tests.support.eventually import eventually
from tests.support.running_router import Config, endpoint, launch, running_router, tenant, write_config

pytestmark = pytest.mark.pg

_WRONG = 'password authentication failed for user "acme"'
COMMAND = Path(sys.executable).parent / "pointsman"


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pointsman-mistakes-") as name:
        yield Path(name)


def five_mistakes(config: Config) -> None:
    config["server"]["grace"] = 3
    config["clusters"]["main"]["mode"] = "promot"
    config["clusters"]["main"]["endpoints"]["n2"]["port"] = 70_000
    config["tenants"]["acme"]["login"]["password"] = "file:absent.password"
    config["tenants"]["globex"]["cluster"] = "elsewhere"


WORDS = ("server.grace", "clusters.main.mode", "n2.port", "absent.password", "tenants.globex.cluster")


def test_five_mistakes_are_told_at_once_with_their_places(pg_cluster: DevCluster, directory: Path) -> None:
    write_config(directory, pg_cluster, edit=five_mistakes)
    checked = subprocess.run(
        [COMMAND, "check-config", str(directory / "pointsman.yaml")], capture_output=True, text=True, timeout=20
    )
    assert checked.returncode == 1
    serving = launch(directory)
    assert serving.wait(20) == 1
    for said in (checked.stdout + checked.stderr, (directory / "router.log").read_text()):
        for words in WORDS:
            assert words in said, said
        assert "Traceback" not in said
        assert sum("pointsman.yaml:" in line for line in said.splitlines()) == 5, said
        for secret in ("acme-secret", "globex-secret", "token-of-acme"):
            assert secret not in said


@pytest.mark.parametrize("which", ["listen", "admin_listen", "metrics_listen"])
def test_a_port_in_use_ends_the_start_with_words(pg_cluster: DevCluster, directory: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write_config(directory, pg_cluster, edit=lambda config: config["server"].update({which: f"127.0.0.1:{port}"}))
        serving = launch(directory)
        assert serving.wait(20) == 1
    said = (directory / "router.log").read_text()
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said
    assert "Traceback" not in said
    assert "serves callers" not in said


def test_no_file_and_no_yaml(directory: Path) -> None:
    place = "pointsman.yaml:"
    for text, words in ((None, "no such file"), ("a: [", place), ("", "clusters"), ("[1]", place)):
        if text is not None:
            (directory / "pointsman.yaml").write_text(text)
        serving = launch(directory)
        assert serving.wait(20) == 1
        said = (directory / "router.log").read_text()
        assert words in said
        assert "Traceback" not in said


def two_that_are_not_there(config: Config) -> None:
    endpoints: dict[str, Any] = config["clusters"]["main"]["endpoints"]
    endpoints["absent"] = endpoint(5432, host="no-such-host.invalid")
    endpoints["closed"] = endpoint(free_port())


async def test_replicas_that_do_not_resolve_or_refuse_cost_the_others_nothing(pg_cluster: DevCluster) -> None:
    began = time.monotonic()
    async with running_router(pg_cluster, edit=two_that_are_not_there) as router:
        assert time.monotonic() - began < 6
        async with router.connect(consistency="eventual") as db, undisturbed(router):
            served = {(await db.query("select 1", read="replica", timeout=2)).receipt.endpoint for _ in range(30)}
            assert served == {"n2", "n3"}
            assert (await db.execute("update accounts set score = score where id = 3", timeout=2)).rowcount == 1
        reasons = {}
        for name in ("absent", "closed"):
            shown = await router.endpoint(name)
            reasons[name] = shown.health_reason.partition(":")[0]
        assert reasons == {"absent": "unresolved", "closed": "connect_refused"}
        log = router.log.read_text()
        assert "no-such-host.invalid" not in log or "password" not in log


async def test_a_tenants_wrong_password_is_its_own_trouble(pg_cluster: DevCluster) -> None:
    def wrong(config: Config) -> None:
        config["tenants"]["acme"]["login"]["password"] = "file:admin.token"

    async with running_router(pg_cluster, edit=wrong) as router, undisturbed(router), router.connect() as db:
        for call in (db.query, db.execute):
            began = time.monotonic()
            with pytest.raises(pointsman.InternalError) as caught:
                await call("select 1", timeout=3)
            assert (caught.value.reason, caught.value.code) == ("BACKEND_CONFIG", grpc.StatusCode.INTERNAL)
            assert caught.value.executed is Executed.NO
            assert "operator-token" not in str(caught.value)
            assert time.monotonic() - began < 1.5
        tried = [server.log_path.read_text().count(_WRONG) for server in pg_cluster.servers.values()]
        until, told = time.monotonic() + 2.0, 0
        while time.monotonic() < until:
            calls = [db.execute("select 1", timeout=3) for _ in range(50)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {getattr(answer, "reason", answer) for answer in answers} == {"BACKEND_CONFIG"}
            told += len(answers)
        more = [server.log_path.read_text().count(_WRONG) for server in pg_cluster.servers.values()]
        assert sum(more) - sum(tried) <= 10, f"{told} callers, {tried} logins refused became {more}"
        # The operator repairs the file, and the next request works without a restart.
        router.edit_config(lambda config: config["tenants"].update(acme=tenant("acme")))
        assert (await router.operate("ReloadConfig")).applied
        assert await db.query_value("select 1", timeout=3) == 1
        assert "connect failed" in router.log.read_text()


async def test_a_cluster_that_is_not_there_at_all(directory: Path, pg_cluster: DevCluster) -> None:
    """The router serves all the same: it is not its start that must wait for PostgreSQL."""

    def elsewhere(config: Config) -> None:
        lost = yaml.safe_load(yaml.safe_dump(config["clusters"]["main"]))
        lost["endpoints"] = {"lost1": endpoint(free_port()), "lost2": endpoint(free_port())}
        config["clusters"]["lost"] = lost
        config["tenants"]["acme"]["cluster"] = "lost"

    async with running_router(pg_cluster, edit=elsewhere, window_s=0.5) as router, undisturbed(router):
        async with router.connect() as db:
            for call in (db.query, db.execute):
                with pytest.raises(pointsman.Unavailable) as caught:
                    await call("select 1", timeout=3)
                assert caught.value.executed is Executed.NO
                assert caught.value.reason
        await eventually(
            lambda: "serves callers" in router.log.read_text(), within_s=1, what="a router that serves"
        )
