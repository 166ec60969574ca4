"""The audit log: who did what and how it ended; and no secret in it, nor anywhere else that the router writes to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from pointsman.v1 import admin_service_pb2 as admin_pb
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2

from router.api.auditing import fingerprint
from router.model.auditing import AuditEntry
from router.model.policy import ServerPolicy
from router.model.port_policies import AuditPolicy, AuditScope
from router.telemetry.audit_log import AuditLog, line
from tests.api.conftest import ADMIN_AUTH, AUTH, World

CANARY = "c4n4ry-5ecret"
WRITE = pb.ExecuteRequest(
    statement=types_pb2.Statement(sql=f"insert '{CANARY}'", params=[types_pb2.Param(text=CANARY)])
)
READ = pb.QueryRequest(statement=WRITE.statement)


async def told(policy: ServerPolicy, path: Path, scope: AuditScope) -> tuple[list[dict[str, Any]], str]:
    """The lines that a few calls leave, and all else that was said."""
    log = AuditLog(AuditPolicy(str(path), scope))
    world = World(policy, audit=(log, scope))
    await world.start()
    said = ""
    try:
        await world.query.Execute(WRITE, metadata=AUTH)
        await world.query.Query(READ, metadata=AUTH)
        stream = world.query.Multiplex(metadata=AUTH)
        calls = [pb.MultiplexCall(id=1, query=READ), pb.MultiplexCall(id=2, execute=WRITE)]
        await stream.write(pb.MultiplexRequest(calls=calls))
        replies = 0
        while replies < 2:
            replies += len((await stream.read()).replies)
        stream.cancel()
        transaction = world.transact.Transact(metadata=AUTH)
        begin = tx_pb.TransactRequest(tag=1, begin=tx_pb.TransactBegin(), run=WRITE.statement)
        await transaction.write(begin)
        await transaction.read()
        await transaction.done_writing()
        await world.admin.GetServerInfo(admin_pb.GetServerInfoRequest(), metadata=ADMIN_AUTH)
        for metadata in (
            (("authorization", f"Bearer {CANARY}"),),
            (("authorization", f"Bearer {CANARY}.{CANARY}.{CANARY}"),),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await world.query.Query(READ, metadata=metadata)
            said += f"{caught.value.details()} {caught.value.trailing_metadata()}"
    finally:
        await world.stop()
        log.close()
    said += repr(world.events.events) + repr(world.executor.refusals)
    text = _read(path)
    return [json.loads(one) for one in text.splitlines()], said + text


def _read(path: Path) -> str:
    return path.read_text()


@pytest.mark.parametrize("scope", AuditScope)
async def test_who_did_what(policy: ServerPolicy, tmp_path: Path, scope: AuditScope) -> None:
    lines, said = await told(policy, tmp_path / "audit.jsonl", scope)
    assert CANARY not in said
    what = [one["what"] for one in lines]
    assert what.count("pointsman.v1.AdminService.GetServerInfo") == 1
    refused = [one for one in lines if one["outcome"] == "unauthenticated"]
    assert len(refused) == 2
    assert all(one["peer"] and "who" not in one for one in refused)
    writes = [one for one in lines if one["what"] == "execute"]
    assert len(writes) == (0 if scope is AuditScope.ORDERS else 2)
    for one in writes:
        assert one["tenant"] == "acme"
        assert one["who"].startswith("token:")
        assert one["sql"] == [fingerprint(WRITE.statement.sql.encode())]
    assert what.count("query") == (2 if scope is AuditScope.ALL else 0)
    assert what.count("transact.run") == (0 if scope is AuditScope.ORDERS else 1)


def test_a_line_cannot_be_forged_nor_flooded() -> None:
    text = line(0.0, AuditEntry("x\n{}", "ok\x1b[2J\u2028", "w" * 10_000, sql=("0",) * 100))
    assert text.count("\n") == 1
    assert text.isascii()
    assert all(char.isprintable() for char in text[:-1])
    assert len(text) < 1500
    assert json.loads(text)["at"] == "1970-01-01T00:00:00.000+00:00"


def test_what_cannot_be_written_is_counted_and_holds_up_nobody(tmp_path: Path) -> None:
    log = AuditLog(AuditPolicy(str(tmp_path / "no folder" / "audit"), max_waiting=10))
    for _ in range(1000):
        log.record(AuditEntry("x", "ok"))
    log.close()
    assert log.dropped >= 1000
    good = AuditLog(replace(AuditPolicy(str(tmp_path / "audit")), max_waiting=1))
    for _ in range(1000):
        good.record(AuditEntry("x", "ok"))
    good.close()
    lines = [json.loads(one) for one in (tmp_path / "audit").read_text().splitlines()]
    written = sum(one["what"] == "x" for one in lines)
    assert written + good.dropped == 1000
    assert oct((tmp_path / "audit").stat().st_mode)[-3:] == "600"


async def test_an_order_names_the_tenant_that_it_is_about(policy: ServerPolicy, tmp_path: Path) -> None:
    log = AuditLog(AuditPolicy(str(tmp_path / "audit.jsonl"), AuditScope.ORDERS))
    world = World(policy, audit=(log, AuditScope.ORDERS))
    await world.start()
    try:
        await world.admin.PauseTenant(admin_pb.PauseTenantRequest(tenant="acme"), metadata=ADMIN_AUTH)
        await world.admin.ListTenants(admin_pb.ListTenantsRequest(), metadata=ADMIN_AUTH)
    finally:
        await world.stop()
        log.close()
    lines = [json.loads(one) for one in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(one["what"].rpartition(".")[2], one.get("tenant", "")) for one in lines] == [
        ("PauseTenant", "acme"), ("ListTenants", "")]
