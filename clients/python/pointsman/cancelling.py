"""Stops a request of this tenant by its id."""

from __future__ import annotations

from pointsman.connection import Connections
from pointsman.unary import ask_until
from pointsman.v1 import query_service_pb2 as pb

METHOD = "/pointsman.v1.QueryService/CancelQuery"


async def cancel(connections: Connections, request_id: str, timeout_s: float) -> bool:
    """True when it was running and has been asked to stop. Error when the router cannot be asked."""
    asked = pb.CancelQueryRequest(request_id=request_id)
    answer = await ask_until(connections, METHOD, lambda _: asked, pb.CancelQueryResponse, timeout_s)
    return answer.result == pb.CANCEL_RESULT_CANCELLING
