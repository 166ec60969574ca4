"""Real PostgreSQL on this machine: a primary and streaming standbys, for `pointsman dev` and for the tests.

What may not be here: anything of the router. May import: the standard library, psycopg, and this package.
Imported by the composition root and by tests only. Start reading at cluster.py.
To add a step of replication, write it in replication.py and order it in lifecycle.py or rejoining.py.
"""

from router.devcluster.binaries import Binaries, Source, available_binaries, find_binaries
from router.devcluster.cluster import DevCluster
from router.devcluster.dev_json import DevEndpoint, DevTenant, write_dev_json
from router.devcluster.errors import (
    BinariesNotFoundError,
    DataRootError,
    DevClusterError,
    NoPrimaryError,
    ServerStartError,
)
from router.devcluster.healing import Healed, HealReason
from router.devcluster.lifecycle import CONTROL_ROLE
from router.devcluster.rejoining import Rejoined, RejoinMethod
from router.devcluster.server import Server, StopMode

__all__ = [
    "CONTROL_ROLE",
    "Binaries",
    "BinariesNotFoundError",
    "DataRootError",
    "DevCluster",
    "DevClusterError",
    "DevEndpoint",
    "DevTenant",
    "HealReason",
    "Healed",
    "NoPrimaryError",
    "RejoinMethod",
    "Rejoined",
    "Server",
    "ServerStartError",
    "Source",
    "StopMode",
    "available_binaries",
    "find_binaries",
    "write_dev_json",
]
