"""What a command tells when it cannot do what was asked: one line, a way out, an exit code."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class ExitCode(IntEnum):
    """Exit codes of every command; part of its promise to scripts."""

    OK = 0
    PROBLEM = 1
    """What was asked could not be done: a mistake in it, an answer that is an error, or standard output that cannot be
    written (without a word where its reader left)."""
    USAGE = 2
    """The command line is wrong."""
    UNREACHABLE = 3
    """No router answers at the address."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


class Trouble(Exception):
    """Ends a command. message: one line; way_out: what to try next, empty when there is nothing to say."""

    def __init__(self, message: str, way_out: str = "", code: ExitCode = ExitCode.PROBLEM) -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out
        self.code = code
