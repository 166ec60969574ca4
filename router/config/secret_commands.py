"""Runs the programs that print secrets, without a shell; what they print is bounded, and shown in no message."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from router.model.secret_commands import SecretCommand, SecretFailed
from router.model.topology import Secret

AT_ONCE = 8
"""Programs that run at the same time: a router with ten thousand tenants is no reason for ten thousand processes."""
MOST_BYTES = 64 * 1024
_MOST_SHOWN = 200
_KILLED_S = 1.0
"""A process that was killed is gone by then, unless the machine's disk hangs."""


class CommandRunner:
    """engine.passwords.SecretRunner. To be used inside one event loop."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self, command: SecretCommand) -> Secret:
        """See engine.passwords.SecretRunner. A run that is cancelled or takes too long is killed, with its children."""
        async with self._room:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=command.folder,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                why = (getattr(error, "strerror", None) or type(error).__name__).lower()
                raise SecretFailed(f"{command} cannot be started: {why}") from None
            try:
                async with asyncio.timeout(command.timeout_s):
                    printed, complaint = await _both(process)
                    code = await process.wait()
            except TimeoutError:
                await _end(process)
                raise SecretFailed(f"{command} was ended after {command.timeout_s:g} s (command_timeout_s)") from None
            except BaseException:
                await _end(process)
                raise
        return _judged(command, printed, complaint, code)


def _judged(command: SecretCommand, printed: bytes, complaint: bytes, code: int) -> Secret:
    if code != 0:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise SecretFailed(f"{command} {how}{_shown(complaint, printed)}")
    if len(printed) > MOST_BYTES:
        raise SecretFailed(f"{command} printed more than {MOST_BYTES} bytes: that is no secret")
    try:
        text = printed.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretFailed(f"{command} printed what is not UTF-8 text") from None
    if not text:
        raise SecretFailed(f"{command} printed nothing{_shown(complaint, printed)}")
    if not text.isprintable():
        raise SecretFailed(f"{command} printed more than one line, or control characters: that is no password")
    return Secret(text)


async def _both(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """What it prints, and what it complains of."""
    assert process.stdout is not None
    assert process.stderr is not None
    return await asyncio.gather(_read(process.stdout), _read(process.stderr))


async def _read(stream: asyncio.StreamReader) -> bytes:
    """All that comes, of which one byte more than the limit is kept; a program that goes on is not held up."""
    kept = b""
    while piece := await stream.read(MOST_BYTES):
        kept = (kept + piece)[: MOST_BYTES + 1]
    return kept


def _shown(complaint: bytes, printed: bytes) -> str:
    """The first line of its standard error, without anything of what it printed."""
    line = complaint.strip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    for secret in printed.decode("utf-8", "replace").split():
        line = line.replace(secret, "***")
    line = "".join(one if one.isprintable() else " " for one in line)[:_MOST_SHOWN]
    return f": {line}" if line else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    """Of the whole session, which is its own: also of a child that keeps its output open."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KILLED_S):
            await process.wait()
