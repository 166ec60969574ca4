"""A data directory in use: one supervisor at a time, and a warden that ends its servers when it dies."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from router.devcluster import processes
from router.devcluster.errors import DataRootError
from router.devcluster.os_user import OsUser, prepare_data_root

LOCK_FILE = "supervisor.lock"


class DataRoot:
    """The lock on a data directory, and the warden process; `temporary` ones are removed at the end."""

    def __init__(self, path: Path, *, temporary: bool) -> None:
        self.path = path
        self._temporary = temporary
        self._lock_file: IO[str] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def is_open(self) -> bool:
        """Whether this object holds the directory."""
        return self._lock_file is not None

    def open(self, user: OsUser) -> None:
        """Make the directory if needed and take it; DataRootError when another process has it or it is closed."""
        prepare_data_root(self.path, user)
        # Not opened for writing at once: that would wipe the holder's id before we know that it let go.
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock_file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = lock_file.read().strip() or "unknown"
            lock_file.close()
            raise DataRootError(
                f"{self.path} is in use by the process {holder}; stop that one, or choose another directory"
            ) from None
        lock_file.truncate(0)
        lock_file.write(str(os.getpid()))
        lock_file.flush()
        self._lock_file = lock_file

    def post_warden(self, tag: str) -> None:
        """Start the warden of all servers with this tag."""
        argv = [sys.executable, "-I", "-S", processes.__file__, f".{tag}"]
        if self._temporary:
            argv.append(str(self.path))
        # Its own session: a Ctrl-C at the terminal must not end it before us.
        self._warden = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            # Not ours: whoever waits for the end of our output would wait for the warden too.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def close(self) -> None:
        """Let go of the directory, once no server runs any more. Safe to call twice."""
        if self._warden is not None:
            self._warden.communicate(b"stopped in order\n")
            self._warden = None
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)
