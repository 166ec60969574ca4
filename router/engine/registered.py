"""Tenants that may run only what the configuration registers for them: by its name (@NAME), or by exactly its text.

A text is looked up, never compared by meaning: what is sent to PostgreSQL is always the operator's own text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Request, Statement
from router.model.topology import IsolationMode, Tenant

Registered = Mapping[bytes, bytes]
"""SQL by what a caller may send for it."""


def texts_of(tenant: Tenant) -> Registered | None:
    """What the tenant may send, and the SQL it stands for; None: anything."""
    if tenant.isolation is not IsolationMode.REGISTERED:
        return None
    texts = {sql.encode(): sql.encode() for sql in tenant.statements.values()}
    return texts | {b"@" + name.encode(): sql.encode() for name, sql in tenant.statements.items()}


def resolve(registered: Registered, statement: Statement) -> Statement:
    """The statement as it is registered; RouterError PERMISSION_DENIED when it is not."""
    sql = registered.get(statement.sql)
    if sql is None:
        named = statement.sql.startswith(b"@")
        raise not_registered("no statement has this name" if named else "this text is none of its statements")
    return statement if sql == statement.sql else replace(statement, sql=sql)


def resolve_steps(registered: Registered, request: Request) -> None:
    """Put the registered SQL into each step of a request; RouterError PERMISSION_DENIED, and nothing changed."""
    steps: list[BatchStep] = []
    for step in request.steps:
        statement = resolve(registered, step.statement)
        steps.append(step if statement is step.statement else replace(step, statement=statement))
    request.steps = tuple(steps)


def resolves(registered: Registered, request: Request) -> bool:
    """As resolve_steps; False instead of the error."""
    try:
        resolve_steps(registered, request)
    except RouterError:
        return False
    return True


def not_registered(why: str) -> RouterError:
    """The refusal; it names nothing of what is registered."""
    return RouterError(
        Code.PERMISSION_DENIED,
        RefuseReason.NOT_REGISTERED,
        f"{why}: this tenant (isolation: registered) may run only the statements of its configuration; send @NAME",
    )
