"""How often this process is the child of a fork: connections and threads of gRPC do not come along."""

from __future__ import annotations

import os
import threading

_forks = 0
_running = False
"""gRPC was at work at the last fork of this process."""
_inherited = False
"""It was at one of the forks that this process comes from."""


def forks() -> int:
    """Remember it, and compare it later; cheaper than os.getpid, which is a system call."""
    return _forks


def made_before_fork() -> RuntimeError:
    """The error for who uses in a child what was made in its parent."""
    return RuntimeError("this client was made before a fork, which cannot share connections: make one in the child")


def check_grpc() -> None:
    """RuntimeError in the child of a process whose gRPC was at work. Nothing would ever connect here, and what the
    parent's calls wait for would be read here: the children of a fork share gRPC's wake-ups, and nobody tells it."""
    if _inherited:
        raise RuntimeError(
            "gRPC was at work in the process that this one was forked from, and cannot be used here: fork before the "
            'first call, or start processes by "spawn"'
        )


def _before_fork() -> None:
    global _running
    # The thread of grpc.aio is there as long as any of its channels or servers.
    _running = any("_poll_wrapper" in thread.name for thread in threading.enumerate())


def _in_child() -> None:
    global _forks, _inherited
    _forks += 1
    _inherited = _inherited or _running


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
