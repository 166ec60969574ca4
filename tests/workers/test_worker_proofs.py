"""Two workers that speak TLS: certificates change under load, callers are known by theirs, and it is audited."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pointsman
import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb

from router.devcluster import DevCluster
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.running_router import RunningRouter, running_router
from tests.workers.callers import all_serve, two_workers

pytestmark = [pytest.mark.pg]

WEB = "spiffe://example.org/acme/web"
REPORTS = "spiffe://example.org/acme/reports"


async def test_certificates_change_in_every_worker_without_a_failed_request(
    pg_cluster: DevCluster, tmp_path: Path
) -> None:
    authority = Authority()
    server, ca, audit = (tmp_path / "server.pem", tmp_path / "server.key"), tmp_path / "ca.pem", tmp_path / "audit"
    _issue(authority, server, dns=["localhost"])
    ca.write_bytes(authority.pem)
    own = {name: (tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("web", "reports", "stranger")}
    for paths, uri in zip(own.values(), (WEB, REPORTS, f"{WEB}2"), strict=True):
        _issue(authority, paths, uris=[uri])

    def edit(config: dict[str, Any]) -> None:
        config["server"]["workers"] = 2
        config["server"]["tls"] = {"cert": str(server[0]), "key": str(server[1]), "client_ca": str(ca)}
        config["server"]["audit"] = {"file": str(audit)}
        config["tenants"]["acme"]["callers"] = [{"spiffe": WEB}, {"spiffe": REPORTS, "role": "reader"}]

    async with running_router(pg_cluster, edit=edit) as router:
        address = router.address.replace("127.0.0.1", "localhost")

        def connect(name: str) -> pointsman.Client:
            cert, key = own[name]
            return pointsman.connect(address, ca=str(ca), cert=str(cert), key=str(key), timeout=20)

        async def come_and_go() -> int:
            done = 0
            while not stop.is_set():
                async with connect("web") as db:
                    assert await db.query_value("select current_user::text") == "acme"
                    done += 1
            return done

        stop = asyncio.Event()
        load = [asyncio.create_task(come_and_go()) for _ in range(2)]
        for _ in range(5):
            _issue(authority, server, dns=["localhost"])
            await asyncio.sleep(0.2)
        stop.set()
        assert min(await asyncio.gather(*load)) > 0
        async with connect("reports") as db:
            await db.query("select 1")
            with pytest.raises(pointsman.Error, match="needs the role writer"):
                await db.execute("select 1")
        async with connect("stranger") as db:
            with pytest.raises(pointsman.Unauthenticated):
                await db.query("select 1")
        async with connect("web") as db:
            await db.execute("select 'a-secret-in-sql'")
        await router.terminate()
    text = _read(audit)
    lines = [json.loads(one) for one in text.splitlines()]
    assert {one["who"] for one in lines if one["what"] == "execute"} == {WEB}
    assert any(one["outcome"] == "unauthenticated" for one in lines)
    assert "a-secret" not in text


async def test_workers_come_back_with_the_last_good_certificate_while_the_files_are_bad(
    pg_cluster: DevCluster, tmp_path: Path
) -> None:
    """After a death, and in a rolling restart; once the files are good these are taken, from then on."""
    authority = Authority()
    server, ca = (tmp_path / "server.pem", tmp_path / "server.key"), tmp_path / "ca.pem"
    _issue(authority, server, dns=["localhost"])
    ca.write_bytes(authority.pem)
    key = server[1].read_text().splitlines()[1]

    def edit(config: dict[str, Any]) -> None:
        config["server"]["tls"] = {"cert": str(server[0]), "key": str(server[1])}

    async with two_workers(pg_cluster, edit=edit, grace_s=1.0) as router:
        address = router.address.replace("127.0.0.1", "localhost")

        async def connect_anew(count: int = 8) -> None:
            for _ in range(count):
                async with pointsman.connect(address, ca=str(ca), token=router.tokens["acme"], timeout=20) as db:
                    await db.query("select 1")

        was = await asyncio.to_thread(_certificate_of, router.address)
        _issue(authority, server, dns=["localhost"])  # renewed while it runs: not what it began with
        await eventually(lambda: _shows_another(router.address, was), within_s=10, what="the renewed certificate")
        await asyncio.sleep(3)  # the files are known to have looked the same twice
        renewed = await asyncio.to_thread(_certificate_of, router.address)
        server[1].write_bytes(Authority().issue().key)
        await _replaced(router, connect_anew)
        assert await asyncio.to_thread(_certificate_of, router.address) == renewed
        _issue(authority, server, dns=["localhost"])
        await eventually(lambda: _shows_another(router.address, renewed), within_s=10, what="the newest certificate")
        await connect_anew()
        assert await router.terminate() == 0
        logged = router.logged()
    assert "certificates not renewed, the old ones go on" in logged
    assert key not in logged


async def test_a_worker_that_starts_after_a_reload_serves_as_the_others_do(
    pg_cluster: DevCluster, tmp_path: Path
) -> None:
    """What waits for a restart waits for the whole router's, not for a death; nor for a restart of the workers."""
    paths = (tmp_path / "server.pem", tmp_path / "server.key")
    _issue(Authority(), paths, dns=["localhost"])

    def later(config: dict[str, Any]) -> None:
        config["server"]["tls"] = {"cert": str(paths[0]), "key": str(paths[1])}
        config["log"] = {"level": "error"}

    async with two_workers(pg_cluster, grace_s=1.0) as router:

        async def connect_anew(count: int = 12) -> None:
            for _ in range(count):
                async with router.connect(timeout=20) as db:
                    await db.query("select 1")

        router.edit_config(later)
        answer = await router.operate("ReloadConfig")
        assert "server" in str(answer), answer
        await _replaced(router, connect_anew)


async def _replaced(router: RunningRouter, connect_anew: Callable[[], Awaitable[None]]) -> None:
    """One worker dies, then all are restarted; after each, callers connect."""
    before = await all_serve(router)
    os.kill(before[0].pid, signal.SIGKILL)
    await all_serve(router, restarts=1)
    await connect_anew()
    await asyncio.to_thread(_restart_workers, router)
    after = await all_serve(router)
    assert not {one.pid for one in before} & {one.pid for one in after}
    await connect_anew()


def _certificate_of(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=10)


async def _shows_another(address: str, than: str) -> bool:
    """Whichever worker is asked."""
    return than not in [await asyncio.to_thread(_certificate_of, address) for _ in range(6)]


def _restart_workers(router: RunningRouter) -> None:
    with router.operator() as operator:
        assert [*operator.stream("RestartWorkers", admin_pb.RestartWorkersRequest(), 60)][-1].done


def _issue(authority: Authority, paths: tuple[Path, Path], **names: Any) -> None:
    authority.issue(**names).write(*paths)


def _read(path: Path) -> str:
    return path.read_text()
