"""Two workers that speak TLS: certificates change under load, callers are known by theirs, and it is audited."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pointsman
import pytest

from router.devcluster import DevCluster
from tests.support.certificates import Authority
from tests.support.running_router import running_router

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


def _issue(authority: Authority, paths: tuple[Path, Path], **names: Any) -> None:
    authority.issue(**names).write(*paths)


def _read(path: Path) -> str:
    return path.read_text()
