"""Which role each RPC needs. An RPC that does not stand here is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping

from router.model.callers import CallerRole
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason

_READER, _WRITER, _ADMIN = CallerRole.READER, CallerRole.WRITER, CallerRole.ADMIN

NEEDED: Mapping[str, CallerRole] = {
    "pointsman.v1.QueryService.Query": _READER,
    "pointsman.v1.QueryService.StreamQuery": _READER,
    "pointsman.v1.QueryService.CopyOut": _READER,
    "pointsman.v1.QueryService.Listen": _READER,
    "pointsman.v1.QueryService.CancelQuery": _READER,
    "pointsman.v1.QueryService.Multiplex": _READER,  # each of its calls needs its own, see below
    "pointsman.v1.QueryService.Execute": _WRITER,
    "pointsman.v1.QueryService.ExecuteBatch": _WRITER,
    "pointsman.v1.QueryService.CopyIn": _WRITER,
    "pointsman.v1.QueryService.GetOutcome": _WRITER,  # of writes, with their answers
    "pointsman.v1.TransactionService.Transact": _WRITER,
    "pointsman.v1.AdminService.GetServerInfo": _ADMIN,
    "pointsman.v1.AdminService.ListTenants": _ADMIN,
    "pointsman.v1.AdminService.ListEndpoints": _ADMIN,
    "pointsman.v1.AdminService.ListPools": _ADMIN,
    "pointsman.v1.AdminService.ListWaiters": _ADMIN,
    "pointsman.v1.AdminService.ListWorkers": _ADMIN,
    "pointsman.v1.AdminService.WatchTopology": _ADMIN,
    "pointsman.v1.AdminService.DrainEndpoint": _ADMIN,
    "pointsman.v1.AdminService.ResumeEndpoint": _ADMIN,
    "pointsman.v1.AdminService.SetEndpointWeight": _ADMIN,
    "pointsman.v1.AdminService.Switchover": _ADMIN,
    "pointsman.v1.AdminService.ReloadConfig": _ADMIN,
    "pointsman.v1.AdminService.DiffConfig": _ADMIN,
    "pointsman.v1.AdminService.GetTenant": _ADMIN,
    "pointsman.v1.AdminService.CreateTenant": _ADMIN,
    "pointsman.v1.AdminService.ChangeTenant": _ADMIN,
    "pointsman.v1.AdminService.PauseTenant": _ADMIN,
    "pointsman.v1.AdminService.ResumeTenant": _ADMIN,
    "pointsman.v1.AdminService.RemoveTenant": _ADMIN,
    "pointsman.v1.AdminService.RestartWorkers": _ADMIN,
}

IN_MULTIPLEX: Mapping[str, CallerRole] = {"query": _READER, "execute": _WRITER, "batch": _WRITER}
"""By the kind of a call on a Multiplex stream."""

PROVE_AGAIN = frozenset({"pointsman.v1.QueryService.Multiplex"})
"""Streams that look at the proof themselves; others end when it does."""


def check_role(role: CallerRole, needed: CallerRole | None, what: str) -> None:
    """RouterError ROLE_DENIED unless the role will do. needed: None for what nobody may do."""
    if needed is None:
        raise _denied(f"{what} is open to nobody")
    if not role.allows(needed):
        raise _denied(f"{what} needs the role {needed.value}, this identity has {role.value}")


def _denied(message: str) -> RouterError:
    return RouterError(Code.PERMISSION_DENIED, RefuseReason.ROLE_DENIED, message)
