"""CopyOut and CopyIn: messages to a request, and its data to and from messages, without a look at any row."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pointsman.v1 import query_service_pb2 as pb
from pointsman.wire import field

from router.api import translate
from router.api.calls import Call
from router.api.message_stream import MessageStream
from router.api.results import notices, write_receipt
from router.api.surface import Copies
from router.model.copying import CopyAnswer, CopyEncoding, CopyFormat, CopyLayout, CopySource, CopyTable
from router.model.errors import Code, Executed, RouterError, bad_request
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import DEFAULT_OPTIONS, BatchStep, Method, Request, Statement
from router.model.topology import Tenant
from router.ports import Chance

MAX_DATA_BYTES = 1 << 20
"""Of one message of CopyIn."""
MAX_COLUMNS = 1600
"""PostgreSQL's own limit."""
_MAX_NAME_BYTES = 63
_MAX_NULL_BYTES = 1000
_DATA_TAG = bytes([pb.CopyOutResponse.DATA_FIELD_NUMBER << 3 | 2])

_FORMATS = {0: CopyFormat.TEXT, 1: CopyFormat.TEXT, 2: CopyFormat.CSV, 3: CopyFormat.BINARY}
_FORMAT_MESSAGES = {
    CopyFormat.TEXT: pb.COPY_FORMAT_TEXT,
    CopyFormat.CSV: pb.COPY_FORMAT_CSV,
    CopyFormat.BINARY: pb.COPY_FORMAT_BINARY,
}

TenantCall = Call[Tenant]


class Copying:
    """What QueryService does for the two RPCs."""

    def __init__(self, copies: Copies, chance: Chance) -> None:
        self._copies = copies
        self._chance = chance

    async def out(self, call: TenantCall, message: pb.CopyOutRequest) -> AsyncGenerator[bytes, None]:
        """Serialised CopyOutResponses: the start, data as it comes, the end."""
        deadline = call.deadline(call.caller.policy, _timeout_ms(message.options.timeout_ms, call.caller.policy))
        request = out_request(message, deadline, self._request_id(message.request_id))
        call.present_token(request)
        call.counted = True
        async with aclosing(self._copies.copy_out(call.caller, request)) as items:
            async for item in items:
                match item:
                    case bytes():
                        yield field(_DATA_TAG, item)
                    case CopyLayout():
                        start = pb.CopyOutStart(format=_format_message(message), columns=item.columns)
                        yield pb.CopyOutResponse(start=start).SerializeToString()
                    case CopyAnswer():
                        end = pb.CopyOutEnd()
                        _write_answer(item, end)
                        call.token = item.receipt.token
                        yield pb.CopyOutResponse(end=end).SerializeToString()

    async def into(self, call: TenantCall, stream: MessageStream[pb.CopyInRequest]) -> pb.CopyInResponse:
        """Fill a table from the caller's messages."""
        first = await stream.read()
        if first is None or first.WhichOneof("event") != "start":
            raise bad_request(RefuseReason.BAD_REQUEST, "the first message of CopyIn must be its start")
        start = first.start
        deadline = call.deadline(call.caller.policy, _timeout_ms(start.options.timeout_ms, call.caller.policy))
        request = in_request(start, deadline, self._request_id(start.request_id))
        call.counted = True
        async with aclosing(_data_of(stream)) as source:
            answer = await self._copies.copy_in(call.caller, request, source)
        call.token = answer.receipt.token
        response = pb.CopyInResponse()
        _write_answer(answer, response)
        return response

    def _request_id(self, chosen: str) -> str:
        return translate.request_id_from(chosen) or self._chance.identifier()


async def _data_of(stream: MessageStream[pb.CopyInRequest]) -> AsyncGenerator[bytes, None]:
    """The caller's data; ends with its end message, and with RouterError when that does not come."""
    await stream.let_in()  # PostgreSQL takes data: a caller may wait for this before it touches its source
    got = 0
    while (message := await stream.read()) is not None:
        event = message.WhichOneof("event")
        if event == "end":
            if message.end.HasField("bytes") and message.end.bytes != got:
                raise bad_request(
                    RefuseReason.BAD_REQUEST,
                    f"the end of the copy says {message.end.bytes} bytes of data, {got} have come; nothing was kept",
                    bytes=got,
                )
            return
        if event != "data":
            raise bad_request(RefuseReason.BAD_REQUEST, "after its start a CopyIn has data, then its end")
        data = message.data
        if len(data) > MAX_DATA_BYTES:
            raise bad_request(
                RefuseReason.MESSAGE_TOO_LARGE,
                f"the message has {len(data)} bytes of data, the limit is {MAX_DATA_BYTES}: cut the data anywhere",
                bytes=len(data),
                limit=MAX_DATA_BYTES,
            )
        got += len(data)
        if data:
            yield data
    # A half-close looks like a caller that went away: only the end message is a wish to keep what came.
    raise RouterError(
        Code.CANCELLED,
        RefuseReason.CANCELLED,
        "the stream ended without the end message of the copy; nothing was kept",
        executed=Executed.ROLLED_BACK,
    )


def out_request(message: pb.CopyOutRequest, deadline: float, request_id: str) -> Request:
    """A CopyOut as the engine takes it; RouterError INVALID_ARGUMENT when it makes no sense."""
    encoding = _encoding(message.encoding)
    query = b""
    match message.WhichOneof("source"):
        case "table":
            source = CopySource(_table(message.table))
        case "query":
            query = _query(message.query)
            source = CopySource(query=query)
        case _:
            raise bad_request(RefuseReason.STATEMENT_MISSING, "the copy names no table and no query")
    return _request(Method.COPY_OUT, source.out_sql(encoding), message, deadline, request_id, query)


def in_request(start: pb.CopyInStart, deadline: float, request_id: str) -> Request:
    """The same of a CopyIn."""
    if not start.HasField("table"):
        raise bad_request(RefuseReason.STATEMENT_MISSING, "the copy names no table")
    sql = CopySource(_table(start.table)).in_sql(_encoding(start.encoding))
    request = _request(Method.COPY_IN, sql, start, deadline, request_id)
    request.idempotency_key = translate.idempotency_key(start.idempotency_key)
    return request


def _request(
    method: Method,
    sql: bytes,
    message: pb.CopyOutRequest | pb.CopyInStart,
    deadline: float,
    request_id: str,
    query: bytes = b"",
) -> Request:
    return Request(
        method=method,
        steps=(BatchStep(Statement(sql)),),
        deadline=deadline,
        options=translate.options_from(message.options) if message.HasField("options") else DEFAULT_OPTIONS,
        request_id=request_id,
        size_bytes=len(sql),
        nested_query=query,
        after=translate.after_from(message.options),
    )


def _timeout_ms(wished_ms: int, policy: TenantPolicy) -> int:
    """Without a wish the longest time that the tenant allows: what is copied is large."""
    return wished_ms or int(policy.max_timeout_s * 1000)


def _query(text: str) -> bytes:
    query = text.strip().rstrip("; \t\r\n")
    if not query:
        raise bad_request(RefuseReason.STATEMENT_MISSING, "the copy's query is empty")
    return query.encode()


def _table(message: pb.CopyTable) -> CopyTable:
    if len(message.columns) > MAX_COLUMNS:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"the copy names {len(message.columns)} columns, a table has at most {MAX_COLUMNS}",
            limit=MAX_COLUMNS,
        )
    columns = tuple(_name(column, "table.columns") for column in message.columns)
    schema = _name(message.schema, "table.schema") if message.schema else ""
    return CopyTable(_name(message.name, "table.name"), schema, columns)


def _name(name: str, field: str) -> str:
    # PostgreSQL would cut a longer one off, and mean another table.
    if not name or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"{field} must have 1 to {_MAX_NAME_BYTES} bytes and no NUL character",
            limit=_MAX_NAME_BYTES,
        )
    return name


def _encoding(message: pb.CopyEncoding) -> CopyEncoding:
    form = _FORMATS.get(message.format)
    if form is None:
        known = ", ".join(pb.CopyFormat.keys()[1:])
        raise bad_request(
            RefuseReason.BAD_REQUEST, f"encoding.format has the unknown value {message.format}; known are {known}"
        )
    null_text = message.null_text if message.HasField("null_text") else None
    chosen = message.header or message.delimiter or message.quote or null_text is not None
    if form is CopyFormat.BINARY and chosen:
        raise bad_request(
            RefuseReason.BAD_REQUEST, "the binary format has no header, delimiter, null_text or quote"
        )
    if message.quote and form is not CopyFormat.CSV:
        raise bad_request(RefuseReason.BAD_REQUEST, "encoding.quote is for the CSV format")
    if null_text is not None and (len(null_text.encode()) > _MAX_NULL_BYTES or "\0" in null_text):
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"encoding.null_text must have at most {_MAX_NULL_BYTES} bytes and no NUL character",
            limit=_MAX_NULL_BYTES,
        )
    delimiter, quote = _one_byte(message.delimiter, "delimiter"), _one_byte(message.quote, "quote")
    return CopyEncoding(form, message.header, delimiter, null_text, quote)


def _one_byte(text: str, field: str) -> str:
    if text and (len(text.encode()) != 1 or text in "\0\r\n"):
        raise bad_request(
            RefuseReason.BAD_REQUEST, f"encoding.{field} must be one character of one byte, and no line end"
        )
    return text


def _format_message(message: pb.CopyOutRequest) -> pb.CopyFormat.ValueType:
    return _FORMAT_MESSAGES[_FORMATS[message.encoding.format]]


def _write_answer(answer: CopyAnswer, target: pb.CopyOutEnd | pb.CopyInResponse) -> None:
    target.rows = answer.rows
    target.bytes = answer.size_bytes
    target.command_tag = answer.command_tag
    target.notices.extend(notices(answer.notices))
    write_receipt(answer.receipt, target.receipt)
