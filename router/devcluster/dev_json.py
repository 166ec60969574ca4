"""`dev.json`: what other people's scripts read to find a running `pointsman dev`. Its form is a promise."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from router.devcluster.cluster_state import write_json

FILE_NAME = "dev.json"


@dataclass(frozen=True)
class DevTenant:
    """A demo tenant and the token its callers show."""

    name: str
    token: str


@dataclass(frozen=True)
class DevEndpoint:
    """One server. Its role is not stated: roles move, and are observed."""

    name: str
    host: str
    port: int
    pid: int
    data_dir: str
    superuser_dsn: str


def write_dev_json(
    directory: Path, *, router: str, admin: str, tenants: Iterable[DevTenant], endpoints: Iterable[DevEndpoint]
) -> Path:
    """Write DIRECTORY/dev.json atomically, owner-only (it holds passwords); `router` and `admin` are "host:port"."""
    path = directory / FILE_NAME
    write_json(
        path,
        {
            "router": router,
            "admin": admin,
            "tenants": [asdict(tenant) for tenant in tenants],
            "endpoints": [asdict(endpoint) for endpoint in endpoints],
        },
    )
    return path
