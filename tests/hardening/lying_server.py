"""A PostgreSQL server that cannot be trusted: a real one, behind a wire that changes one thing of what it says.

Each conversation (a connection) is drawn from a seed and its number: honest, or with one lie at one message of the
server's: cut, dropped, doubled, in the wrong order, of another length or kind, garbled, flooded with rows or notices,
false errors, silence. It may come at once, during the login, or in the middle of whatever is asked later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
FLOOD_BYTES = 192 << 20
_FLOOD_PIECE = 256 << 10
_SSL_REQUEST = 80877103
_CANCEL_REQUEST = 80877102


class Lie(Enum):
    """What happens to one message of the server's."""

    CLOSE = "the connection ends in front of it"
    CUT = "the connection ends within it"
    SILENCE = "nothing comes any more"
    DROP = "it does not come"
    DOUBLE = "it comes twice"
    SWAP = "it comes after the next one"
    FALSE_KIND = "it is of another kind"
    GARBLED = "some of its bytes are others"
    LONG = "it says that 2 GiB follow"
    SHORT = "its length is too small to be one"
    OFF = "its length is off by some bytes"
    NOISE = "random bytes come in its place"
    MADE_UP = "a message comes in front of it that has no place there"
    FATAL = "the server says good-bye and ends"
    ERROR = "an error comes in its place"
    BARE_ERROR = "an error without a code comes in its place"
    ROWS = "rows without end come in front of it"
    NOTICES = "notices without end come in front of it"


OFTEN = tuple(lie for lie in Lie if lie not in (Lie.ROWS, Lie.NOTICES))
FLOODS = (Lie.ROWS, Lie.NOTICES)

class LyingServer:
    """An async context manager; stands in front of one port."""

    def __init__(self, target_port: int, seed: int, *, users: frozenset[bytes], lies: float = 0.9) -> None:
        """users: whose conversations are changed; others' pass. lies: which part of them."""
        self._target_port = target_port
        self._seed = seed
        self._users = users
        self._lies = lies
        self.port = 0
        self.conversations = 0
        self.told: Counter[Lie] = Counter()
        self.kinds: tuple[Lie, ...] = OFTEN
        self.honest = False
        """Every conversation that begins from now on is."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0.01)  # who was accepted a moment ago begins, and so can be ended
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                await self._converse((reader, writer))
            finally:
                writer.transport.abort()

    async def _converse(self, client: Streams) -> None:
        hello = await _hello(client)
        behind = await asyncio.open_connection(HOST, self._target_port)
        try:
            behind[1].write(hello)
            teller = Teller(self._draw(hello), self.told)
            forward = asyncio.create_task(_copy(client[0], behind[1]))
            back = asyncio.create_task(teller.tell(behind[0], client[1]))
            done, left = await asyncio.wait({forward, back}, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*done, *left, return_exceptions=True)
        finally:
            behind[1].transport.abort()

    def _draw(self, hello: bytes) -> Plan | None:
        user = hello[8:].split(b"\0")[1:2]
        if self.honest or user[0:1] == [] or user[0] not in self._users:
            return None
        self.conversations += 1
        chance = random.Random(f"{self._seed}:{self.conversations}")
        if chance.random() >= self._lies:
            return Plan(Lie.CLOSE, 60, chance)
        # A login takes some twenty messages, the router's own questions ten more.
        at = chance.choice((chance.randrange(24), chance.randrange(24, 36), chance.randrange(30, 60)))
        return Plan(chance.choice(self.kinds), at, chance)


class Plan:
    """The lie of one conversation."""

    def __init__(self, lie: Lie, at: int, chance: random.Random) -> None:
        self.lie = lie
        self.at = at
        self.chance = chance


class Teller:
    """Passes the server's messages on, one of them changed."""

    def __init__(self, plan: Plan | None, told: Counter[Lie]) -> None:
        self._plan = plan
        self._told = told

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the server's end, or ours."""
        plan = self._plan
        if plan is None:
            await _copy(reader, writer)
            return
        for _ in range(plan.at):
            writer.write(await _message(reader))
        message = await _message(reader)
        self._told[plan.lie] += 1
        if plan.lie in FLOODS:
            await self._flood(plan, writer)
        elif plan.lie is Lie.SILENCE:
            await asyncio.sleep(3600)
        elif plan.lie is Lie.SWAP:
            message = await _message(reader) + message
        else:
            message = b"".join(changed(message, plan.lie, plan.chance))
        writer.write(message)
        await writer.drain()
        if plan.lie in (Lie.CLOSE, Lie.CUT, Lie.FATAL):
            return
        for _ in range(plan.chance.randrange(10, 60)):  # and then good-bye: there are more conversations to be had
            writer.write(await _message(reader))

    async def _flood(self, plan: Plan, writer: asyncio.StreamWriter) -> None:
        one = row(b"x" * 1000) if plan.lie is Lie.ROWS else notice(b"x" * 1000)
        piece = one * (_FLOOD_PIECE // len(one))
        for _ in range(FLOOD_BYTES // len(piece)):
            writer.write(piece)
            await writer.drain()


def changed(message: bytes, lie: Lie, chance: random.Random) -> Iterator[bytes]:
    """What comes in a message's place."""
    kind, body = message[:1], message[5:]
    match lie:
        case Lie.CLOSE | Lie.DROP:
            return
        case Lie.CUT:
            yield message[: chance.randrange(len(message))]
        case Lie.DOUBLE:
            yield message * 2
        case Lie.FALSE_KIND:
            yield bytes([chance.choice(b"ACDEGHIKNRSTVWZcdnst123\0\xff")]) + message[1:]
        case Lie.GARBLED:
            garbled = bytearray(body)
            for _ in range(chance.randint(1, 4) if body else 0):
                garbled[chance.randrange(len(body))] = chance.randrange(256)
            yield framed(kind, bytes(garbled))
        case Lie.LONG:
            yield kind + struct.pack("!I", chance.choice((0x7FFFFFFF, 0x3FFFFFFF, 0xFFFFFFFF))) + body
        case Lie.SHORT:
            yield kind + struct.pack("!i", chance.choice((0, 1, 3, -1))) + body
        case Lie.OFF:
            yield kind + struct.pack("!i", max(0, len(body) + 4 + chance.choice((-3, -1, 1, 5)))) + body
        case Lie.NOISE:
            yield chance.randbytes(chance.randint(1, 200))
        case Lie.MADE_UP:
            yield made_up(chance)
            yield message
        case Lie.FATAL:
            yield error(b"FATAL", chance.choice((b"57P01", b"57P03", b"53300", b"28P01", b"XX000", b"?????")))
        case Lie.ERROR:
            yield error(b"ERROR", chance.choice((b"22012", b"40001", b"57014", b"25006", b"26000", b"0A000", b"P0001")))
        case Lie.BARE_ERROR:
            yield framed(b"E", chance.choice((b"\0", b"", b"SERROR\0\0", b"VFATAL\0\0", b"M", b"P\xb2\0CXX000\0\0")))
        case _:
            raise AssertionError(lie)


def made_up(chance: random.Random) -> bytes:
    """A message that is well formed, or nearly, and comes when nobody asked for it."""
    return chance.choice(
        (
            framed(b"Z", chance.choice((b"I", b"T", b"E", b"?"))),
            framed(b"C", chance.choice((b"INSERT 0 7\0", b"SELECT 99999999999999999999\0", b"COMMIT\0", b"\xff\0"))),
            row(b"not yours"),
            framed(b"T", struct.pack("!h", 1) + b"c\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)),
            framed(b"T", struct.pack("!h", -1)),
            framed(b"S", b"client_encoding\0LATIN1\0"),
            framed(b"S", b"is_superuser\0on\0"),
            framed(b"S", b"\xff\xfe\0\xff\0"),
            framed(b"A", struct.pack("!i", 1) + b"news\0payload\0"),
            framed(b"G", b"\0" + struct.pack("!hh", 1, 0)),
            framed(b"H", b"\0" + struct.pack("!hh", 1, 0)),
            framed(b"W", b"\0" + struct.pack("!hh", 1, 0)),
            framed(b"d", b"1\tx\n"),
            framed(b"c", b""),
            framed(b"I", b""),
            framed(b"s", b""),
            framed(b"n", b""),
            framed(b"R", struct.pack("!i", chance.choice((0, 3, 5, 7, 10, 99)))),
            framed(b"v", struct.pack("!ii", 3, 0)),
            notice(b"said \xff\xfe\x1b[31m"),
        )
    )


def framed(kind: bytes, body: bytes) -> bytes:
    """A message of the server's (https://www.postgresql.org/docs/current/protocol-message-formats.html)."""
    return kind + struct.pack("!i", len(body) + 4) + body


def row(value: bytes) -> bytes:
    """A DataRow of one column."""
    return framed(b"D", struct.pack("!hi", 1, len(value)) + value)


def notice(text: bytes) -> bytes:
    """A NoticeResponse."""
    return framed(b"N", b"SNOTICE\0VNOTICE\0C00000\0M" + text + b"\0\0")


def error(severity: bytes, sqlstate: bytes) -> bytes:
    """An ErrorResponse."""
    return framed(b"E", b"S" + severity + b"\0V" + severity + b"\0C" + sqlstate + b"\0Mmade up\0\0")


async def _hello(client: Streams) -> bytes:
    """The start-up packet; a wish for encryption is declined."""
    while True:
        head = await client[0].readexactly(8)
        length, code = struct.unpack("!ii", head)
        rest = await client[0].readexactly(length - 8)
        if code != _SSL_REQUEST:
            return head + rest
        client[1].write(b"N")


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
