"""ports.Journal in a directory: one small JSON file a cluster, replaced as a whole.

A file is written beside the old one, flushed to disk, renamed over it, and the directory flushed: after a crash at any
point there is the old page or the new one. A disk that hangs must not stop the router: writes run in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from router.model.identity import ClusterName, EndpointName, Lsn, Term
from router.model.journal import ClusterRecord, JournalFailed, MoveKind, MoveNote, MoveStage, Switch

FORMAT = 1


class StateDirectory:
    """The journal of one router. One router at a time may use a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._drawn = 0
        self._written: dict[ClusterName, int] = {}

    def __repr__(self) -> str:
        return f"<StateDirectory {self._path}>"

    @property
    def owner(self) -> str:
        """Whose it is: the same for every process that uses it after another, and for no other directory."""
        place = f"{socket.gethostname()}:{self._path.resolve()}"
        return hashlib.sha256(place.encode()).hexdigest()[:12]

    def prepare(self) -> None:
        """Make it where it is missing, and prove that it can be written to. JournalFailed otherwise."""
        probe = self._path / ".writable"
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise JournalFailed(f"{self._path} cannot be written to: {_words(error)}") from error

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
        fresh = file.with_suffix(".new")
        with self._lock:
            if self._written.get(record.cluster, 0) > number:
                return
            try:
                with fresh.open("wb") as sink:
                    sink.write(json.dumps(_to_values(record), indent=1).encode())
                    sink.flush()
                    os.fsync(sink.fileno())
                fresh.replace(file)
                directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            except OSError as error:
                raise JournalFailed(f"{file} cannot be written: {_words(error)}") from error
            self._written[record.cluster] = number

    def _file(self, cluster: ClusterName) -> Path:
        return self._path / f"{quote(cluster, safe='')}.json"


def open_state_directory(
    configured: str, config_file: Path, environ: Mapping[str, str], *, required: bool
) -> StateDirectory | None:
    """The directory that the configuration's server.state_dir means, made and proven writable.

    None when none is configured, none is required, and the usual place cannot be written to (a mounted configuration):
    then nothing is kept. JournalFailed otherwise, in words for the operator. Blocks.
    """
    base = config_file.resolve().parent
    usual = environ.get("STATE_DIRECTORY", "").split(":")[0] or "state"
    directory = StateDirectory(base / Path(configured or usual).expanduser())
    try:
        directory.prepare()
    except JournalFailed as error:
        if not configured and not required:
            return None
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
