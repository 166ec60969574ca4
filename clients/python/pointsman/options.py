"""The options of a call: checked, and written into the protocol's messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import grpc

from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import types_pb2 as pb

ReadPreference = Literal["primary", "replica", "any"]
Isolation = Literal["read committed", "repeatable read", "serializable"]

MAX_TIMEOUT_S = 4_000_000.0
"""About what fits the protocol's milliseconds in 32 bits."""


class CallOptions(TypedDict, total=False):
    """What every call takes.

    timeout      seconds for the whole call; None means the client's default
    on_failover  "wait" (default) or "fail": whether the call may wait for a failover to end
    priority     "low", "medium" (default), "high"
    tag          at most 64 printable characters, shown in the router's logs
    request_id   16 to 64 characters, names the call for `cancel()`
    """

    timeout: float | None
    on_failover: Literal["wait", "fail"] | None
    priority: Literal["low", "medium", "high"] | None
    tag: str | None
    request_id: str | None


class AnswerOptions(TypedDict, total=False):
    """What calls take besides whose answer comes as a whole. Streams and copies have no use for it.

    max_rows   more rows are refused for a read, cut off for a write
    max_bytes  the same in bytes
    """

    max_rows: int | None
    max_bytes: int | None


class StreamOptions(CallOptions, total=False):
    """What reads take besides, also those that come in pieces.

    read           "primary" (default), "replica", "any"
    max_staleness  seconds a replica may be behind
    fallback       "primary" (default) or "fail": what a replica read does without an eligible replica
    hedge          True: a query that takes longer than usual is asked of a second endpoint, too; the first answer
                   counts. It changes nothing for streams and copies
    """

    read: ReadPreference | None
    max_staleness: float | None
    fallback: Literal["primary", "fail"] | None
    hedge: bool | None


class ReadOptions(StreamOptions, AnswerOptions, total=False):
    """What queries take."""


class KeyedOptions(CallOptions, total=False):
    """What writes take besides, also copies.

    idempotency_key  makes the write exactly-once, best a UUID of your own that outlives this process: whoever sends the
                     same write with the same key gets the first answer (receipt.replayed). It is repeated until its
                     deadline whenever its outcome is unknown or the router cannot be reached
    idempotent       True: the same with a key made for this call
    """

    idempotency_key: str | None
    idempotent: bool


class WriteOptions(KeyedOptions, AnswerOptions, total=False):
    """What writes take whose answer may hold rows."""


class BatchOptions(WriteOptions, total=False):
    """What batches take besides."""

    isolation: Isolation | None
    read_only: bool
    deferrable: bool


def _choice(field: str, values: dict[str, int]) -> Callable[[pb.QueryOptions, Any], None]:
    def put(message: pb.QueryOptions, value: Any) -> None:
        try:
            setattr(message, field, values[value])
        except (KeyError, TypeError):
            known = ", ".join(repr(name) for name in values)
            raise ValueError(f"{field} must be one of {known}, not {value!r}") from None

    return put


def _plain(field: str) -> Callable[[pb.QueryOptions, Any], None]:
    def put(message: pb.QueryOptions, value: Any) -> None:
        try:
            setattr(message, field, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{field}: {error}") from None

    return put


def _put_staleness(message: pb.QueryOptions, value: float) -> None:
    # 0 would mean "the tenant's limit" on the wire; who asks for 0 seconds asks for the freshest there is.
    message.max_staleness_ms = max(1, milliseconds("max_staleness", value, zero=True))


PUTTERS: dict[str, Callable[[pb.QueryOptions, Any], None]] = {
    "read": _choice(
        "read",
        {
            "primary": pb.READ_PREFERENCE_PRIMARY,
            "replica": pb.READ_PREFERENCE_REPLICA,
            "any": pb.READ_PREFERENCE_ANY,
        },
    ),
    "max_staleness": _put_staleness,
    "fallback": _choice("fallback", {"primary": pb.REPLICA_FALLBACK_TO_PRIMARY, "fail": pb.REPLICA_FALLBACK_FAIL}),
    "on_failover": _choice("on_failover", {"wait": pb.FAILOVER_POLICY_WAIT, "fail": pb.FAILOVER_POLICY_FAIL_FAST}),
    "priority": _choice("priority", {"low": pb.PRIORITY_LOW, "medium": pb.PRIORITY_MEDIUM, "high": pb.PRIORITY_HIGH}),
    "max_rows": _plain("max_rows"),
    "max_bytes": _plain("max_bytes"),
    "tag": _plain("request_tag"),
    "hedge": _plain("hedge"),
}

ISOLATION: dict[str, query_pb.IsolationLevel.ValueType] = {
    "read committed": query_pb.ISOLATION_LEVEL_READ_COMMITTED,
    "repeatable read": query_pb.ISOLATION_LEVEL_REPEATABLE_READ,
    "serializable": query_pb.ISOLATION_LEVEL_SERIALIZABLE,
}

_ELSEWHERE = frozenset({"timeout", "request_id"})
"""Options that are fields of the request, not of QueryOptions."""

WRITE_ONLY = frozenset({"idempotency_key", "idempotent"})
READ_ONLY = frozenset({"read", "max_staleness", "fallback", "hedge"})
ANSWERS_ONLY = frozenset({"max_rows", "max_bytes"})
MAY_BE_BEHIND = ("replica", "any")
"""Read preferences under which a consistency token matters."""
BATCH_ONLY = frozenset({"isolation", "read_only", "deferrable"})


def put_options(
    message: pb.QueryOptions,
    options: Mapping[str, Any],
    method: str,
    elsewhere: frozenset[str] = frozenset(),
    *,
    without: frozenset[str] = frozenset(),
) -> None:
    """Writes the options that are given; those in `elsewhere` are written by the caller. TypeError for strangers, and
    for those in `without`."""
    for name, value in options.items():
        if name in _ELSEWHERE or name in elsewhere:
            continue
        putter = PUTTERS.get(name)
        if putter is None or name in without or (name in READ_ONLY and elsewhere):
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}")
        if value is not None:
            putter(message, value)


def put_transaction(message: query_pb.TransactionOptions, options: Mapping[str, Any]) -> None:
    """Writes isolation, read_only and deferrable."""
    isolation = options.get("isolation")
    if isolation is not None:
        try:
            message.isolation = ISOLATION[isolation]
        except (KeyError, TypeError):
            known = ", ".join(repr(name) for name in ISOLATION)
            raise ValueError(f"isolation must be one of {known}, not {isolation!r}") from None
    message.read_only = bool(options.get("read_only"))
    message.deferrable = bool(options.get("deferrable"))


def seconds(name: str, value: float, *, zero: bool = False) -> float:
    """A span of time, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    return min(float(value), MAX_TIMEOUT_S)


def milliseconds(name: str, value: float, *, zero: bool = False) -> int:
    """A span of time for the wire; at least 1 unless it is zero, since 0 there means the default."""
    checked = seconds(name, value, zero=zero)
    return max(1, int(checked * 1000)) if checked else 0


@dataclass(frozen=True, slots=True)
class TLS:
    """How to speak TLS to the router: paths of PEM files; without `ca_file` the system's authorities are trusted.

    cert_file, key_file  this client's own certificate, where the router proves identity by it
    server_name          the name to expect in the router's certificate, where it is not the address's host
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    @classmethod
    def chosen(
        cls, tls: bool | TLS | None, ca: str | None, cert: str | None, key: str | None
    ) -> TLS | None:
        """What the options of `connect` mean together; None is plain text. ValueError for what fits not together."""
        given = ca is not None or cert is not None or key is not None
        if isinstance(tls, TLS):
            if given:
                raise ValueError("give the files in tls=TLS(…) or in ca=, cert= and key=, not in both")
            return tls
        if tls is False and given:
            raise ValueError("tls=False is plain text: ca=, cert= and key= have no use there")
        return cls(ca, cert, key) if tls or given else None

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes when one of the files does; None for one that cannot be looked at."""
        return tuple(_stamp(path) for path in (self.ca_file, self.cert_file, self.key_file) if path is not None)

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's credentials. OSError when a file cannot be read."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("TLS needs cert_file and key_file together, or neither")
        return grpc.ssl_channel_credentials(
            root_certificates=_content(self.ca_file),
            private_key=_content(self.key_file),
            certificate_chain=_content(self.cert_file),
        )


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns, seen.st_size


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
