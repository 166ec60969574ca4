"""Certificate files of a running router change, to wrong ones or to those of a new authority: no caller notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.support.certificates import Authority, Issued
from tests.support.eventually import eventually
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = pytest.mark.pg

WITHIN_S = 40


class Callers:
    """One who stays and one who connects anew for each call, each with a certificate."""

    def __init__(self, router: RunningRouter, folder: Path) -> None:
        self._folder = folder
        self._address = router.address.replace("127.0.0.1", "localhost")
        self._token = router.tokens["acme"]
        self.calls = 0
        self.trusted = self.own = ""

    def have(self, name: str, own: Issued, trusted: bytes) -> None:
        """Files of their own from now on: what follows files notices them, too."""
        cert, key, ca = (self._folder / f"{name}.{kind}" for kind in ("cert", "key", "ca"))
        own.write(cert, key)
        ca.write_bytes(trusted)
        self.own = name

    def connect(self, name: str = "") -> pointsman.Client:
        files = {kind: str(self._folder / f"{name or self.own}.{kind}") for kind in ("cert", "key", "ca")}
        return pointsman.connect(self._address, tenant="acme", token=self._token, **files)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Until the end of the block; a call that fails fails the test."""
        stop = asyncio.Event()

        async def stay() -> None:
            async with self.connect() as db:
                while not stop.is_set():
                    await db.query("select 1", timeout=20)
                    self.calls += 1
                    await asyncio.sleep(0.02)

        async def come_and_go() -> None:
            while not stop.is_set():
                async with self.connect() as db:
                    await db.query("select 1", timeout=20)
                    self.calls += 1

        tasks = [asyncio.create_task(stay()), asyncio.create_task(come_and_go())]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def more(self) -> None:
        """Some calls later."""
        target = self.calls + 20

        async def reached() -> bool:
            return self.calls >= target

        await eventually(reached, within_s=WITHIN_S, what="calls", pause_s=0.05)


@asynccontextmanager
async def mutual(cluster: DevCluster, folder: Path, workers: int) -> AsyncIterator[tuple[RunningRouter, Authority]]:
    """A router whose callers need certificates."""
    authority = Authority("first")
    authority.issue(dns=["localhost"]).write(folder / "port.cert", folder / "port.key")
    (folder / "client_ca.pem").write_bytes(authority.pem)

    def edit(config: Config) -> None:
        tls = {"cert": "port.cert", "key": "port.key", "client_ca": "client_ca.pem"}
        config["server"]["tls"] = {kind: str(folder / name) for kind, name in tls.items()}
        config["server"]["workers"] = workers
        config["server"]["audit"] = {"file": str(folder / "audit.jsonl"), "scope": "orders"}

    async with running_router(cluster, edit=edit) as router:
        yield router, authority


async def until(condition: Callable[[], Any], what: str) -> None:
    await eventually(lambda: asyncio.to_thread(condition), within_s=WITHIN_S, what=what, pause_s=0.05)


def troubles(router: RunningRouter) -> list[Any]:
    """What `pointsman status` is told."""
    from pointsman.v1 import admin_service_pb2 as pb

    with router.operator() as operator:
        return list(operator.call("GetServerInfo", pb.GetServerInfoRequest()).certificate_troubles)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_wrong_client_ca_fails_nobody_and_is_told(pg_cluster: DevCluster, tmp_path: Path, workers: int) -> None:
    async with mutual(pg_cluster, tmp_path, workers) as (router, authority):
        callers = Callers(router, tmp_path)
        callers.have("own", authority.issue(dns=["acme"]), authority.pem)
        file = tmp_path / "client_ca.pem"
        async with callers.calling():
            await callers.more()
            file.write_text("canary-of-a-mistake")
            await until(lambda: troubles(router), "a trouble")
            (trouble,) = troubles(router)
            assert trouble.port == "callers"
            assert f"file {file} holds no certificates" in trouble.problem
            gauge = 'pointsman_certificate_trouble_seconds{port="callers"}'
            assert router.scrape()[gauge] > 0
            await callers.more()
            file.write_bytes(authority.pem)
            await until(lambda: not troubles(router), "no trouble")
            assert gauge not in router.scrape()
            await callers.more()
        logged = router.logged()
    assert "certificate files are of no use" in logged
    assert "certificates not renewed, the old ones go on" in logged
    assert f"{file}" in logged
    assert "canary-of-a-mistake" not in logged
    told = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    of_router = [(one["what"], one["about"], one["outcome"]) for one in told if one.get("who") == "router"]
    assert of_router == [
        ("credential.certificates", "callers", "trouble"),
        ("credential.certificates", "callers", "mended"),
    ]


async def test_callers_of_the_old_authority_go_on_until_it_is_taken_away(
    pg_cluster: DevCluster, tmp_path: Path
) -> None:
    async with mutual(pg_cluster, tmp_path, 1) as (router, old):
        new = Authority("second")
        file = tmp_path / "client_ca.pem"
        callers = Callers(router, tmp_path)
        callers.have("old", old.issue(dns=["acme"]), old.pem + new.pem)
        async with callers.calling():
            await callers.more()
            file.write_bytes(old.pem + new.pem)
            await callers.more()
            callers.have("new", new.issue(dns=["acme"]), old.pem + new.pem)
            await callers.more()
            async with callers.connect("old") as db:
                await db.query("select 1", timeout=20)
            file.write_bytes(new.pem)
            await callers.more()  # also who stays, with a certificate of the old one
            async with callers.connect("old") as db:
                with pytest.raises(pointsman.Error):
                    await db.query("select 1", timeout=2)
        assert not troubles(router)
