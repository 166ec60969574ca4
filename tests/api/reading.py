"""Reading our errors the way a caller would, with Google's own types."""

from __future__ import annotations

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2


def trailers(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    return dict(error.trailing_metadata() or ())


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """The only ErrorInfo."""
    (packed,) = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    return error_details_pb2.ErrorInfo.FromString(packed.value)


def status_of_rpc(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    raw = trailers(error)["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    return status_pb2.Status.FromString(raw)


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Reason and what is known to be executed."""
    info = info_of(status_of_rpc(error))
    return info.reason, info.metadata["executed"]
