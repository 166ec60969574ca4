"""Where a command's router is, and with which token: from options, the environment, or a running `pointsman dev`.

Options win over the environment, which wins over the dev.json of a development router that it names itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointsman.options import TLS

from router.console.trouble import ExitCode, Trouble
from router.model.policy import ServerPolicy

_LAST_PORT = 65535
_SCHEMES = frozenset({"dns", "unix"})
"""gRPC's own, such as dns:///router.example.net:7432; who writes https:// means something else."""


@dataclass(frozen=True)
class Target:
    """A router's address and the token to show it. tenant is empty for operators."""

    address: str
    token: str
    tenant: str = ""
    tls: TLS | None = None
    """None: plain text."""


def tls_of(environ: Mapping[str, str]) -> TLS | None:
    """How to speak TLS, by POINTSMAN_TLS, POINTSMAN_CA, POINTSMAN_CERT and POINTSMAN_KEY; None: not at all.

    The options of `pointsman` itself (--tls, --ca, --cert, --key) arrive here, too.
    """
    ca, cert, key = (environ.get(f"POINTSMAN_{name}") or None for name in ("CA", "CERT", "KEY"))
    if (cert is None) != (key is None):
        raise Trouble("--cert and --key go together", "give both files, or neither", ExitCode.USAGE)
    on = environ.get("POINTSMAN_TLS", "").lower() not in ("", "0", "no", "false")
    return TLS(ca, cert, key, environ.get("POINTSMAN_SERVER_NAME") or None) if on or ca or cert else None


def _tls_given() -> TLS | None:
    return tls_of(os.environ)


@dataclass(frozen=True)
class Given:
    """What the command line and the environment say; empty strings for what they do not."""

    address: str = ""
    token: str = ""
    tenant: str = ""
    dev: str = ""
    tls: TLS | None = field(default_factory=_tls_given)

    @property
    def proves_itself(self) -> bool:
        """Whether a certificate can stand for a token."""
        return self.tls is not None and self.tls.cert_file is not None


def caller_target(given: Given) -> Target:
    """For `pointsman sql`. Trouble when tenant or token cannot be found out."""
    dev = _dev_json(given.dev)
    tenants = {str(one["name"]): str(one["token"]) for one in dev.get("tenants", ())}
    tenant = given.tenant or next(iter(tenants), "")
    token = given.token or tenants.get(tenant, "")
    if given.dev and not given.token and tenant not in tenants:
        known = ", ".join(tenants) or "none"
        raise Trouble(f"the development router has no tenant {tenant}", f"its tenants: {known}", ExitCode.USAGE)
    if not token and not given.proves_itself:
        raise Trouble(
            "no token given",
            "use --token or POINTSMAN_TOKEN; --dev DIR takes it from a running `pointsman dev --data DIR`",
            ExitCode.USAGE,
        )
    address = given.address or str(dev.get("router", "")) or ServerPolicy.listen
    return Target(_address(address), token, tenant, given.tls)


def operator_target(given: Given) -> Target:
    """For the commands that talk to AdminService. Trouble when there is no token."""
    dev = _dev_json(given.dev)
    token = given.token or _dev_admin_token(given.dev)
    if not token and not given.proves_itself:
        raise Trouble(
            "no admin token given",
            "use --token or POINTSMAN_ADMIN_TOKEN; --dev DIR takes it from a running `pointsman dev --data DIR`",
            ExitCode.USAGE,
        )
    address = given.address or str(dev.get("admin", "")) or ServerPolicy.admin_listen
    return Target(_address(address), token, tls=given.tls)


def health_address(given: Given) -> str:
    """For `pointsman health`, which needs no token."""
    return _address(given.address or str(_dev_json(given.dev).get("router", "")) or ServerPolicy.listen)


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    scheme, mark, _ = text.partition("://")
    foreign = bool(mark) and scheme not in _SCHEMES
    good = bool(colon and host) and port.isdecimal() and 0 < int(port) <= _LAST_PORT
    if foreign or not (good or text.startswith("unix:")):
        raise Trouble(f"{text!r} is no address", "write host:port, such as 127.0.0.1:7432", ExitCode.USAGE)
    return text


def _dev_json(directory: str) -> Mapping[str, Any]:
    if not directory:
        return {}
    path = Path(directory) / "dev.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Trouble(
            f"no running development router in {directory}: {path} cannot be read",
            f"start one with: pointsman dev --data {directory}",
            ExitCode.USAGE,
        ) from None
    return content if isinstance(content, dict) else {}


def _dev_admin_token(directory: str) -> str:
    try:
        return (Path(directory) / "secrets" / "admin.token").read_text().strip() if directory else ""
    except OSError:
        return ""
