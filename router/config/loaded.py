"""A configuration that was read, as the router runs it. What reads one is in loading.py, with all that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from router.config.file_stamps import Stamp
from router.model.callers import CallerGrant
from router.model.policy import RetryPolicy, ServerPolicy
from router.model.port_policies import LogPolicy
from router.model.topology import Secret, Topology

if TYPE_CHECKING:
    from router.config.tenant_book import TenantBook


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration with its secrets resolved."""

    topology: Topology
    server: ServerPolicy
    retry: RetryPolicy
    admin_tokens: tuple[Secret, ...]
    admin_callers: tuple[CallerGrant, ...]
    log: LogPolicy
    source: Path
    files: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)
    """All that was read but tenants' own files, the file itself first, each as it was just before."""
    book: TenantBook | None = field(default=None, compare=False, repr=False)
    """The folder of tenants, if they are in files of their own. Changes with them."""
