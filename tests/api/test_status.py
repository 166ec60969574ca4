"""RouterError on the wire: total over codes and reasons, readable with Google's types, and never beyond 4 KiB."""

from __future__ import annotations

import base64
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from grpc_status._async import from_call
from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import errors_pb2, types_pb2
from pointsman.v1 import query_service_pb2 as pb

from router.api.status import TRAILER_BYTES, grpc_code, status_of, trailers_of
from router.model.errors import Code, Executed, RouterError
from router.model.identity import EndpointName, TenantName
from router.model.observation import Fault, FaultKind, PgError, Stage
from router.model.reasons import RefuseReason
from router.model.request import Request
from router.model.result import Answer
from router.model.topology import Tenant
from tests.api.conftest import AUTH, World
from tests.api.reading import info_of

ANY_TEXT = st.text(alphabet=st.characters(), max_size=6000)  # surrogates, too


def google_status(error: RouterError) -> status_pb2.Status:
    return status_pb2.Status.FromString(status_of(error, TenantName("acme")).SerializeToString())


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_grpc_code(code: Code) -> None:
    error = RouterError(code, RefuseReason.INTERNAL, "m")
    assert grpc_code(error).name == code.name
    assert google_status(error).code == code.value


@pytest.mark.parametrize("reason", RefuseReason)
@pytest.mark.parametrize("executed", Executed)
def test_every_reason_and_effect_reaches_the_caller(reason: RefuseReason, executed: Executed) -> None:
    info = info_of(google_status(RouterError(Code.ABORTED, reason, "m", executed=executed)))
    assert (info.domain, info.reason) == ("pointsman", reason.name)
    assert info.metadata["executed"] == executed.value
    assert info.metadata["tenant"] == "acme"


def test_numbers_and_places_are_metadata() -> None:
    fault = Fault(FaultKind.SERVER_ERROR, Stage.EXECUTE, sqlstate="57P01", endpoint=EndpointName("pg2"))
    numbers = {"limit": 3, "held_ms": 1.5, "scope": "tenant", "full": True}
    error = RouterError(Code.UNAVAILABLE, RefuseReason.BACKEND_LOST, "m", numbers=numbers, fault=fault)
    metadata = dict(info_of(google_status(error)).metadata)
    assert metadata == {
        "executed": "no",
        "tenant": "acme",
        "sqlstate": "57P01",
        "endpoint": "pg2",
        "limit": "3",
        "held_ms": "1.5",
        "scope": "tenant",
        "full": "true",
    }


def test_a_number_cannot_overwrite_what_is_known_of_effects() -> None:
    error = RouterError(
        Code.UNKNOWN, RefuseReason.OUTCOME_UNKNOWN, "m", executed=Executed.MAYBE, numbers={"executed": "no"}
    )
    assert info_of(google_status(error)).metadata["executed"] == "maybe"


def test_postgresql_fields_are_all_told() -> None:
    pg = PgError("ERROR", "23505", "dup", "Key (a)=(1)", "hint", 7, "ctx", "s", "t", "c", "int4", "t_pkey")
    status = google_status(RouterError(Code.ALREADY_EXISTS, RefuseReason.UNIQUE_VIOLATION, "dup", pg=pg))
    (packed,) = [d for d in status.details if d.type_url == "type.googleapis.com/pointsman.v1.PgErrorDetail"]
    assert errors_pb2.PgErrorDetail.FromString(packed.value) == errors_pb2.PgErrorDetail(
        severity="ERROR",
        sqlstate="23505",
        message="dup",
        detail="Key (a)=(1)",
        hint="hint",
        position=7,
        context="ctx",
        schema_name="s",
        table_name="t",
        column_name="c",
        data_type_name="int4",
        constraint_name="t_pkey",
    )
    assert info_of(status).metadata["sqlstate"] == "23505"


@pytest.mark.parametrize(
    ("executed", "retry_after_s", "pushback", "delay_s"),
    [
        (Executed.NO, 1.5, "1500", 1.5),
        (Executed.ROLLED_BACK, 0.0001, "1", 0.0001),
        (Executed.NO, 0.0, "1", 0.0),
        (Executed.NO, -1.0, "1", 0.0),
        (Executed.NO, float("inf"), None, None),
        (Executed.NO, float("nan"), None, None),
        (Executed.NO, None, None, None),
        (Executed.MAYBE, 1.5, "-1", None),
        (Executed.MAYBE, None, "-1", None),
        (Executed.YES, 1.0, "-1", None),
    ],
)
def test_retry_hints_only_where_repeating_is_safe(
    executed: Executed, retry_after_s: float | None, pushback: str | None, delay_s: float | None
) -> None:
    error = RouterError(
        Code.UNAVAILABLE, RefuseReason.NO_BACKEND, "m", executed=executed, retry_after_s=retry_after_s
    )
    status = status_of(error)
    assert dict(trailers_of(error, status)).get("grpc-retry-pushback-ms") == pushback
    hints = [d for d in google_status(error).details if d.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    if delay_s is None:
        assert not hints
    else:
        delay = error_details_pb2.RetryInfo.FromString(hints[0].value).retry_delay
        assert delay.ToMicroseconds() == round(delay_s * 1e6)


@given(ANY_TEXT, st.lists(ANY_TEXT, min_size=11, max_size=11), st.integers(-1, 2**40))
def test_any_error_fits_the_trailers_and_keeps_its_keys(message: str, texts: list[str], position: int) -> None:
    pg = PgError(*texts[:5], position, *texts[5:11])
    numbers = {"limit": 2**63, "in_use": "x" * 500, "waiting": 3, "attempts": 2, "held_ms": 1.23456789}
    fault = Fault(FaultKind.SERVER_ERROR, Stage.COMMIT, endpoint=EndpointName("é" * 200))
    error = RouterError(
        Code.UNKNOWN,
        RefuseReason.IDEMPOTENCY_NOT_CONFIGURED,
        message,
        executed=Executed.MAYBE,
        numbers=numbers,
        pg=pg,
        fault=fault,
    )
    status = status_of(error, TenantName("t" * 200))
    entries = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "16"),
        ("grpc-message", quote(status.message, safe="")),
    ]
    for key, value in trailers_of(error, status):
        entries.append((key, base64.b64encode(value).decode() if isinstance(value, bytes) else value))
    assert sum(len(key) + len(value) + 32 for key, value in entries) < TRAILER_BYTES
    keys = set(info_of(status_pb2.Status.FromString(status.SerializeToString())).metadata)
    assert {"executed", "tenant", "endpoint", *numbers} <= keys
    assert len(status.details) == 2


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.UNKNOWN])
@pytest.mark.parametrize("message", ["plain", "größer als 100 %\n\tline ☃ " * 100, " spaces "])
async def test_grpcio_status_reads_it_from_a_real_call(world: World, code: Code, message: str) -> None:
    async def run(tenant: Tenant, request: Request) -> Answer:
        raise RouterError(code, RefuseReason.QUOTA, message, retry_after_s=2.0)

    world.executor.run_with = run
    call = world.query.Query(pb.QueryRequest(statement=types_pb2.Statement(sql="s")), metadata=AUTH)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    status = await from_call(call)
    assert status is not None
    assert status.code == code.value
    assert info_of(status).reason == "QUOTA"
    assert rpc_status.code_to_grpc_status_code(status.code) is await call.code()
