"""The processes of the servers: finding them, signalling them, and the warden that ends them.

This file is also run by itself (`python processes.py TAG [DIRECTORY]`) as the warden: it waits until its standard
input closes, which happens when the supervising process stops or dies in any way, and then ends every server of
the cluster. PR_SET_PDEATHSIG would not do: it fires when the *thread* that started a server ends.
Standard library only, no import of this package: the warden has to start in a few milliseconds.

Processes are recognised by the cluster's tag, which stands in `-c cluster_name=NAME.TAG` of a postmaster and in
the title `postgres: NAME.TAG: ...` of its children. Children are in sessions of their own, so a process group
does not hold them, and a killed postmaster's children have another parent; the title stays, and it is readable
without privilege.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
GRACE_S = 3.0
"""How long servers get for a clean shutdown before the warden kills them."""


def postmasters(marker: str) -> list[int]:
    """Ids of the postmasters whose cluster name ends with `marker` (and, for an instant, children just forked)."""
    return [pid for pid, words in _command_lines() if _is_postmaster(words, marker)]


def all_processes(marker: str) -> list[int]:
    """Ids of the postmasters and all their children."""
    return [pid for pid, words in _command_lines() if _is_postmaster(words, marker) or _is_child(words, marker)]


def signal_each(pids: list[int], number: signal.Signals) -> None:
    """Send a signal; processes which are gone already do not matter."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended by SIGSTOP; False also when it does not exist."""
    try:
        if PROC.joinpath("self").exists():
            # The second field is the name in brackets and may hold blanks: the state is the word after the last one.
            return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return subprocess.check_output(["ps", "-o", "state=", "-p", str(pid)], text=True).startswith("T")
    except (OSError, subprocess.CalledProcessError):
        return False


def _is_postmaster(words: list[str], marker: str) -> bool:
    return any(word.startswith("cluster_name=") and word.endswith(marker) for word in words)


def _is_child(words: list[str], marker: str) -> bool:
    title = " ".join(words).split(" ", 2)
    return len(title) > 1 and title[0] == "postgres:" and title[1].endswith(marker + ":")


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    """The command line of every process; zombies have none and are not seen."""
    if not PROC.joinpath("self").exists():
        printed = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=False).stdout
        for line in printed.splitlines():
            pid, *words = line.split()
            yield int(pid), words
        return
    for entry in os.listdir(PROC):
        if entry.isdecimal():
            try:
                raw = PROC.joinpath(entry, "cmdline").read_bytes()
            except OSError:
                continue
            if raw:
                yield int(entry), raw.rstrip(b"\0 ").decode(errors="replace").split("\0")


def end_all(marker: str) -> None:
    """Shut every server down; what is left after GRACE_S, frozen or hanging, is killed."""
    deadline = time.monotonic() + GRACE_S
    # Two looks in a row must find nothing: one that was being started may not carry its name yet.
    quiet_looks = 0
    while quiet_looks < 2:
        found = all_processes(marker)
        quiet_looks = 0 if found else quiet_looks + 1
        if time.monotonic() >= deadline:
            signal_each(found, signal.SIGKILL)
        else:
            signal_each(postmasters(marker), signal.SIGINT)
            signal_each(found, signal.SIGCONT)
        time.sleep(0.1)


def watch(marker: str, remove: Path | None) -> None:
    """The warden's life: wait for the end of standard input, end the servers, remove `remove` if given.

    A supervisor which has stopped its servers in order writes a word first, and nothing is left to do.
    """
    if sys.stdin.buffer.read():
        return
    end_all(marker)
    if remove is not None:
        shutil.rmtree(remove, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)
