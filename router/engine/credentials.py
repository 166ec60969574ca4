"""Changed logins of tenants, proven before they are used: one is tried at each endpoint where the former one serves,
and pools move over once a server has accepted it. One that is refused is tried again, and told; the former one goes on.

Beside each endpoint where a changed login is not in use yet runs one task, as long as the tenant has pools there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from router.decisions.login_choice import LoginChoice
from router.engine.alarms import Alarms
from router.model.events import AlarmChange, CredentialKind, LoginChanged
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.observation import AttemptFailed, Fault, FaultKind
from router.model.topology import Login, Tenant
from router.model.views import CredentialTrouble
from router.ports import Clock, EventSink


class Place(NamedTuple):
    """Where a login is used."""

    tenant: TenantName
    endpoint: EndpointName


class Credentials:
    """Of all tenants of this process. Called from the event loop only."""

    def __init__(
        self,
        log_in: Callable[[Place, Login], Awaitable[None]],
        serves: Callable[[Place], bool],
        move: Callable[[Place], None],
        clock: Clock,
        events: EventSink,
    ) -> None:
        """log_in: a real login, AttemptFailed. serves: whether there are pools. move: another login is in use there."""
        self._log_in = log_in
        self._serves = serves
        self._move = move
        self._clock = clock
        self._events = events
        self.moved: Callable[[TenantName], None] = lambda _: None
        """Told, beside the pools, who has another login in use."""
        self._choices: dict[Place, LoginChoice] = {}
        self._clusters: dict[TenantName, ClusterName] = {}
        self._former: dict[TenantName, Login] = {}
        """Before the newest change, of tenants that have changed; a place without pools falls back on it."""
        self._proofs: dict[tuple[Place, Login], asyncio.Task[bool]] = {}
        self._pursuits: dict[Place, asyncio.Task[None]] = {}
        self._alarms: Alarms[Place] = Alarms(CredentialKind.LOGIN, clock, events)

    def login_of(self, tenant: Tenant, endpoint: EndpointName) -> Login:
        """What new connections are opened with."""
        place = Place(tenant.name, endpoint)
        choice = self._choices.get(place)
        if choice is None:
            former = self._former.get(tenant.name)
            if former is None:
                return tenant.login
            choice = self._choices[place] = LoginChoice(tenant.login, former)
        if choice.pending:
            self._pursue(place)
        return choice.in_use

    def changed(
        self, before: Tenant | None, after: Tenant, serving: set[EndpointName], refused: set[EndpointName]
    ) -> None:
        """A tenant is configured anew. serving: endpoints where it has pools. refused: of these, where the login in
        use is refused: there is nothing to go on with, so the new one is used at once."""
        if before is None or not before.same_home(after):  # no login of the one would do for the other
            self.forget({after.name})
            return
        if before.login == after.login:
            return
        self._clusters[after.name] = after.cluster
        self._former[after.name] = before.login
        for endpoint in serving:
            place = Place(after.name, endpoint)
            if endpoint in refused:
                self._choices[place] = LoginChoice(after.login, before.login)
            elif place not in self._choices:
                self._choices[place] = LoginChoice(before.login)
        for place, choice in self._choices.items():
            if place.tenant == after.name:
                choice.change(after.login)
                self._look(place, choice, AlarmChange.DROPPED)
                if choice.pending and place.endpoint in serving:
                    self._pursue(place)

    def forget(self, tenants: set[TenantName]) -> None:
        """They are gone, or others by now: their configured login is used, whatever was before."""
        for name in tenants & self._former.keys():
            del self._former[name], self._clusters[name]
        self._forget(lambda place: place.tenant in tenants)

    def forget_servers(self, endpoints: set[EndpointName]) -> None:
        """They have left the configuration, or are other servers by now: what those before said counts no more."""
        self._forget(lambda place: place.endpoint in endpoints)

    def _forget(self, gone: Callable[[Place], bool]) -> None:
        for place in [place for place in self._choices if gone(place)]:
            del self._choices[place]
        self._alarms.drop(gone)

    def troubles(self) -> Iterator[CredentialTrouble]:
        """Logins that servers refuse while former ones go on."""
        now = self._clock.now()
        for place, choice in self._choices.items():
            trouble = choice.trouble(now)
            if trouble is not None:
                yield CredentialTrouble(self._clusters[place.tenant], place.endpoint, place.tenant, *trouble)

    # --- what pools say ------------------------------------------------------------------------------------------

    def accepted(self, place: Place, login: Login) -> None:
        """A pool has opened a connection."""
        choice = self._choices.get(place)
        if choice is not None:
            choice.accepted(login)
            self._look(place, choice)

    async def rescued(self, place: Place, login: Login, fault: Fault) -> bool:
        """A pool's login was refused. True: another one was accepted, and the pool is no longer in use."""
        choice = self._choices.get(place)
        if choice is None:
            return False
        if choice.in_use != login:
            return True
        if not choice.pending:
            choice.refused(login, fault.message, self._clock.now())
        other = choice.other
        return other is not None and await asyncio.shield(self._proof(place, choice, other))

    # --- proving -------------------------------------------------------------------------------------------------

    def _pursue(self, place: Place) -> None:
        if place not in self._pursuits:
            task = self._pursuits[place] = asyncio.get_running_loop().create_task(self._until_moved(place))
            task.add_done_callback(lambda _: self._pursuits.pop(place))

    async def _until_moved(self, place: Place) -> None:
        while True:
            choice = self._choices.get(place)
            if choice is None or not choice.pending:
                return
            await self._clock.sleep(max(0.0, choice.again_at - self._clock.now()))
            if not self._serves(place):
                return  # begun again by its next pool
            if self._choices.get(place) is choice and choice.pending and self._clock.now() >= choice.again_at:
                await asyncio.shield(self._proof(place, choice, choice.configured))

    def _proof(self, place: Place, choice: LoginChoice, login: Login) -> asyncio.Task[bool]:
        """The proof of a login that is under way, or a new one: one for all who wait for it."""
        task = self._proofs.get((place, login))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._prove(place, choice, login))
            self._proofs[place, login] = task
            task.add_done_callback(lambda _: self._proofs.pop((place, login)))
        return task

    async def _prove(self, place: Place, choice: LoginChoice, login: Login) -> bool:
        try:
            await self._log_in(place, login)
        except AttemptFailed as failure:
            now = self._clock.now()
            if failure.fault.kind is FaultKind.CONNECT_FAILED:
                choice.refused(login, failure.fault.message, now)
                self._look(place, choice)
                if choice.pending and choice.problem:
                    self._tell(place, choice.problem)
            else:
                choice.unknown(now)
            return False
        moved = choice.accepted(login)
        self._look(place, choice)
        if not moved or self._choices.get(place) is not choice:
            return False
        self._tell(place, choice.problem)
        self._move(place)
        self.moved(place.tenant)
        return True

    def _tell(self, place: Place, problem: str) -> None:
        self._events.emit(LoginChanged(self._clusters[place.tenant], place.endpoint, place.tenant, problem))

    def _look(self, place: Place, choice: LoginChoice, otherwise: AlarmChange = AlarmChange.MENDED) -> None:
        """Begin or end the alarm. otherwise: why it ends, if it does."""
        if self._choices.get(place) is not choice:
            return
        trouble = choice.trouble(self._clock.now())
        if trouble is None:
            self._alarms.end(place, otherwise)
        else:
            about = f"{self._clusters[place.tenant]}/{place.endpoint}"
            self._alarms.begin(place, about, trouble[0], place.tenant)

    async def close(self) -> None:
        """Prove nothing more."""
        tasks = [*self._proofs.values(), *self._pursuits.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
