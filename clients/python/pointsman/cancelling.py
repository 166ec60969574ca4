"""Stops a request of this tenant by its id."""

from __future__ import annotations

from grpc import aio

from pointsman.connection import GRACE_S, Connections
from pointsman.status import error_from_rpc
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/CancelQuery"


async def cancel(connections: Connections, request_id: str, timeout_s: float) -> bool:
    """True when it was running and has been asked to stop. Error when the router cannot be asked."""
    link = connections.acquire()
    try:
        call: aio.UnaryUnaryMultiCallable[pb.CancelQueryRequest, pb.CancelQueryResponse] = link.channel.unary_unary(
            METHOD,
            request_serializer=pb.CancelQueryRequest.SerializeToString,
            response_deserializer=pb.CancelQueryResponse.FromString,
        )
        asked = pb.CancelQueryRequest(request_id=request_id)
        answer = await call(asked, timeout=timeout_s + GRACE_S, metadata=connections.metadata())
    except aio.AioRpcError as failure:
        raise error_from_rpc(failure, writes=False) from None
    finally:
        link.release()
    return answer.result == pb.CANCEL_RESULT_CANCELLING
