"""Channels to the router: options, credentials, retirement while old calls finish, and pauses between attempts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

import grpc
from grpc import aio

from pointsman.errors import Cancelled, ClientClosed, Error, Executed, Unavailable
from pointsman.forking import check_grpc
from pointsman.options import TLS
from pointsman.status import error_from_rpc

MAX_REQUEST_BYTES = 4 * 1024 * 1024 - 1024
"""The router accepts messages of 4 MiB; a little is left for the frame."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024

STREAMS_PER_CHANNEL = 200
"""Transactions and streams on one connection, below what a router accepts; more open another connection."""

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0

LOOK_AT_FILES_S = 1.0
"""How often certificates are looked at for changes, at most."""

_ENDS = (asyncio.CancelledError, asyncio.InvalidStateError, TimeoutError, ConnectionError, aio.AioRpcError,
         aio.UsageError, Error)
"""What a call may be broken by when its channel is closed under it."""

GRACE_S = 0.05
"""How long after its deadline a call still waits for the router's own words about what was executed."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    # Our own loop paces the attempts; the library's would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in fact the limit of one connection attempt
    ("grpc.enable_retries", 0),
    # Without this a new channel would share the connection of the one that drains.
    ("grpc.use_local_subchannel_pool", 1),
]

RpcCall = TypeVar("RpcCall", bound="aio.StreamStreamCall[Any, Any]")


def _unchanged(data: bytes) -> bytes:
    return data


class Link:
    """One channel and the number of its users; closed when it is retired and has none."""

    __slots__ = ("_closing", "channel", "retired", "users")

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.users = 0
        self.retired = False
        self._closing: asyncio.Task[None] | None = None

    def release(self) -> None:
        """One user less."""
        self.users -= 1
        self._close_if_done()

    def retire(self) -> None:
        """Nothing new goes here."""
        self.retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.retired and self.users == 0 and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.channel.close())

    @property
    def closing(self) -> bool:
        """True when it was retired and has no user left."""
        return self._closing is not None

    async def close(self) -> None:
        """Ends the channel and whatever still runs on it."""
        self.retired = True
        await (self._closing or self.channel.close())


def closed_error(executed: Executed) -> ClientClosed:
    """The error of a call that meets a closed client, or is met by its close."""
    open_end = " while the write was under way" if executed is Executed.MAYBE else ""
    return ClientClosed(
        f"the client was closed{open_end}",
        code=grpc.StatusCode.CANCELLED,
        reason="CLIENT_CLOSED",
        executed=executed,
    )


def ended_error(by: BaseException) -> Error:
    """What a stream says to whoever asks again after this has ended it: never that there is no more."""
    if isinstance(by, Error):
        return by
    return Cancelled(
        f"the stream was ended by an earlier {type(by).__name__}; begin another",
        code=grpc.StatusCode.CANCELLED,
        reason="STREAM_ENDED",
        executed=Executed.NO,
    )


class Connections:
    """Where the router is and how to get there; makes the channels: one, and others while it drains or is full."""

    def __init__(
        self, address: str, *, tenant: str, token: str | Callable[[], str] | None, tls: TLS | None
    ) -> None:
        check_grpc()
        if not address or any(character.isspace() for character in address):
            raise ValueError(f'the address of a router looks like "host:port", not {address!r}')
        self.address = address
        self._tenant = tenant
        self._token = token
        self._tls = tls
        self._credentials = tls.credentials() if tls is not None else None
        self._stamp = tls.stamp() if tls is not None else ()
        self._looked = 0.0
        self._links: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: set[asyncio.Timeout] = set()
        """Of the calls that wait for a router: gRPC does not tell them when their channel is closed."""
        self._closed = False

    @property
    def renewable(self) -> bool:
        """A new stream may prove what an old one does no longer: by a function's next token or a file's."""
        return callable(self._token) or (self._tls is not None and self._tls.cert_file is not None)

    def metadata(self) -> aio.Metadata:
        """What proves the tenant; asked for each stream, so that a token may change."""
        found = aio.Metadata()
        token = self._token() if callable(self._token) else self._token
        if token:
            found.add("authorization", f"Bearer {token}")
        if self._tenant:
            found.add("pointsman-tenant", self._tenant)
        return found

    def acquire(self, *, apart: Collection[Link] = ()) -> Link:
        """The channel for new calls, none of those in `apart`; `release` it afterwards. ClientClosed after a close."""
        if self._closed:
            raise closed_error(Executed.NO)
        if self._stamp:
            self._renew_credentials(self._tls)
        for link in self._links:
            if not link.retired and link.users < STREAMS_PER_CHANNEL and link not in apart:
                break
        else:
            self._links = [link for link in self._links if not link.closing]
            link = Link(self._channel())
            self._links.append(link)
        link.users += 1
        return link

    def _renew_credentials(self, tls: TLS | None) -> None:
        """Certificates live for hours, clients for months: when the files change, new calls get new channels."""
        now = asyncio.get_running_loop().time()
        if tls is None or now - self._looked < LOOK_AT_FILES_S:
            return
        self._looked = now
        stamp = tls.stamp()
        if stamp == self._stamp or None in stamp:
            return
        try:
            self._credentials = tls.credentials()
        except (OSError, ValueError):
            return  # in the middle of the change: what there was goes on
        self._stamp = stamp
        for link in self._links:
            link.retire()

    def _channel(self) -> aio.Channel:
        if self._credentials is None:
            return aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        options = list(CHANNEL_OPTIONS)
        if self._tls is not None and self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return aio.secure_channel(self.address, self._credentials, options=options)

    async def open_until(self, start: Callable[[aio.Channel], RpcCall], deadline: float) -> tuple[RpcCall, Link]:
        """Starts a call as soon as the router can be reached; its link must be released. Unavailable at the deadline,
        ClientClosed as soon as the client is closed.

        `deadline` is in the event loop's time.
        """
        loop = asyncio.get_running_loop()
        begun, detail, pauses = loop.time(), "", Pauses()
        while True:
            link, limit = self.acquire(), asyncio.timeout_at(deadline)
            self._opening.add(limit)
            try:
                async with limit:
                    await asyncio.sleep(pauses.next_s())
                    return await connected(start(link.channel)), link
            except BaseException as error:
                link.release()
                closed = self.met_close(error, Executed.NO)
                if closed is not None:
                    raise closed from None
                if isinstance(error, TimeoutError):
                    raise self.unavailable(round(deadline - begun, 3), detail) from None
                if not isinstance(error, aio.AioRpcError):
                    raise
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise error_from_rpc(error, writes=False) from None
                detail = error.details() or error.code().name
                pauses.failed()
            finally:
                self._opening.discard(limit)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what nobody waits for; `close` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def met_close(self, error: BaseException, executed: Executed) -> ClientClosed | None:
        """The error to raise instead of what broke a call, if that is the end of this client.

        gRPC then cancels whoever waits, as if his own task were cancelled; that one shows by its count.
        """
        if not self._closed or isinstance(error, ClientClosed) or not isinstance(error, _ENDS):
            return None
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return None
        return closed_error(executed)

    async def close(self) -> None:
        """Ends all channels."""
        self._closed = True
        for limit in self._opening:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        links, self._links = self._links, []
        for link in links:
            await link.close()

    def unavailable(self, timeout_s: float, detail: str) -> Unavailable:
        """The error for a router that was not reached within a call's time."""
        return Unavailable(
            f"router {self.address} was not reached within {timeout_s:g} s: {detail or 'no answer yet'}. "
            "Check that it runs, that host and port are right and not blocked, and that both sides agree about TLS",
            code=grpc.StatusCode.UNAVAILABLE,
            reason="NOT_CONNECTED",
            executed=Executed.NO,
        )


class Pauses:
    """Growing pauses with jitter between attempts to connect."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        """One more attempt came to nothing."""
        self._failures += 1

    def succeeded(self) -> None:
        """The router has answered."""
        self._failures = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt; 0 after a success."""
        if not self._failures:
            return 0.0
        longest = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 16))
        return longest * random.uniform(0.5, 1.0)


async def connected(call: RpcCall) -> RpcCall:
    """Waits until the call's headers are sent: nothing of it reached a router before. AioRpcError when it fails."""
    try:
        await call.wait_for_connection()
    except BaseException:
        call.cancel()
        raise
    return call
