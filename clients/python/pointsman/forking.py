"""How often this process is the child of a fork: connections and threads of gRPC do not come along."""

from __future__ import annotations

import os

_forks = 0


def forks() -> int:
    """Remember it, and compare it later; cheaper than os.getpid, which is a system call."""
    return _forks


def made_before_fork() -> RuntimeError:
    """The error for who uses in a child what was made in its parent."""
    return RuntimeError("this client was made before a fork, which cannot share connections: make one in the child")


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)
