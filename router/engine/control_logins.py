"""The router's own logins, when the configuration changes them: at each endpoint the new one is used once accepted."""

from __future__ import annotations

from collections.abc import Iterator

from router.decisions.login_choice import LoginChoice
from router.engine.alarms import Alarms
from router.model.events import AlarmChange, CredentialKind, LoginChanged
from router.model.identity import ClusterName, EndpointName
from router.model.topology import Cluster, Login
from router.model.views import CredentialTrouble
from router.ports import Clock, EventSink


class ControlLogins:
    """postgres.control_door.ControlLogins. Called from the event loop only."""

    def __init__(self, clock: Clock, events: EventSink) -> None:
        self._clock = clock
        self._events = events
        self._choices: dict[ClusterName, dict[EndpointName, LoginChoice]] = {}
        self._alarms: Alarms[tuple[ClusterName, EndpointName]] = Alarms(CredentialKind.CONTROL_LOGIN, clock, events)

    def apply(self, cluster: Cluster) -> None:
        """A cluster begins, or is configured anew."""
        before = self._choices.get(cluster.name, {})
        after = {one.name: before.get(one.name) or LoginChoice(cluster.control) for one in cluster.endpoints}
        self._choices[cluster.name] = after
        for endpoint, choice in after.items():
            choice.change(cluster.control)
            self._look(cluster.name, endpoint, choice, AlarmChange.DROPPED)
        self._alarms.drop(lambda key: key[0] == cluster.name and key[1] not in after)

    def forget(self, cluster: ClusterName) -> None:
        """A cluster ends."""
        self._choices.pop(cluster, None)
        self._alarms.drop(lambda key: key[0] == cluster)

    def troubles(self) -> Iterator[CredentialTrouble]:
        """Configured logins that servers refuse while former ones go on."""
        now = self._clock.now()
        for cluster, choices in self._choices.items():
            for endpoint, choice in choices.items():
                trouble = choice.trouble(now)
                if trouble is not None:
                    yield CredentialTrouble(cluster, endpoint, None, *trouble)

    def order(self, cluster: Cluster, endpoint: EndpointName) -> tuple[Login, ...]:
        """postgres.control_door.ControlLogins.order."""
        choice = self._of(cluster, endpoint)
        if choice is None:
            return (cluster.control,)
        if not choice.pending:
            return (choice.in_use,)
        both = (choice.configured, choice.in_use)
        return both if self._clock.now() >= choice.again_at else both[::-1]

    def accepted(self, cluster: Cluster, endpoint: EndpointName, login: Login) -> None:
        """postgres.control_door.ControlLogins.accepted."""
        choice = self._of(cluster, endpoint)
        if choice is None:
            return
        moved = choice.accepted(login)
        self._look(cluster.name, endpoint, choice)
        if moved:
            self._events.emit(LoginChanged(cluster.name, endpoint, None))

    def was_refused(self, cluster: Cluster, endpoint: EndpointName, login: Login, problem: str) -> None:
        """postgres.control_door.ControlLogins.was_refused."""
        choice = self._of(cluster, endpoint)
        if choice is not None and choice.pending and login == choice.configured:
            choice.refused(login, problem, self._clock.now())
            self._look(cluster.name, endpoint, choice)
            self._events.emit(LoginChanged(cluster.name, endpoint, None, problem))

    def _look(
        self,
        cluster: ClusterName,
        endpoint: EndpointName,
        choice: LoginChoice,
        otherwise: AlarmChange = AlarmChange.MENDED,
    ) -> None:
        trouble = choice.trouble(self._clock.now())
        if trouble is None:
            self._alarms.end((cluster, endpoint), otherwise)
        else:
            self._alarms.begin((cluster, endpoint), f"{cluster}/{endpoint}", trouble[0])

    def _of(self, cluster: Cluster, endpoint: EndpointName) -> LoginChoice | None:
        return self._choices.get(cluster.name, {}).get(endpoint)
