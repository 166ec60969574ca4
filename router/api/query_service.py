"""QueryService: translate, run, answer. The wrapper in calls.py has proved the tenant before these are called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from pointsman.v1 import query_service_pb2 as pb

from router.api import translate
from router.api.answering import Answering
from router.api.calls import Call
from router.api.copying import Copying
from router.api.hearing import Hearing
from router.api.message_stream import MessageStream
from router.api.multiplex import Multiplexing
from router.api.results import write_receipt
from router.api.surface import Outcomes
from router.model.errors import bad_request
from router.model.identity import TenantName
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, WriteOutcome
from router.model.topology import Tenant

TenantCall = Call[Tenant]
CancelElsewhere = Callable[[TenantName, str], Awaitable[CancelOutcome]]
"""Asks the other processes of this router to cancel a request, by its tenant and id."""

_CANCEL_RESULTS = {
    CancelOutcome.CANCELLING: pb.CANCEL_RESULT_CANCELLING,
    CancelOutcome.NOT_FOUND: pb.CANCEL_RESULT_NOT_FOUND,
    CancelOutcome.NOT_CANCELLABLE: pb.CANCEL_RESULT_NOT_CANCELLABLE,
}

_OUTCOMES = {
    WriteOutcome.COMMITTED: pb.WRITE_OUTCOME_COMMITTED,
    WriteOutcome.NOT_FOUND: pb.WRITE_OUTCOME_NOT_FOUND,
    WriteOutcome.RUNNING: pb.WRITE_OUTCOME_RUNNING,
    WriteOutcome.UNKNOWN: pb.WRITE_OUTCOME_UNKNOWN,
}


class QueryService:
    """pointsman.v1.QueryService."""

    def __init__(
        self,
        answering: Answering,
        multiplexing: Multiplexing,
        copying: Copying,
        hearing: Hearing,
        outcomes: Outcomes,
        cancel_elsewhere: CancelElsewhere | None = None,
    ) -> None:
        self._answering = answering
        self._copying = copying
        self._hearing = hearing
        self._outcomes = outcomes
        self._multiplexing = multiplexing
        self._cancel_elsewhere = cancel_elsewhere

    async def query(self, call: TenantCall, message: pb.QueryRequest) -> bytes:
        """One read; a serialised QueryResponse."""
        deadline = call.deadline(call.caller.policy, message.options.timeout_ms)
        request = translate.query_request(message, deadline, self._answering.request_id(message.request_id))
        call.present_token(request)
        call.counted = True
        return await self._answering.query(call.caller, request, call)

    async def stream_query(
        self, call: TenantCall, message: pb.StreamQueryRequest
    ) -> AsyncGenerator[bytes, None]:
        """One read of any size; serialised StreamQueryResponses."""
        deadline = call.deadline(call.caller.policy, message.options.timeout_ms)
        request = translate.stream_request(message, deadline, self._answering.request_id(message.request_id))
        call.present_token(request)
        call.counted = True
        async with aclosing(self._answering.stream(call.caller, request, call)) as responses:
            async for response in responses:
                yield response

    async def execute(self, call: TenantCall, message: pb.ExecuteRequest) -> bytes:
        """One write; a serialised ExecuteResponse."""
        deadline = call.deadline(call.caller.policy, message.options.timeout_ms)
        request = translate.execute_request(message, deadline, self._answering.request_id(message.request_id))
        call.present_token(request)
        call.counted = True
        return await self._answering.execute(call.caller, request, call)

    async def execute_batch(self, call: TenantCall, message: pb.ExecuteBatchRequest) -> bytes:
        """One transaction in one message; a serialised ExecuteBatchResponse."""
        deadline = call.deadline(call.caller.policy, message.options.timeout_ms)
        request = translate.batch_request(message, deadline, self._answering.request_id(message.request_id))
        call.present_token(request)
        call.counted = True
        return await self._answering.batch(call.caller, request, call)

    async def multiplex(
        self, call: TenantCall, stream: MessageStream[pb.MultiplexRequest]
    ) -> None:
        """Many requests over one stream."""
        call.counted = True
        await self._multiplexing.serve(call, stream)

    async def copy_out(self, call: TenantCall, message: pb.CopyOutRequest) -> AsyncGenerator[bytes, None]:
        """A table, or what a query returns, as COPY data; serialised CopyOutResponses."""
        async with aclosing(self._copying.out(call, message)) as responses:
            async for response in responses:
                yield response

    async def copy_in(self, call: TenantCall, stream: MessageStream[pb.CopyInRequest]) -> pb.CopyInResponse:
        """COPY data into a table, as a whole or not at all."""
        return await self._copying.into(call, stream)

    async def listen(self, call: TenantCall, message: pb.ListenRequest) -> AsyncGenerator[pb.ListenResponse, None]:
        """What others NOTIFY on these channels."""
        async with aclosing(self._hearing.listen(call, message)) as responses:
            async for response in responses:
                yield response

    async def cancel_query(self, call: TenantCall, message: pb.CancelQueryRequest) -> pb.CancelQueryResponse:
        """Stop a running request of the same tenant, if it can be stopped."""
        outcome = self._answering.executor.cancel(call.caller.name, message.request_id)
        if outcome is CancelOutcome.NOT_FOUND and self._cancel_elsewhere is not None:
            outcome = await self._cancel_elsewhere(call.caller.name, message.request_id)
        return pb.CancelQueryResponse(result=_CANCEL_RESULTS[outcome])

    async def get_outcome(self, call: TenantCall, message: pb.GetOutcomeRequest) -> pb.GetOutcomeResponse:
        """What became of a write, as far as anybody can tell."""
        deadline = call.deadline(call.caller.policy, message.timeout_ms)
        match message.WhichOneof("of"):
            case "idempotency_key":
                key = translate.idempotency_key(message.idempotency_key)
                if not key:
                    raise bad_request(RefuseReason.BAD_REQUEST, "the idempotency key is empty")
                call.counted = True
                found = await self._outcomes.of_key(call.caller, key, deadline, self._answering.request_id(""))
            case "request_id":
                request_id = translate.request_id_from(message.request_id)
                found = await self._outcomes.of_request(call.caller, request_id, deadline)
            case _:
                raise bad_request(RefuseReason.BAD_REQUEST, "name the write by idempotency_key or by request_id")
        response = pb.GetOutcomeResponse(
            outcome=_OUTCOMES[found.outcome], created_at_us=found.created_at_us, command_tags=found.command_tags
        )
        write_receipt(found.receipt, response.receipt)
        return response
