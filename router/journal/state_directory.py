"""ports.Journal in a directory: one small JSON file a cluster, replaced as a whole.

A file is written beside the old one, flushed to disk, renamed over it, and the directory flushed: after a crash at any
point there is the old page or the new one. A disk that hangs must not stop the router: writes run in a thread.

Beside the pages: `owner`, whose directory it is, and `.lock`, which the router that uses it holds as long as it lives.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from router.model.identity import ClusterName, EndpointName, Lsn, Term
from router.model.journal import ClusterRecord, JournalFailed, MoveKind, MoveNote, MoveStage, Switch

FORMAT = 1


class InUse(JournalFailed):
    """Another router has the directory."""


class StateDirectory:
    """The journal of one router. One router at a time may use a directory, which opening it sees to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._drawn = 0
        self._written: dict[ClusterName, int] = {}
        self._let_go: Callable[[], object] | None = None
        self.owner = ""
        """Whose it is, once it is prepared: the same for every process that uses it after another, on whatever host."""

    def __repr__(self) -> str:
        return f"<StateDirectory {self._path}>"

    def prepare(self, fresh_owner: str) -> None:
        """Make it where it is missing, take it for this process, and prove that it can be written to. InUse when
        another router has it, JournalFailed otherwise. fresh_owner: whose it is from now on, if that is not known."""
        probe = self._path / ".writable"
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take()
            probe.write_bytes(b"")
            probe.unlink()
            self.owner = self._find_owner(fresh_owner)
        except OSError as error:
            raise JournalFailed(f"{self._path} cannot be written to: {_words(error)}") from error

    def close(self) -> None:
        """Others may take it; while a write hangs, only when this process has ended."""
        if self._let_go is not None and self._lock.acquire(blocking=False):
            self._let_go()
            self._lock.release()

    def _take(self) -> None:
        """The kernel takes the lock away with the process, however that ends; nobody inherits it."""
        lock = os.open(self._path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise InUse(f"{self._path} is in use by another router") from error
            raise
        self._let_go = weakref.finalize(self, os.close, lock)

    def _find_owner(self, fresh: str) -> str:
        file = self._path / "owner"
        try:
            known = file.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            # Of before there was this file: fences that still stand bear what was the owner then.
            known = self._former_owner() if any(self._path.glob("*.json")) else fresh
            self._replace(file, f"{known}\n".encode())
        if not re.fullmatch("[0-9A-Za-z_-]+", known):
            way_out = "remove the file; a fence that this router has left is taken for another router's then"
            raise JournalFailed(f"{file} is damaged: {way_out}")
        return known

    def _former_owner(self) -> str:
        place = f"{socket.gethostname()}:{self._path.resolve()}"
        return hashlib.sha256(place.encode()).hexdigest()[:12]

    def read(self, cluster: ClusterName) -> ClusterRecord | None:
        """See ports.Journal."""
        file = self._file(cluster)
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalFailed(f"{file} cannot be read: {_words(error)}") from error
        try:
            return _from_values(cluster, json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            way_out = "if no router is promoting and the right server is the primary, remove the file"
            raise JournalFailed(f"{file} is damaged ({error!r}): {way_out}") from error

    async def write(self, record: ClusterRecord) -> None:
        """See ports.Journal. Cancelling does not stop a write that has begun; a later one is never overtaken by it."""
        self._drawn += 1
        await asyncio.to_thread(self._write, record, self._drawn)

    def _write(self, record: ClusterRecord, number: int) -> None:
        file = self._file(record.cluster)
        with self._lock:
            if self._written.get(record.cluster, 0) > number:
                return
            try:
                self._replace(file, json.dumps(_to_values(record), indent=1).encode())
            except OSError as error:
                raise JournalFailed(f"{file} cannot be written: {_words(error)}") from error
            self._written[record.cluster] = number

    def _replace(self, file: Path, content: bytes) -> None:
        """Whole, and on disk. OSError."""
        fresh = file.with_suffix(".new")
        with fresh.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        fresh.replace(file)
        directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _file(self, cluster: ClusterName) -> Path:
        return self._path / f"{quote(cluster, safe='')}.json"


def open_state_directory(
    configured: str, config_file: Path, environ: Mapping[str, str], fresh_owner: str, *, required: bool
) -> StateDirectory | None:
    """The directory that the configuration's server.state_dir means, made, proven writable and taken.

    fresh_owner: a drawn identifier; whose it is from now on, where that is not known.
    None when none is configured, none is required, and the usual place cannot be written to (a mounted configuration)
    or is another router's: then nothing is kept. JournalFailed otherwise, in words for the operator. Blocks.
    """
    base = config_file.resolve().parent
    usual = environ.get("STATE_DIRECTORY", "").split(":")[0] or "state"
    directory = StateDirectory(base / Path(configured or usual).expanduser())
    try:
        directory.prepare(fresh_owner)
    except JournalFailed as error:
        if not configured and not required:
            return None
        if isinstance(error, InUse):
            raise InUse(f"{error}; stop that one, or give each a server.state_dir of its own") from error
        raise JournalFailed(f"{error}; set server.state_dir to a directory that the router may write to") from error
    return directory


def _to_values(record: ClusterRecord) -> dict[str, Any]:
    values = {"format": FORMAT, **asdict(record)}
    if record.move is not None:
        values["move"] = {
            "kind": record.move.kind.value,
            "stage": record.move.stage.value,
            "chosen": record.move.chosen,
        }
    return values


def _from_values(cluster: ClusterName, values: dict[str, Any]) -> ClusterRecord:
    if values["format"] != FORMAT or values["cluster"] != cluster:
        raise ValueError(f"of format {values['format']} and cluster {values['cluster']}")
    move, primary = values["move"], values["primary"]
    return ClusterRecord(
        cluster,
        int(values["system_id"]),
        Term(int(values["term"])),
        None if primary is None else EndpointName(str(primary)),
        str(values["sync_names"]),
        tuple(
            Switch(Term(int(one["term"])), EndpointName(str(one["primary"])), Lsn(int(one["lsn"])))
            for one in values["switches"]
        ),
        None
        if move is None
        else MoveNote(
            MoveKind(move["kind"]),
            MoveStage(move["stage"]),
            None if move["chosen"] is None else EndpointName(str(move["chosen"])),
        ),
    )


def _words(error: OSError) -> str:
    return (error.strerror or "unknown error").lower()
