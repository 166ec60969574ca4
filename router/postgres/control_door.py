"""Logging in as the router itself: with the configured login, or with the former one until servers accept the new."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from router.model.identity import EndpointName
from router.model.observation import AttemptFailed, Fault, FaultKind, ProbeOutcome, Stage
from router.model.secret_commands import SecretFailed
from router.model.topology import Cluster, Endpoint, Login
from router.postgres import conninfo
from router.postgres.control_connection import ControlConnection
from router.postgres.faults import LOGIN_FAILED
from router.postgres.greeting import ask_at_the_door
from router.postgres.passwords import KnownPasswords, Passwords


class ControlLogins(Protocol):
    """Which of the router's own logins is in use at an endpoint, while a changed one is not proven there yet."""

    def order(self, cluster: Cluster, endpoint: EndpointName) -> tuple[Login, ...]:
        """Those to try for a connection that is opened now, one after the other; mostly one, the configured."""
        ...

    def accepted(self, cluster: Cluster, endpoint: EndpointName, login: Login) -> None:
        """Of several, the server has accepted this one."""
        ...

    def was_refused(self, cluster: Cluster, endpoint: EndpointName, login: Login, problem: str) -> None:
        """Of several, the server has refused this one."""
        ...


class ControlDoor:
    """Opens connections of one cluster's control login."""

    def __init__(
        self, cluster: Cluster, passwords: Passwords | None = None, logins: ControlLogins | None = None
    ) -> None:
        """logins: which login is in use; None: the configured one."""
        self._cluster = cluster
        self._passwords = passwords or KnownPasswords()
        self._logins = logins

    async def open(self, endpoint: Endpoint, deadline: float) -> ControlConnection:
        """See ControlConnection.open."""
        configured = self._cluster.control
        logins = (configured,) if self._logins is None else self._logins.order(self._cluster, endpoint.name)
        for login in logins:
            try:
                connection = await self._log_in(endpoint, login, deadline)
            except AttemptFailed as failure:
                last = failure
                if len(logins) == 1 or not await self._is_refused(failure, endpoint, deadline):
                    raise
                if self._logins is not None:
                    self._logins.was_refused(self._cluster, endpoint.name, login, failure.fault.message)
                continue
            if len(logins) > 1 and self._logins is not None:
                self._logins.accepted(self._cluster, endpoint.name, login)
            return connection
        raise last

    async def ask(self, endpoint: Endpoint, deadline: float) -> ProbeOutcome:
        """Why a server takes no connection; see greeting.py."""
        return await ask_at_the_door(self._parameters(endpoint, self._cluster.control), deadline)

    async def _is_refused(self, failure: AttemptFailed, endpoint: Endpoint, deadline: float) -> bool:
        return (
            failure.fault.kind is FaultKind.CONNECT_FAILED
            and await self.ask(endpoint, deadline) is ProbeOutcome.LOGIN_REFUSED
        )

    async def _log_in(self, endpoint: Endpoint, login: Login, deadline: float) -> ControlConnection:
        parameters = self._parameters(endpoint, login)
        try:
            async with asyncio.timeout_at(deadline):
                password = await self._passwords.of(login)
        except TimeoutError:
            raise _without_password(endpoint, "the command that prints the password has not ended yet") from None
        except SecretFailed as failed:
            raise _without_password(endpoint, str(failed)) from None
        try:
            return await ControlConnection.open(conninfo.with_password(parameters, password), deadline)
        except AttemptFailed as failure:
            if password is login.password or not await self._is_refused(failure, endpoint, deadline):
                raise
            try:
                async with asyncio.timeout_at(deadline):
                    newer = await self._passwords.newer(login, password)
            except TimeoutError:
                newer = None
            if newer is None:
                raise
        return await ControlConnection.open(conninfo.with_password(parameters, newer), deadline)

    def _parameters(self, endpoint: Endpoint, login: Login) -> dict[str, Any]:
        return conninfo.for_control(self._cluster, endpoint, login)


def _without_password(endpoint: Endpoint, why: str) -> AttemptFailed:
    fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, LOGIN_FAILED, why, endpoint=endpoint.name)
    return AttemptFailed(fault)
