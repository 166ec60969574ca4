"""What the kernel must allow: network namespaces with veth pairs, and mounts that only we see. Found out by trying."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INSIDE = "POINTSMAN_CHAOS_PRIVATE"
"""Set in the process that has a mount namespace of its own."""


class NotAllowed(Exception):
    """The kernel, or our rights, do not allow it; the words say what."""


def _do(*words: str) -> None:
    if shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        raise NotAllowed(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAllowed(f"{' '.join(words[:4])}: {done.stderr.strip() or done.returncode}")


@dataclass(frozen=True)
class Wire:
    """A veth pair: our end, and the namespace's."""

    device: str
    here: str
    """Address of our end."""
    there: str

    def up(self) -> None:
        """The cable is plugged in."""
        _do("ip", "link", "set", self.device, "up")

    def down(self) -> None:
        """The cable is pulled: what is sent vanishes without a word."""
        _do("ip", "link", "set", self.device, "down")


@dataclass(frozen=True)
class Namespace:
    """A network of its own for one process, on wires by name."""

    name: str
    wires: dict[str, Wire]

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that is to run in it."""
        return "ip", "netns", "exec", self.name


@contextmanager
def namespace(wires: Sequence[str]) -> Iterator[Namespace]:
    """A namespace and its wires; all gone afterwards. NotAllowed where it cannot be made."""
    tag = secrets.token_hex(2)
    second, third = 64 + secrets.randbelow(64), secrets.randbelow(250)
    name, made = f"pm-{tag}", {}
    _do("ip", "netns", "add", name)
    try:
        _do("ip", "-n", name, "link", "set", "lo", "up")
        for number, wire in enumerate(wires):
            here, there = f"100.{second}.{third}.{4 * number + 1}", f"100.{second}.{third}.{4 * number + 2}"
            ours, theirs = f"pm{tag}o{number}", f"pm{tag}i{number}"
            _do("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            _do("ip", "addr", "add", f"{here}/30", "dev", ours)
            _do("ip", "-n", name, "addr", "add", f"{there}/30", "dev", theirs)
            _do("ip", "link", "set", ours, "up")
            _do("ip", "-n", name, "link", "set", theirs, "up")
            made[wire] = Wire(ours, here, there)
        yield Namespace(name, made)
    finally:
        with contextlib.suppress(NotAllowed):
            _do("ip", "netns", "del", name)


def is_private() -> bool:
    """Whether this process has a mount namespace of its own."""
    return INSIDE in os.environ


def run_private(arguments: Sequence[str]) -> str:
    """Run `python -m tests.chaos` with arguments where mounts are seen by nobody else; what it printed.

    NotAllowed where that cannot be.
    """
    _do("unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt")
    command = ["unshare", "-m", sys.executable, "-m", "tests.chaos", *arguments]
    done = subprocess.run(command, env={**os.environ, INSIDE: "1"}, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise OSError(f"the run in a mount namespace ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def small_disk(directory: Path, mib: int) -> None:
    """Put what is in a directory on a disk of so many MiB of its own; owners and modes stay."""
    aside = directory.with_name(directory.name + ".aside")
    directory.rename(aside)
    directory.mkdir()
    _do("mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(directory))
    _do("cp", "-a", f"{aside}/.", str(directory))
    shutil.rmtree(aside)


def fill(directory: Path) -> Path:
    """Take all the space that is left; the file that holds it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler
