"""Replies of a Multiplex stream, parsed only as far as every caller needs them.

The classes are made from the public messages, with some message fields turned into bytes: both have the same wire form
(a length and that many bytes). So a result's schema comes as the key under which its plan is found, a row's values are
read without an object for each part of the message, and receipts and errors stay bytes until somebody asks. Being
derived, the classes follow the public messages by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import types_pb2 as pb

AS_BYTES = {
    "ResultSet": {"schema", "batch"},
    "QueryResponse": {"receipt"},
    "ExecuteResponse": {"receipt"},
    "ExecuteBatchResponse": {"receipt"},
    "MultiplexReply": {"failure"},
}
"""Fields that are messages in the public types."""

_NEEDED = frozenset(AS_BYTES) | {"StepResult", "MultiplexResponse"}
_BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


class LazyResult(Protocol):
    """pointsman.v1.ResultSet, its schema (empty when the statement returns no rows) and its batch as bytes."""

    schema: bytes
    batch: bytes
    rows_affected: int
    command_tag: str
    truncated: bool
    notices: Sequence[pb.Notice]


class LazyAnswer(Protocol):
    """QueryResponse or ExecuteResponse."""

    result: LazyResult
    receipt: bytes


class LazyStep(Protocol):
    """StepResult."""

    result: LazyResult
    skipped: bool


class LazyBatch(Protocol):
    """ExecuteBatchResponse."""

    steps: Sequence[LazyStep]
    receipt: bytes


class Reply(Protocol):
    """MultiplexReply."""

    id: int
    query: LazyAnswer
    execute: LazyAnswer
    batch: LazyBatch
    failure: bytes

    def WhichOneof(self, oneof_group: str, /) -> str | None: ...


class Response(Protocol):
    """MultiplexResponse."""

    replies: Sequence[Reply]
    draining: bool


def _lazy_response() -> Any:
    pool = descriptor_pool.DescriptorPool()  # of its own: names in the default one are taken by the public types
    types, queries = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(types)
    query_pb.DESCRIPTOR.CopyToProto(queries)
    queries.ClearField("service")
    queries.dependency[:] = [types.name]
    kept = [message for message in queries.message_type if message.name in _NEEDED]
    del queries.message_type[:]
    queries.message_type.extend(kept)
    for message in [*types.message_type, *queries.message_type]:
        for field in message.field:
            if field.name in AS_BYTES.get(message.name, ()):
                field.type = _BYTES
                field.ClearField("type_name")
    pool.AddSerializedFile(types.SerializeToString())
    pool.AddSerializedFile(queries.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pointsman.v1.MultiplexResponse"))


_parse = _lazy_response().FromString


def parse_response(data: bytes) -> Response:
    """The response in a message of the stream."""
    return cast("Response", _parse(data))


def token_of(receipt: bytes) -> bytes:
    """The consistency token in a serialised Receipt; b"" without one.

    Where it stands as the router writes it (after the request's id, each shorter than 128 bytes), it is cut out.
    """
    at = 0
    if receipt[:1] == b"\x0a" and len(receipt) > 1 and receipt[1] < 0x80:
        at = 2 + receipt[1]
    if receipt[at : at + 1] == b"\x12" and len(receipt) > at + 1 and receipt[at + 1] < 0x80:
        return receipt[at + 2 : at + 2 + receipt[at + 1]]
    return pb.Receipt.FromString(receipt).token
