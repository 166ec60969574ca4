"""Where a request may run: candidates from one published state, then one pick.

Here: the rules of access, read preference, staleness, fallback and "all excluded means none excluded". Not here: how
one of several is chosen (balancing/), health itself (health.py), waiting (the engine).

`candidates` does the thinking, once per published state, kind of request and weights; RouteBook keeps its answers, so
that a request costs a dictionary hit and the balancer's pick.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from router.decisions.balancing.contract import Balancer, Weighted
from router.decisions.refusal import Refuse
from router.model.errors import Code
from router.model.events import Health, Phase
from router.model.identity import NO_LSN, NO_TERM, EndpointName, Generation, TopologyNumber
from router.model.reasons import RefuseReason, RouteReason
from router.model.request import Access, Fallback, OnFailover, ReadFrom
from router.model.state import ClusterState, EndpointState
from router.model.token import Token
from router.model.topology import Role

__all__ = ["Candidates", "Hold", "Refuse", "Route", "RouteBook", "Want", "candidates", "choose", "pick", "token_at"]


@dataclass(frozen=True, slots=True)
class Want:
    """The facts about a request that decide its route."""

    access: Access
    read: ReadFrom = ReadFrom.PRIMARY
    max_staleness_s: float = 0.0
    """What the caller accepts; 0: the tenant's limit. It can only narrow lag_limit_s (seconds)."""
    lag_limit_s: float = 10.0
    """The tenant's limit (seconds)."""
    fallback: Fallback = Fallback.TO_PRIMARY
    on_failover: OnFailover = OnFailover.WAIT
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kept per tenant and kind of request, looked up with every request (see Options).
        facts = (self.access, self.read, self.max_staleness_s, self.lag_limit_s, self.fallback, self.on_failover)
        object.__setattr__(self, "_hash", hash(facts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def limit_s(self) -> float:
        """Largest replay lag this request accepts (seconds)."""
        return min(self.max_staleness_s, self.lag_limit_s) if self.max_staleness_s > 0 else self.lag_limit_s


@dataclass(frozen=True, slots=True)
class Route:
    """Run it here. One object per endpoint and state: compare by value, not by identity."""

    endpoint: EndpointName
    role: Role
    reason: RouteReason
    topology: TopologyNumber
    generation: Generation
    token: bytes = b""
    """The consistency token of an answer from here for which nobody asked its position: as far as is known, "and
    now"."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait until the cluster's state changes: it has no primary that may be used."""

    phase: Phase
    topology: TopologyNumber
    """The state that was looked at; a newer one is worth another look."""
    message: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything that is decided before one endpoint is picked."""

    among: tuple[Weighted, ...]
    routes: tuple[Route, ...]
    """The ready answer per position of `among`."""
    otherwise: Route | Hold | Refuse
    """What is left when there is no candidate, or when all of them were tried in this request."""


def candidates(state: ClusterState, want: Want, weights: Mapping[EndpointName, int]) -> Candidates:
    """Who may serve such a request in this state. weights: the tenant's overrides of the endpoints' weights."""
    primary = _primary(state, want)
    if want.access is Access.READ_WRITE or want.read is ReadFrom.PRIMARY:
        return Candidates((), (), primary)
    members = [one for one in state.endpoints.values() if _eligible(one, want, weights)]
    if want.read is ReadFrom.ANY and isinstance(primary, Route):
        own = state.endpoints.get(primary.endpoint)
        if own is not None and _weight(own, weights) > 0:
            members.append(own)
    reason = RouteReason.BALANCED if len(members) > 1 else RouteReason.ONLY_ONE
    to_primary = want.read is ReadFrom.ANY or want.fallback is Fallback.TO_PRIMARY
    if to_primary and isinstance(primary, Route):
        fallback = Route(
            primary.endpoint,
            Role.PRIMARY,
            RouteReason.FALLBACK_PRIMARY,
            primary.topology,
            primary.generation,
            primary.token,
        )
        return _candidates(state, members, reason, weights, fallback)
    otherwise = primary if to_primary else _no_replica(state, want)
    if not members:
        members = [one for one in state.endpoints.values() if _revivable(one, state, want, weights)]
        reason = RouteReason.ALL_EXCLUDED
    return _candidates(state, members, reason, weights, otherwise)


def pick(
    found: Candidates,
    balancer: Balancer,
    in_flight: Mapping[EndpointName, int],
    draw: float,
    exclude: Collection[EndpointName] = (),
) -> Route | Hold | Refuse:
    """One of the candidates. exclude: endpoints that this request has tried, avoided while there is another way."""
    routes = found.routes
    if exclude:
        return _pick_untried(found, balancer, in_flight, draw, exclude)
    if not routes:
        return found.otherwise
    if len(routes) == 1:
        return routes[0]
    index = balancer.pick(found.among, in_flight, draw)
    return found.otherwise if index is None else routes[index]


def choose(
    state: ClusterState,
    want: Want,
    balancer: Balancer,
    weights: Mapping[EndpointName, int],
    in_flight: Mapping[EndpointName, int],
    draw: float,
    exclude: Collection[EndpointName] = (),
) -> Route | Hold | Refuse:
    """candidates and pick in one."""
    return pick(candidates(state, want, weights), balancer, in_flight, draw, exclude)


class RouteBook:
    """Candidates by kind of request, for the state and the weights last asked about; one per tenant.

    Invariant: every kept answer was computed from the very state and weights objects held here.
    """

    __slots__ = ("_found", "_state", "_weights")

    _LIMIT = 256
    """Kinds of requests kept; staleness is the caller's own number, so kinds are not bounded by us."""

    def __init__(self) -> None:
        self._state: ClusterState | None = None
        self._weights: Mapping[EndpointName, int] | None = None
        self._found: dict[Want, Candidates] = {}

    def candidates(self, state: ClusterState, want: Want, weights: Mapping[EndpointName, int]) -> Candidates:
        """The same as candidates(), computed once."""
        if state is not self._state or weights is not self._weights or len(self._found) > self._LIMIT:
            self._state, self._weights = state, weights
            self._found.clear()
        found = self._found.get(want)
        if found is None:
            found = self._found[want] = candidates(state, want, weights)
        return found


def token_at(state: ClusterState, name: EndpointName) -> bytes:
    """What an answer from an endpoint shows, for all that is known without asking: its last position, and now."""
    own = state.endpoints.get(name)
    term = state.term if name == state.primary or own is None else own.term
    if not state.system_id or not term:
        return b""
    lsn = own.lsn if own is not None else NO_LSN
    confirmed = state.synchronous if term == state.term else term == state.confirmed_before
    return Token(state.system_id, term, lsn, unconfirmed=not confirmed, now=True).encode()


def _primary(state: ClusterState, want: Want) -> Route | Hold | Refuse:
    name = state.primary
    if name is not None:
        own = state.endpoints.get(name)
        if own is None or not own.draining:
            token = token_at(state, name)
            return Route(name, Role.PRIMARY, RouteReason.PRIMARY, state.number, state.generation, token)
    draining = f"the primary is draining, until `pointsman resume {name}`"
    what = draining if name is not None else _PHASE_WORDS[state.phase]
    detail = f" ({state.detail})" if state.detail else ""
    numbers = {"cluster": state.name, "phase": state.phase.value, "topology": int(state.number)}
    if state.phase is Phase.STUCK:
        return Refuse(RefuseReason.NO_BACKEND, Code.UNAVAILABLE, what + detail, numbers, 5.0)
    if want.on_failover is OnFailover.FAIL_FAST:
        words = f"{what}{detail}, and the request asked not to wait"
        return Refuse(RefuseReason.NO_BACKEND, Code.UNAVAILABLE, words, numbers, 1.0)
    return Hold(state.phase, state.number, what + detail)


_PHASE_WORDS: Mapping[Phase, str] = {
    Phase.STARTING: "no primary has been found yet",
    Phase.STEADY: "the cluster has no primary",
    Phase.SUSPECT: "the primary is in doubt",
    Phase.HOLDING: "the cluster has no primary",
    Phase.PROMOTING: "a new primary is being promoted",
    Phase.DRAINING: "the cluster has no primary",
    Phase.STUCK: "the cluster has no primary and none can be made safely; an operator is needed",
}


def _weight(one: EndpointState, weights: Mapping[EndpointName, int]) -> int:
    return weights.get(one.name, one.weight)


def _in_rotation(one: EndpointState, weights: Mapping[EndpointName, int]) -> bool:
    """What holds whatever its health: a replica that people want to be used."""
    return one.role is Role.REPLICA and not one.draining and _weight(one, weights) > 0


def _eligible(one: EndpointState, want: Want, weights: Mapping[EndpointName, int]) -> bool:
    return _in_rotation(one, weights) and one.health is Health.UP and 0 <= one.lag_s <= want.limit_s


def _revivable(one: EndpointState, state: ClusterState, want: Want, weights: Mapping[EndpointName, int]) -> bool:
    """Excluded by nothing but its health, so worth a try when there is no other way.

    Its lag may be unknown because nobody reaches it; but a caller who named a bound gets no guess, and who was left
    behind on an older timeline may have been so for long.
    """
    if not _in_rotation(one, weights) or one.health in (Health.UP, Health.QUARANTINED):
        return False
    if one.lag_s < 0:
        return want.max_staleness_s <= 0 and not NO_TERM < one.term < state.term
    return one.lag_s <= want.limit_s


def _candidates(
    state: ClusterState,
    members: Iterable[EndpointState],
    reason: RouteReason,
    weights: Mapping[EndpointName, int],
    otherwise: Route | Hold | Refuse,
) -> Candidates:
    chosen = tuple(members)
    return Candidates(
        tuple(Weighted(one.name, _weight(one, weights)) for one in chosen),
        tuple(
            Route(
                one.name,
                Role.PRIMARY if one.name == state.primary else Role.REPLICA,
                reason,
                state.number,
                state.generation,
                token_at(state, one.name),
            )
            for one in chosen
        ),
        otherwise,
    )


def _no_replica(state: ClusterState, want: Want) -> Refuse:
    replicas = [one for one in state.endpoints.values() if one.role is Role.REPLICA]
    draining = sum(one.draining for one in replicas)
    unhealthy = sum(one.health is not Health.UP for one in replicas)
    behind = sum(one.health is Health.UP and not 0 <= one.lag_s <= want.limit_s for one in replicas)
    return Refuse(
        RefuseReason.NO_REPLICA,
        Code.UNAVAILABLE,
        f"no replica may serve this read: of {len(replicas)} known, {unhealthy} are not up, {behind} are more than "
        f"{want.limit_s:g} s behind, {draining} are draining; the request forbids the primary",
        {
            "replicas": len(replicas),
            "not_up": unhealthy,
            "behind": behind,
            "draining": draining,
            "lag_limit_s": want.limit_s,
        },
        1.0,
    )


def _pick_untried(
    found: Candidates,
    balancer: Balancer,
    in_flight: Mapping[EndpointName, int],
    draw: float,
    exclude: Collection[EndpointName],
) -> Route | Hold | Refuse:
    untried = [index for index, one in enumerate(found.among) if one.name not in exclude]
    otherwise = found.otherwise
    if not untried:
        # Everything was tried. A way not tried yet is better, then waiting, then the same again.
        fresh = not isinstance(otherwise, Route) or otherwise.endpoint not in exclude
        if not found.routes or (fresh and not isinstance(otherwise, Refuse)):
            return otherwise
        untried = list(range(len(found.among)))
    index = balancer.pick([found.among[index] for index in untried], in_flight, draw)
    return otherwise if index is None else found.routes[untried[index]]
