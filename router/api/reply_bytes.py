"""The answer to a read straight to wire bytes, for results that are small, as most are.

Filling a QueryResponse message costs more than everything else an answer needs; its bytes are known without one. What
is not small, or has notices, or limits of its own, goes the message's way (answering.py), which this must equal:
a test compares them for all kinds of results. Encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Protocol

from pointsman.wire import field, text_field, varint

from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import RouteReason
from router.model.result import Cells, Receipt, StatementResult
from router.model.topology import Role

# Field numbers of protos/pointsman/v1, in the tag bytes (number << 3 | wire type).
_RESULT, _RECEIPT = b"\x0a", b"\x12"
_ROWS_AFFECTED, _COMMAND_TAG = b"\x18", b"\x22"
_REQUEST_ID, _ENDPOINT, _ROUTE_REASON = b"\x0a", b"\x1a", b"\x5a"
_ROLE, _TOPOLOGY, _ATTEMPTS, _QUEUED, _HELD, _EXECUTED = b"\x20", b"\x28", b"\x30", b"\x40", b"\x48", b"\x50"
_TOKEN = b"\x12"
_ROLES = {Role.UNKNOWN: 0, Role.PRIMARY: 1, Role.REPLICA: 2}
_KEPT = 1024


class SmallResults(Protocol):
    """The part of the encoder that this file needs."""

    def result_bytes(self, cells: Cells) -> bytes | None: ...


class _Way:
    """The fields of a receipt that say where: the same for a great many answers."""

    __slots__ = ("field", "reason", "role", "topology")

    def __init__(self, receipt: Receipt) -> None:
        self.role: Role = receipt.role
        self.topology: TopologyNumber = receipt.topology
        self.reason: RouteReason = receipt.route_reason
        self.field = (
            text_field(_ENDPOINT, receipt.endpoint)
            + _number(_ROLE, _ROLES[receipt.role])
            + _number(_TOPOLOGY, receipt.topology)
            + text_field(_ROUTE_REASON, receipt.route_reason.value)
        )


class ReplyBytes:
    """Makes serialised QueryResponse messages. Belongs to the event loop."""

    def __init__(self, encoder: SmallResults) -> None:
        self._encoder = encoder
        self._ways: dict[EndpointName, _Way] = {}
        self._tags: dict[tuple[str, int], bytes] = {}

    def query_response(self, result: StatementResult, receipt: Receipt, max_bytes: int) -> bytes | None:
        """A QueryResponse; None when the result is not small, or may take more than max_bytes."""
        if result.cells is None or result.notices:
            return None
        rows = self._encoder.result_bytes(result.cells)
        if rows is None or len(rows) > max_bytes:
            return None
        found = rows + self._tag(result)
        return field(_RESULT, found) + field(_RECEIPT, self.receipt(receipt))

    def _tag(self, result: StatementResult) -> bytes:
        key = (result.command_tag, result.rows_affected)
        known = self._tags.get(key)
        if known is None:
            if len(self._tags) >= _KEPT:
                self._tags.clear()
            known = self._tags[key] = _number(_ROWS_AFFECTED, key[1]) + text_field(_COMMAND_TAG, key[0])
        return known

    def receipt(self, receipt: Receipt) -> bytes:
        """A serialised Receipt."""
        way = self._ways.get(receipt.endpoint)
        if (
            way is None
            or way.topology != receipt.topology
            or way.role is not receipt.role
            or way.reason is not receipt.route_reason
        ):
            if len(self._ways) >= _KEPT:
                self._ways.clear()
            way = self._ways[receipt.endpoint] = _Way(receipt)
        found = text_field(_REQUEST_ID, receipt.request_id) + way.field + _number(_ATTEMPTS, receipt.attempts)
        if receipt.queued_s > 0:
            found += _number(_QUEUED, int(receipt.queued_s * 1e6))
        if receipt.held_s > 0:
            found += _number(_HELD, int(receipt.held_s * 1e6))
        if receipt.executed_s > 0:
            found += _number(_EXECUTED, int(receipt.executed_s * 1e6))
        if receipt.token:
            found += field(_TOKEN, receipt.token)
        return found


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""
