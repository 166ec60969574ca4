"""Opening the connections of one pool: with a permit of the endpoint's budget, through its gate, and remembered with
all that the router needs to know of a connection from its birth on.

psycopg_pool opens connections by itself: when somebody waits, after a lifetime, in place of a broken one. A connect
without a permit fails, by which psycopg_pool learns that it has one place less.
"""

from __future__ import annotations

import asyncio
import traceback
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators

from router.model.events import ConnectFailed, ConnectionClosed, ConnectionMisplaced
from router.model.identity import Generation
from router.model.observation import Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.secret_commands import SecretFailed
from router.model.topology import Cluster, Endpoint, Secret, Tenant
from router.ports import Chance, EventSink
from router.postgres import conninfo, faults
from router.postgres.connect_gate import ConnectGate
from router.postgres.greeting import ask_at_the_door
from router.postgres.handshakes import TOO_LONG, Handshakes, NeverProven
from router.postgres.liveness import shut_socket
from router.postgres.passwords import Passwords
from router.postgres.permits import Permit, PoolPermits
from router.postgres.prepared import PreparedStatements
from router.postgres.proving import Misplaced, prove
from router.postgres.session_guard import SessionGuard

if TYPE_CHECKING:
    from typing import Self

    from psycopg.abc import PQGenConn

_LIFETIME_JITTER = 0.1
_DOOR_S = 0.2
_MOST_PASSWORDS = 3
"""Of those that a command prints one after the other: what it has just printed may be worth nothing when it is used."""
_HANDED_OVER_S = 0.002
"""By then psycopg_pool has given a new connection to whoever waits first."""

Waiters = Mapping[asyncio.Future[Fault | None], None]
"""Borrowers; told the fault of a failed connect, or None: to ask the inner pool again."""


class NotNow(psycopg.OperationalError):
    """No room under the endpoint's cap, or nobody needs the connection any more."""


class NoPassword(psycopg.OperationalError):
    """The command that prints the password has failed; the text is for the operator."""


class Born:
    """What the router remembers of a connection from its birth on."""

    __slots__ = ("expires_at", "generation", "guard", "permit", "prepared")

    def __init__(
        self,
        generation: Generation,
        expires_at: float,
        prepared: PreparedStatements,
        guard: SessionGuard,
        permit: Permit,
    ) -> None:
        self.generation = generation
        self.guard = guard
        self.expires_at = expires_at
        self.prepared = prepared
        self.permit = permit


class Opener:
    """Makes the connection classes of a pool's inner pools, one after the other; only the newest one's may open."""

    def __init__(
        self,
        tenant: Tenant,
        cluster: Cluster,
        endpoint: Endpoint,
        access: Access,
        generation: Generation,
        gate: ConnectGate,
        permits: PoolPermits[Any],
        waiters: Waiters,
        passwords: Passwords,
        handshakes: Handshakes,
        chance: Chance,
        events: EventSink,
    ) -> None:
        self.generation = generation
        """Of the connections that are opened from now on."""
        self.failing = False
        """The server took no connection the last time, or one was lost since."""
        self.connecting = 0
        self.replacing = 0
        """Connections that were ended in use: one like it may be opened before somebody waits for it."""
        self.gate = gate
        self._tenant = tenant
        self._endpoint = endpoint
        self._access = access
        self._kwargs = conninfo.for_tenant(tenant, cluster, endpoint, access)
        self._passwords = passwords
        self._handshakes = handshakes
        self._who = (tenant.name, tenant.login.user)
        self._permits = permits
        self._waiters = waiters
        self._chance = chance
        self._events = events
        self._born: weakref.WeakKeyDictionary[psycopg.AsyncConnection[Any], Born] = weakref.WeakKeyDictionary()
        self._newest = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """libpq's, for psycopg_pool."""
        return self._kwargs

    def born(self, connection: psycopg.AsyncConnection[Any]) -> Born | None:
        """None: it is closed, or not one of ours."""
        return self._born.get(connection)

    def forget(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """It is closed, by whomever: its permit comes back when the server has let go of it."""
        self._permits.now_used(connection)
        born = self._born.pop(connection, None)
        if born is not None:
            born.permit.end()

    def renew(self) -> None:
        """The inner pool is given up: what it still wants to open is not opened."""
        self._newest += 1
        self.replacing = 0
        self._permits.budget.withdraw(self._permits)

    def connection_class(self) -> type[psycopg.AsyncConnection[Any]]:
        """For the newest inner pool."""
        opener = self
        number = self._newest

        class Connection(psycopg.AsyncConnection[Any]):
            """Counts against the endpoint's cap and gate, and is remembered with its generation."""

            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                return await opener._permitted(number, super().connect, *args, **kwargs)

            @classmethod
            def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Self]:
                polling = generators.connect(conninfo)
                return cls((yield from opener._handshakes.driven(opener._who, polling)))

            async def close(self) -> None:
                await super().close()
                opener.forget(self)

        return Connection

    async def _permitted(self, number: int, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Open a connection if it is wanted and there is room for it, now or in our turn."""
        replaces, self.replacing = self.replacing > 0, max(0, self.replacing - 1)
        if not self._waiters:
            if self.failing:
                raise NotNow("the server took none the last time")
            if not replaces and self._permits.open >= self._tenant.pool.min_size:
                raise NotNow("nobody waits for it")
        if number == self._newest:
            await self._have_password()  # what takes a while holds no permit
        permit = await self._permits.take() if number == self._newest else None
        if permit is None:
            raise NotNow("no room under the endpoint's cap")
        try:
            connection = await self._connect(permit, connect, *args, **kwargs)
        except BaseException:
            permit.end()
            raise
        if permit.queued:
            # While it stood in line, psycopg_pool was turned away when it wanted to grow further.
            asyncio.get_running_loop().call_later(_HANDED_OVER_S, self.wake)
        return connection

    async def _connect(self, permit: Permit, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        generation = self.generation
        self.connecting += 1
        try:
            connection = await self._log_in(permit, connect, *args, autocommit=True, **kwargs)
        except Misplaced as misplaced:
            self._tell_misplaced(misplaced)
            raise
        except (NoPassword, NeverProven) as missing:
            self._tell_misfit(str(missing))
            raise
        except faults.CLIENT_ERRORS as error:
            await self._tell_failure(error)
            raise
        except faults.SENSELESS as error:
            senseless = psycopg.OperationalError(f"an answer that makes no sense: {type(error).__name__}")
            await self._tell_failure(senseless)
            raise senseless from error
        finally:
            self.connecting -= 1
        age = self._tenant.pool.lifetime_s * (1 - _LIFETIME_JITTER * self._chance.draw())
        self.failing = False
        self._born[connection] = Born(
            generation,
            asyncio.get_running_loop().time() + age,
            PreparedStatements(self._tenant.pool.prepared_statements),
            SessionGuard(connection.pgconn, self._access),
            permit,
        )
        self._permits.now_idle(connection)
        return connection

    async def _log_in(self, permit: Permit, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Connect with the password of this moment; again if the server refuses it and there is a newer one.
        Commands are waited for outside the gate, which tenants share."""
        login = self._tenant.login

        async def with_password(password: Secret | None) -> Any:
            async with self.gate.place(self._tenant.name):
                kwargs["connect_timeout"] = conninfo.connect_timeout(self.gate.timeout_s)
                connection = await self._shake_hands(connect, *args, **conninfo.with_password(kwargs, password))
                permit.attach(connection)
                await self._prove(connection)
            return connection

        password = await self._password(self._passwords.of(login))
        for _ in range(_MOST_PASSWORDS - 1):
            try:
                return await with_password(password)
            except psycopg.Error as error:
                if password is login.password or not faults.asked_for_password(error):
                    raise
                newer = await self._password(self._passwords.newer(login, password))
                if newer is None:
                    raise
                password = newer
        return await with_password(password)

    async def _shake_hands(self, connect: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await connect(*args, **kwargs)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # psycopg's generator among them, so what computes is given up
            if isinstance(error, psycopg.errors.ConnectionTimeout) and self._handshakes.computes(self._who):
                raise NeverProven(TOO_LONG.format(self._tenant.login.user)) from None
            raise

    async def _have_password(self) -> None:
        try:
            await self._password(self._passwords.of(self._tenant.login))
        except NoPassword as missing:
            self._tell_misfit(str(missing))
            raise

    async def _password(self, asked: Awaitable[Secret | None]) -> Secret | None:
        try:
            return await asked
        except SecretFailed as failed:
            raise NoPassword(str(failed)) from None

    async def _prove(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Close it unless it is the tenant's own."""
        try:
            await prove(connection, self._tenant, self.gate.timeout_s)
        except BaseException:
            shut_socket(connection.pgconn)
            connection.pgconn.finish()
            raise

    def _tell_misplaced(self, misplaced: Misplaced) -> None:
        """Nobody gets it."""
        tenant, endpoint, problem = self._tenant.name, self._endpoint.name, str(misplaced)
        self._events.emit(ConnectionMisplaced(tenant, endpoint, problem))
        self._tell_misfit(problem)
        self._events.emit(ConnectionClosed(tenant, endpoint, self._access, CloseReason.MISPLACED))

    def _tell_misfit(self, problem: str) -> None:
        """Not the server's fault, and nothing that waiting or another server would mend."""
        self.failing = True
        endpoint = self._endpoint.name
        self._events.emit(ConnectFailed(self._tenant.name, endpoint, problem))
        self._tell(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, faults.LOGIN_FAILED, problem, endpoint=endpoint))

    async def _tell_failure(self, error: BaseException) -> None:
        door = await ask_at_the_door(self._kwargs, asyncio.get_running_loop().time() + _DOOR_S)
        fault = faults.from_connect(error, door, proven=len(self._born) > 0)
        self.failing = True
        self._events.emit(ConnectFailed(self._tenant.name, self._endpoint.name, fault.message))
        self._tell(fault)

    def wake(self) -> None:
        """A place in the inner pool became free that it does not fill by itself: who waits there asks again."""
        if not self._permits.in_line:
            self._tell(None)

    def _tell(self, fault: Fault | None) -> None:
        """A connect that failed is told to the first of those who wait as its own, to the others as one they shared."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(fault)
                if fault is not None and not fault.shared:
                    fault = replace(fault, shared=True)
