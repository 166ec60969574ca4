"""F3, the topology edge: where the list of clusters and endpoints comes from.

Here: sources behind ports.TopologySource. The configuration file is applied by app.py itself (also on reload), so it
needs none; Patroni and etcd will each be one. May import: ports, model, and the source's own library.
To add one: a file named after it, a class with watch(), and a line in SOURCES; the contract test runs over SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from router.ports import TopologySource

SOURCES: Mapping[str, Callable[..., TopologySource]] = MappingProxyType({})
"""Kind of source → its class."""
