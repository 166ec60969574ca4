"""What callers ask for as calls, and replies as what callers get. Used from any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from pointsman.batches import StepLike, batch_bytes
from pointsman.calls import Call, error_of
from pointsman.errors import DeadlineExceeded, Error, SqlSyntaxError
from pointsman.options import (
    ANSWERS_ONLY,
    MAY_BE_BEHIND,
    WRITE_ONLY,
    BatchOptions,
    ReadOptions,
    StreamOptions,
    WriteOptions,
    put_options,
    seconds,
)
from pointsman.placeholders import hinted, statements_of
from pointsman.repeating import after_doubt
from pointsman.replies import Reply, token_of
from pointsman.results import BatchResults, Result, Rows, lazy_result, lazy_rows
from pointsman.tokens import TokenKeeper
from pointsman.v1 import query_service_pb2 as pb
from pointsman.wire import field, statement

QUERY, EXECUTE, BATCH = b"\x1a", b"\x22", b"\x2a"
"""The fields of MultiplexCall."""
STATEMENT = b"\x0a"
"""The statement's field in QueryRequest and ExecuteRequest."""


class Requests:
    """The calls of one client, with its default timeout and the newest token that it has seen."""

    def __init__(self, tokens: TokenKeeper, timeout_s: float) -> None:
        self._tokens = tokens
        self._timeout_s = timeout_s

    def read(self, sql: str, args: Sequence[Any], options: ReadOptions) -> Call:
        """A call for `rows`."""
        body = statement(STATEMENT, sql, args)
        tokens = self._tokens
        if not options:  # from the primary, which sees everything
            return Call(field(QUERY, body), self._timeout_s, False, True, tokens.version)
        request = pb.QueryRequest()
        self.put_read_options(request, options, "query")
        body += request.SerializeToString()
        return Call(field(QUERY, body), self.timeout_s(options), False, True, tokens.version)

    def write(self, sql: str, args: Sequence[Any], options: WriteOptions) -> Call:
        """A call for `result`."""
        body = statement(STATEMENT, sql, args)
        if not options:
            return Call(field(EXECUTE, body), self._timeout_s, True, False, self._tokens.version)
        request = pb.ExecuteRequest()
        put_options(request.options, options, "execute", WRITE_ONLY)
        request.request_id = options.get("request_id") or ""
        request.idempotency_key = options.get("idempotency_key") or ""
        body = field(EXECUTE, body + request.SerializeToString())
        return Call(body, self.timeout_s(options), True, bool(request.idempotency_key), self._tokens.version)

    def batch(self, steps: Sequence[StepLike], options: BatchOptions) -> Call:
        """A call for `results`."""
        writes = not options.get("read_only")
        replayable = not writes or bool(options.get("idempotency_key"))
        body = field(BATCH, batch_bytes(steps, options))
        return Call(body, self.timeout_s(options), writes, replayable, self._tokens.version)

    def rows(self, call: Call, reply: Reply) -> Rows:
        """What a read gave. Error when it failed."""
        if reply.WhichOneof("reply") != "query":
            raise self._failed(call, reply)
        answer = reply.query
        receipt = answer.receipt
        self._keep(receipt, call)
        return lazy_rows(answer.result, receipt)

    def result(self, call: Call, reply: Reply) -> Result:
        """What a write did. Error when it failed."""
        if reply.WhichOneof("reply") != "execute":
            raise self._failed(call, reply)
        answer = reply.execute
        receipt = answer.receipt
        self._keep(receipt, call)
        return lazy_result(answer.result, receipt)

    def results(self, call: Call, reply: Reply) -> BatchResults:
        """What a batch did. Error when it failed."""
        if reply.WhichOneof("reply") != "batch":
            raise self._failed(call, reply)
        answer = reply.batch
        receipt = answer.receipt
        self._keep(receipt, call)
        steps = (lazy_result(step.result, receipt, skipped=step.skipped) for step in answer.steps)
        return BatchResults(steps, receipt)

    def timeout_s(self, options: Mapping[str, Any]) -> float:
        """The timeout among a call's options, or the default."""
        timeout = options.get("timeout")
        return self._timeout_s if timeout is None else seconds("timeout", timeout)

    def put_read_options(
        self,
        request: pb.QueryRequest | pb.StreamQueryRequest | pb.CopyOutRequest,
        options: ReadOptions | StreamOptions,
        method: str,
    ) -> None:
        """Writes the options of a read, and the newest token where a replica might be behind it."""
        if options:
            put_options(request.options, options, method, without=frozenset() if method == "query" else ANSWERS_ONLY)
            request.request_id = options.get("request_id") or ""
        if self._tokens.enabled and self._tokens.value and options.get("read") in MAY_BE_BEHIND:
            request.options.after_token = self._tokens.value

    def _failed(self, call: Call, reply: Reply) -> Error:
        error = self._tokens.told(error_of(reply.failure, writes=call.writes), call.seen)
        if isinstance(error, SqlSyntaxError):
            hinted(error, statements_of(call.body))
        if isinstance(error, DeadlineExceeded):
            error.message += f" (after {monotonic() - call.deadline + call.timeout_s:.1f} s)"
        return after_doubt(error) if call.doubt else error

    def _keep(self, receipt: bytes, call: Call) -> None:
        token = token_of(receipt)
        if token:
            self._tokens.keep(token, call.seen)
