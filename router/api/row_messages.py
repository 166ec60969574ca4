"""Runs of rows as StreamQuery's messages, serialised."""

from __future__ import annotations

from collections.abc import Iterator

from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.results import ResultEncoder
from router.model.result import Cells

PIECE_BYTES = 64 << 10
"""A run that is too long for a message is cut into pieces of about this many bytes."""
MAX_MESSAGE_BYTES = 256 << 10
"""Beyond, a message is cut, if it has more than one row. What the engine takes for a run is seldom above 128 KiB."""


def row_messages(encoder: ResultEncoder, cells: Cells, schema: types_pb2.ResultSchema | None = None) -> Iterator[bytes]:
    """StreamQueryResponses with all rows, in their order; schema goes into the first of them."""
    ranges = [(0, cells.ntuples)]
    while ranges:
        first, last = ranges.pop()
        message = pb.StreamQueryResponse()
        encoder.encode_into(message.batch, cells, first, last)
        if schema is not None:
            message.schema.CopyFrom(schema)
        raw = message.SerializeToString()
        if len(raw) > MAX_MESSAGE_BYTES and last - first > 1:
            # Only now is it known how long the rows are: to measure every run before would cost all streams.
            step = max(1, (last - first) * PIECE_BYTES // len(raw))
            ranges += [(start, min(start + step, last)) for start in reversed(range(first, last, step))]
            continue
        schema = None
        yield raw
