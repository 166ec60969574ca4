"""The file that lets a cluster start again: names, ports, passwords. Owner-only, written atomically."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from router.devcluster.errors import DataRootError

FILE_NAME = "cluster.json"
FORMAT = 1


@dataclass
class NodeState:
    """One server: its name and the port it had last."""

    name: str
    port: int


@dataclass
class TenantState:
    """One tenant's login; the database carries the same name."""

    name: str
    password: str
    database: str


@dataclass
class ClusterState:
    """All that is remembered between two starts."""

    tag: str
    major: int
    superuser_password: str
    replication_password: str
    control_password: str
    nodes: list[NodeState]
    last_primary: str
    tenants: list[TenantState] = field(default_factory=list)
    complete: bool = False
    """Whether the cluster was made to the end; what was cut off is begun anew."""
    format: int = FORMAT


def read_state(data_root: Path) -> ClusterState | None:
    """The state of the cluster in `data_root`, None when there is none; DataRootError when it is unreadable."""
    path = data_root / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataRootError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataRootError(f"{path} is damaged ({error}); remove {data_root} to begin anew") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataRootError(f"{path} was written by another version of Pointsman; remove {data_root} to begin anew")
    try:
        raw["nodes"] = [NodeState(**node) for node in raw["nodes"]]
        raw["tenants"] = [TenantState(**tenant) for tenant in raw["tenants"]]
        return ClusterState(**raw)
    except (KeyError, TypeError) as error:
        raise DataRootError(f"{path} is damaged ({error}); remove {data_root} to begin anew") from error


def write_state(data_root: Path, state: ClusterState) -> None:
    """Replace the state file."""
    write_json(data_root / FILE_NAME, asdict(state))


def write_json(path: Path, content: object) -> None:
    """Write JSON readable by the owner only, atomically: readers see the old file or the new one, never half."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
