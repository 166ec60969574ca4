"""The router's own logins, when the configuration changes them: at each endpoint the new one is used once accepted."""

from __future__ import annotations

from collections.abc import Iterator

from router.decisions.login_choice import LoginChoice
from router.model.events import LoginChanged
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

    def apply(self, cluster: Cluster) -> None:
        """A cluster begins, or is configured anew."""
        before = self._choices.get(cluster.name, {})
        after = {one.name: before.get(one.name) or LoginChoice(cluster.control) for one in cluster.endpoints}
        for choice in after.values():
            choice.change(cluster.control)
        self._choices[cluster.name] = after

    def forget(self, cluster: ClusterName) -> None:
        """A cluster ends."""
        self._choices.pop(cluster, None)

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
        if choice is not None and choice.accepted(login):
            self._events.emit(LoginChanged(cluster.name, endpoint, None))

    def was_refused(self, cluster: Cluster, endpoint: EndpointName, login: Login, problem: str) -> None:
        """postgres.control_door.ControlLogins.was_refused."""
        choice = self._of(cluster, endpoint)
        if choice is not None and choice.pending and login == choice.configured:
            choice.refused(login, problem, self._clock.now())
            self._events.emit(LoginChanged(cluster.name, endpoint, None, problem))

    def _of(self, cluster: Cluster, endpoint: EndpointName) -> LoginChoice | None:
        return self._choices.get(cluster.name, {}).get(endpoint)
