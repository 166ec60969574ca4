"""From a request's message to its answer's message, through the engine: shared by the unary RPCs and Multiplex."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from pointsman.v1 import query_service_pb2 as pb

from router.api import translate
from router.api.reply_bytes import ReplyBytes
from router.api.results import (
    MAX_RESULT_BYTES,
    ResultEncoder,
    ResultWriter,
    WhenTooLarge,
    limits_from,
    notices,
    write_receipt,
)
from router.api.row_messages import row_messages
from router.api.surface import Executor
from router.model.errors import Code, Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import DEFAULT_OPTIONS, Options, Request
from router.model.result import Answer, StatementResult
from router.model.topology import Tenant
from router.ports import Chance


class TokenTaker(Protocol):
    """Wants the token of an answer besides its message."""

    token: bytes


class Answering:
    """Runs translated requests and makes messages of their answers."""

    def __init__(self, executor: Executor, encoder: ResultEncoder, chance: Chance) -> None:
        self.executor = executor
        self._encoder = encoder
        self._replies = ReplyBytes(encoder)
        self._chance = chance

    def request_id(self, chosen: str) -> str:
        """The caller's request id, or a new one that nobody can guess."""
        return translate.request_id_from(chosen) or self._chance.identifier()

    async def query(self, tenant: Tenant, request: Request, taker: TokenTaker | None = None) -> bytes:
        """Run a read; a serialised QueryResponse."""
        return self.query_bytes(tenant, request, await self._run(tenant, request, taker))

    async def _run(self, tenant: Tenant, request: Request, taker: TokenTaker | None) -> Answer:
        answer = await self.executor.run(tenant, request)
        if taker is not None:
            taker.token = answer.receipt.token
        return answer

    def query_bytes(self, tenant: Tenant, request: Request, answer: Answer) -> bytes:
        """A serialised QueryResponse. RouterError RESULT_TOO_LARGE."""
        quick = self._quick(tenant, request, answer)
        if quick is not None:
            return quick
        response = pb.QueryResponse()
        self._fill_single(answer, response, self._writer(tenant, request.options, WhenTooLarge.REFUSE))
        return response.SerializeToString()

    def _quick(self, tenant: Tenant, request: Request, answer: Answer) -> bytes | None:
        if request.options is not DEFAULT_OPTIONS:
            return None
        most = min(tenant.policy.max_result_bytes, MAX_RESULT_BYTES)
        return self._replies.response(_only_result(answer), answer.receipt, most)

    async def execute(self, tenant: Tenant, request: Request, taker: TokenTaker | None = None) -> bytes:
        """Run a write; a serialised ExecuteResponse."""
        answer = await self._run(tenant, request, taker)
        quick = self._quick(tenant, request, answer)
        if quick is not None:
            return quick
        response = pb.ExecuteResponse()
        self._fill_single(answer, response, self._writer(tenant, request.options, WhenTooLarge.TRUNCATE))
        return response.SerializeToString()

    async def batch(self, tenant: Tenant, request: Request, taker: TokenTaker | None = None) -> bytes:
        """Run a transaction in one message; a serialised ExecuteBatchResponse."""
        answer = await self._run(tenant, request, taker)
        if request.options is DEFAULT_OPTIONS:
            steps = zip(answer.results, [step.want_rows for step in request.steps], strict=True)
            most = min(tenant.policy.max_result_bytes, MAX_RESULT_BYTES)
            quick = self._replies.batch_response(steps, answer.receipt, most)
            if quick is not None:
                return quick
        writer = self._writer(tenant, request.options, WhenTooLarge.TRUNCATE)
        response = pb.ExecuteBatchResponse()
        for step, result in zip(request.steps, answer.results, strict=True):
            message = response.steps.add()
            if result is None:
                message.skipped = True
            else:
                writer.write(result, message.result, rows=step.want_rows)
        write_receipt(answer.receipt, response.receipt)
        return response.SerializeToString()

    async def stream(
        self, tenant: Tenant, request: Request, taker: TokenTaker | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Run a read whose rows leave as they come: serialised StreamQueryResponses.

        The first message holds the columns, the last one the end.
        """
        rows = 0
        schema_sent = False
        async with aclosing(self.executor.stream(tenant, request)) as items:
            async for item in items:
                if isinstance(item, Answer):
                    if taker is not None:
                        taker.token = item.receipt.token
                    yield self._stream_end(item, rows, schema_sent=schema_sent)
                    return
                rows += item.ntuples
                schema = None if schema_sent else self._encoder.encode_schema(item)
                schema_sent = True
                for message in row_messages(self._encoder, item, schema):
                    yield message
        raise _no_answer()

    def _stream_end(self, answer: Answer, rows: int, *, schema_sent: bool) -> bytes:
        result = _only_result(answer)
        message = pb.StreamQueryResponse()
        if not schema_sent and result.cells is not None:
            message.schema.CopyFrom(self._encoder.encode_schema(result.cells))
        message.end.command_tag = result.command_tag
        message.end.rows = rows
        message.end.notices.extend(notices(result.notices))
        write_receipt(answer.receipt, message.end.receipt)
        return message.SerializeToString()

    def _fill_single(
        self, answer: Answer, response: pb.QueryResponse | pb.ExecuteResponse, writer: ResultWriter
    ) -> None:
        writer.write(_only_result(answer), response.result)
        write_receipt(answer.receipt, response.receipt)

    def _writer(self, tenant: Tenant, options: Options, when_too_large: WhenTooLarge) -> ResultWriter:
        return ResultWriter(self._encoder, limits_from(options, tenant.policy), when_too_large)


def _only_result(answer: Answer) -> StatementResult:
    result = answer.results[0] if len(answer.results) == 1 else None
    if result is None:
        raise _no_answer()
    return result


def _no_answer() -> RouterError:
    return RouterError(
        Code.INTERNAL, RefuseReason.INTERNAL, "the router lost the result of the statement", executed=Executed.MAYBE
    )
