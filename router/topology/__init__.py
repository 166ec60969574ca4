"""F3, the topology edge: where the list of clusters and endpoints comes from.

Today there is one source, the configuration file, and app.py applies it itself, at the start and at each reload: so
this floor is empty. SOURCES is the room for others, such as Patroni or etcd, behind ports.TopologySource. May import:
ports, model, and the source's own library. To add one: a file named after it with a class that has watch(), a line in
SOURCES, and, as the first of them, also a key in the configuration, app.py's choice by it, and a contract test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from router.ports import TopologySource

SOURCES: Mapping[str, Callable[..., TopologySource]] = MappingProxyType({})
"""Kind of source → its class; empty until there is a source beside the configuration file."""
