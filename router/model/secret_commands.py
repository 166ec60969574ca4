"""A secret that a program prints: what to run, how long what it printed is good for, and how it failed."""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_TTL_S = 86_400.0
LONGEST_RUN_S = 300.0


@dataclass(frozen=True)
class SecretCommand:
    """A program, run without a shell, whose standard output is the secret. Prints without its arguments."""

    argv: tuple[str, ...] = field(repr=False)
    """The program's absolute path, and its arguments."""
    folder: str = field(default="/", repr=False)
    """Where it runs: the configuration's."""
    ttl_s: float = 600.0
    """What it printed is used for new connections for so long; asked again when three quarters of it are over."""
    timeout_s: float = 10.0
    """It is ended when it takes longer."""

    def __str__(self) -> str:
        return f"command {self.argv[0].rpartition('/')[2]}"


class SecretFailed(Exception):
    """A command brought no secret. str() is what operators read: never the secret."""
