"""The operating-system user the servers run as, and running PostgreSQL's programs as that user.

PostgreSQL refuses to run as root. Started by root, we switch to `postgres` where that account exists, else to
`nobody`; started by anyone else, we stay who we are. No account is ever created and no permission of a foreign
directory is ever changed.
"""

import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from router.devcluster.errors import DataRootError, DevClusterError, ToolFailedError

CANDIDATES_FOR_ROOT = ("postgres", "nobody")
"""Accounts tried in this order when we are root. A uid without a passwd entry is refused by initdb."""


class Credentials(TypedDict, total=False):
    """The arguments of subprocess.Popen which change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class OsUser:
    """An account; `differs` says that it is not the one this process runs as."""

    name: str
    uid: int
    gid: int
    differs: bool

    def credentials(self) -> Credentials:
        """Arguments for Popen; empty when no switch is needed (only root may switch)."""
        if not self.differs:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path, mode: int) -> None:
        """Give `path` to this user with exactly `mode`."""
        if self.differs:
            os.chown(path, self.uid, self.gid)
        path.chmod(mode)

    def may_enter(self, directory: Path) -> bool:
        """Whether this user may pass through `directory`, by its mode bits (access lists are not read)."""
        if not self.differs:
            return os.access(directory, os.X_OK)
        found = directory.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        if found.st_gid == self.gid:
            return bool(found.st_mode & stat.S_IXGRP)
        return bool(found.st_mode & stat.S_IXOTH)


def server_user() -> OsUser:
    """The user servers run as: ourselves, or for root the first existing of CANDIDATES_FOR_ROOT."""
    if os.geteuid() != 0:
        uid = os.geteuid()
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            raise DevClusterError(
                f"user id {uid} has no entry in the password database, and PostgreSQL's initdb refuses such a user; "
                "run as a named user, or add an entry (in a container: a line in /etc/passwd)"
            ) from None
        return OsUser(name, uid, os.getegid(), differs=False)
    for name in CANDIDATES_FOR_ROOT:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return OsUser(name, entry.pw_uid, entry.pw_gid, differs=True)
    raise DevClusterError(
        "PostgreSQL refuses to run as root, and neither of the accounts "
        f"{' and '.join(CANDIDATES_FOR_ROOT)} exists; run this command as an ordinary user"
    )


def first_closed_directory(path: Path, user: OsUser) -> Path | None:
    """The uppermost existing directory on the way to (and including) `path` which `user` may not enter."""
    for directory in [*reversed(path.parents), path]:
        if directory.is_dir() and not user.may_enter(directory):
            return directory
    return None


def prepare_data_root(path: Path, user: OsUser) -> None:
    """Make `path` if needed, and prove that servers run by `user` will reach it.

    Raises DataRootError with the way out when a directory above is closed to that user (root's own 0700 home).
    """
    closed = first_closed_directory(path, user)
    if closed is None:
        _make_open_directories(path)
        return
    raise DataRootError(
        f"the data directory {path} cannot be used: PostgreSQL runs as the user {user.name!r} here "
        f"(it refuses to run as root), and {closed} is closed to that user "
        f"(mode {stat.S_IMODE(closed.stat().st_mode):04o}). "
        f"Choose a directory outside of {closed}, for example /var/lib/pointsman-dev, "
        "or run this command as the owner of that directory instead of root"
    )


def _make_open_directories(path: Path) -> None:
    """Make `path` and its parents passable whatever the umask; existing directories are not touched."""
    try:
        for directory in [*reversed(path.parents), path]:
            if not directory.exists():
                directory.mkdir(exist_ok=True)
                directory.chmod(0o755)
    except OSError as error:
        raise DataRootError(f"the data directory {path} cannot be made: {error.strerror} ({error.filename})") from error
    if not path.is_dir():
        raise DataRootError(f"the data directory {path} is not a directory")


def clean_environment(bin_dir: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of PostgreSQL's programs: nothing of the caller's PG* variables or locale gets in."""
    return {"PATH": f"{bin_dir}:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", **(extra or {})}


def run_tool(
    argv: Sequence[str | Path], *, user: OsUser, cwd: Path, extra_environment: Mapping[str, str] | None = None
) -> str:
    """Run one of PostgreSQL's programs as `user` and return its standard output.

    Raises ToolFailedError with the end of its standard error, also when it cannot be executed at all.
    """
    program = Path(argv[0])
    environment = clean_environment(program.parent, extra_environment)
    try:
        done = subprocess.run(
            [str(a) for a in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=environment,
            check=False,
            **user.credentials(),
        )
    except OSError as error:
        raise ToolFailedError(f"{program} cannot be run by the user {user.name!r}: {error.strerror}") from error
    if done.returncode != 0:
        ending = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise ToolFailedError(f"{program.name} ended with status {done.returncode}:\n{ending}")
    return done.stdout
