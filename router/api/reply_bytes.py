"""Answers straight to wire bytes, for results that are small, as most are.

Filling a response message costs more than everything else an answer needs; its bytes are known without one. What
is not small, or has notices, or limits of its own, goes the message's way (answering.py), which this must equal:
a test compares them for all kinds of results. Encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pointsman.wire import field, text_field, varint

from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import RouteReason
from router.model.result import Cells, Durability, Receipt, StatementResult
from router.model.stored_cells import StoredCells
from router.model.topology import Role

# Field numbers of protos/pointsman/v1, in the tag bytes (number << 3 | wire type).
_RESULT, _RECEIPT = b"\x0a", b"\x12"
_ROWS_AFFECTED, _COMMAND_TAG = b"\x18", b"\x22"
_REQUEST_ID, _ENDPOINT, _ROUTE_REASON = b"\x0a", b"\x1a", b"\x5a"
_ROLE, _TOPOLOGY, _ATTEMPTS, _QUEUED, _HELD, _EXECUTED = b"\x20", b"\x28", b"\x30", b"\x40", b"\x48", b"\x50"
_TOKEN, _REPLAYED, _DURABILITY, _HEDGED = b"\x12", b"\x38\x01", b"\x60", b"\x68\x01"
_STEP, _SKIPPED = b"\x0a", b"\x0a\x02\x10\x01"
_ROLES = {Role.UNKNOWN: 0, Role.PRIMARY: 1, Role.REPLICA: 2}
_DURABILITIES = {
    Durability.UNKNOWN: b"",
    Durability.LOCAL: _DURABILITY + b"\x01",
    Durability.STANDBY_WRITTEN: _DURABILITY + b"\x02",
    Durability.STANDBY_FLUSHED: _DURABILITY + b"\x03",
    Durability.STANDBY_APPLIED: _DURABILITY + b"\x04",
}
_KEPT = 1024


class SmallResults(Protocol):
    """The part of the encoder that this file needs."""

    def result_bytes(self, cells: Cells) -> bytes | None: ...


class _Way:
    """The fields of a receipt that say where: the same for a great many answers."""

    __slots__ = ("field", "once", "reason", "role", "topology")

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
        self.once = self.field + _number(_ATTEMPTS, 1)
        """With the first attempt's number, as nearly all have it."""


class ReplyBytes:
    """Makes serialised responses. Belongs to the event loop."""

    def __init__(self, encoder: SmallResults) -> None:
        self._encoder = encoder
        self._ways: dict[EndpointName, _Way] = {}
        self._tags: dict[tuple[str, int], bytes] = {}

    def response(self, result: StatementResult, receipt: Receipt, max_bytes: int) -> bytes | None:
        """A QueryResponse or ExecuteResponse; None when the result is not small, or may take more than max_bytes."""
        found = self._result(result, max_bytes, rows=True)
        return None if found is None else field(_RESULT, found) + field(_RECEIPT, self.receipt(receipt))

    def batch_response(
        self, steps: Iterable[tuple[StatementResult | None, bool]], receipt: Receipt, max_bytes: int
    ) -> bytes | None:
        """An ExecuteBatchResponse of each step's result (None: it was skipped) and whether its rows are wanted; None as
        for response."""
        parts = []
        for result, rows in steps:
            if result is None:
                parts.append(_SKIPPED)
                continue
            found = self._result(result, max_bytes, rows=rows)
            if found is None:
                return None
            max_bytes -= len(found)
            parts.append(field(_STEP, field(_RESULT, found)))
        parts.append(field(_RECEIPT, self.receipt(receipt)))
        return b"".join(parts)

    def _result(self, result: StatementResult, max_bytes: int, *, rows: bool) -> bytes | None:
        cells = result.cells
        if result.notices or isinstance(cells, StoredCells):
            return None
        if cells is None or not rows:
            return self._tag(result)
        found = self._encoder.result_bytes(cells)
        if found is None or len(found) > max_bytes:
            return None
        return found + self._tag(result)

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
        found = text_field(_REQUEST_ID, receipt.request_id)
        if receipt.token:
            found += field(_TOKEN, receipt.token)  # in its place by number: where clients look for it first
        attempts = receipt.attempts
        found += way.once if attempts == 1 else way.field + _number(_ATTEMPTS, attempts)
        if (micros := int(receipt.queued_s * 1e6)) > 0:
            found += _QUEUED + varint(micros)
        if (micros := int(receipt.held_s * 1e6)) > 0:
            found += _HELD + varint(micros)
        if (micros := int(receipt.executed_s * 1e6)) > 0:
            found += _EXECUTED + varint(micros)
        if receipt.replayed:
            found += _REPLAYED
        if receipt.hedged:
            found += _HEDGED
        durability = receipt.durability
        return found if durability is Durability.UNKNOWN else found + _DURABILITIES[durability]


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""
