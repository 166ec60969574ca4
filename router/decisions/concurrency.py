"""How many connections may run something at a server at once: fewer while it is slower than usual, up to its cap again.
And how tenants share them.

A server with more work than processors answers nothing sooner for having all of it at once, only everything later,
and what stands before it can no longer be ordered or refused. The limit follows the gradient of its latency, as in
Netflix's concurrency-limits (Gradient2Limit.java: limit * tolerance * usual / now, at least halved, plus a little; no
growth while the limit is not used) and Envoy's adaptive concurrency filter (docs: configuration/http/http_filters/
adaptive_concurrency_filter: a usual latency measured now and then with little running, at times drawn apart, a
headroom of sqrt(limit)). Three things differ. Statements differ more than requests of one service, so each is compared
with itself in the least company in which it was seen. Of a tenant's answers a geometric mean is taken, and the server
is slow only if it is for most tenants, so that those that wait for a lock, of one tenant or of a few statements, do not
slow others down. And growth and decrease are apart: the limit falls to what the formula says at most, and rises only
while the server is not slow at all, so that it rests in between.

While the server is slow nothing is lent: what a tenant leaves of its part would slow down what it runs itself, if
another one had it. So the limit is a level: what may run if every tenant made use of its part. It rises beyond the cap
until the smallest part is the cap, and goes by the tenant that has most for its weight.

Pure: answers, peaks, `now` and drawn numbers come in.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import exp, floor, log, sqrt
from typing import Generic, NamedTuple, TypeVar

from router.decisions.shares import UNBOUNDED, Claim, dues
from router.model.reasons import ConcurrencyReason

TOLERANCE = 1.3
"""So many times slower than usual is not slow: company costs something on any server."""
MOST_LOG = log(8.0)
"""An answer counts as at most so many times slower, or faster, than usual."""
SMOOTH = 0.5
"""Share of the newest measurement in the limit, unless it says TOO_SLOW."""
TOO_SLOW = 2.6
"""So many times slower than usual is no accident of one measurement."""
WINDOW_S = 0.2
"""A measurement takes at least this long (seconds)."""
LONG_WINDOW_S = 1.0
"""It may take this long to have ENOUGH answers; then a FEW will do (seconds)."""
ENOUGH = 20
"""Answers of a measurement, or of a probe in little company."""
FEW = 3
"""Answers of a tenant until it has a say."""
KNOWN = 5
"""Answers of a statement until its usual time is known."""
QUICK_S = 0.001
"""Answers that usually come sooner say more of our own delays than of the server's (seconds)."""
LEARN = 0.1
"""Share of a new answer in the usual time, once there are more than ten."""
STALE_S = 60.0
"""What was seen in little company before that is no longer usual: data grows, plans change (seconds)."""
FIRST_PROBE_S = 2.0
PROBE_S = 15.0
"""While more runs than that, and nothing was seen in little company for this long, the usual times are measured: as
little as is allowed runs for a moment (seconds; a tenth more or less, drawn). The first one comes sooner."""
PROBE_MOST_S = 480.0
"""While the server is not slow, each probe puts the next one off, doubled up to this (seconds)."""
PROBING_S = 1.0
"""Longest moment (seconds)."""
_EXACT = 1e-9
_K = TypeVar("_K", bound=Hashable)


class Usual:
    """What one statement takes, by how much else ran: in company of 1, 2 to 3, 4 to 7 and so on."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def note(self, took_s: float, company: int, now: float) -> Told | None:
        """An answer; company: connections that ran something then, this one included. None: what is usual is not known
        yet, too quick to tell, or no other than this."""
        took_log = log(max(took_s, 1e-6))
        level = company.bit_length()
        seen = self._seen.get(level)
        if seen is None or now - seen.at > STALE_S:
            seen = self._seen[level] = _Seen()
        seen.answers += 1
        seen.at = now
        seen.mean_log += max(LEARN, 1 / seen.answers) * (took_log - seen.mean_log)
        least = self._least(now)
        if least is None or least >= level or self._seen[least].mean_log < log(QUICK_S):
            return None
        return Told(took_log - self._seen[least].mean_log, least)

    def _least(self, now: float) -> int | None:
        known = [level for level, seen in self._seen.items() if seen.answers >= KNOWN and now - seen.at <= STALE_S]
        return min(known, default=None)

    def usual_s(self, now: float) -> float:
        """What is usual (seconds); 0: not known."""
        least = self._least(now)
        return exp(self._seen[least].mean_log) if least is not None else 0.0


class Told(NamedTuple):
    """What one answer tells."""

    slower_log: float
    """The logarithm of how many times slower than usual it was."""
    level: int
    """Of the company in which that is usual: the smaller, the more it tells."""


class _Seen:
    """Answers in one kind of company."""

    __slots__ = ("answers", "at", "mean_log")

    def __init__(self) -> None:
        self.answers = 0
        self.at = 0.0
        """The last one (monotonic seconds)."""
        self.mean_log = 0.0
        """Of seconds: the geometric mean's logarithm."""


class Slowness(Generic[_K]):
    """One measurement: how much slower than usual the server answers."""

    __slots__ = ("_logs", "began", "calm", "count", "level", "peak")

    def __init__(self, now: float) -> None:
        self.began = now
        self.peak = 0
        """Most connections that have run something at once since."""
        self.level = 0.0
        """The least limit under which what ran would have been within every tenant's part."""
        self.count = self.calm = 0
        """Answers, and those of them in as little company as in a probe."""
        self._logs: dict[int, dict[_K, tuple[float, int]]] = {}
        """Sum and number of what answers told, by level and tenant."""

    def note(self, tenant: _K, told: Told | None, *, calm: bool) -> None:
        """An answer. calm: it had as little company as in a probe."""
        self.count += 1
        self.calm += calm
        if told is None:
            return
        logs = self._logs.setdefault(told.level, {})
        total, count = logs.get(tenant, (0.0, 0))
        logs[tenant] = (total + min(max(told.slower_log, -MOST_LOG), MOST_LOG), count + 1)

    def saw(self, running: int, level: float) -> None:
        """So many connections ran something at once; level: see there."""
        self.peak = max(self.peak, running)
        self.level = max(self.level, level)

    def is_whole(self, now: float) -> bool:
        """Long enough to be judged."""
        since = now - self.began
        return since >= LONG_WINDOW_S or (since >= WINDOW_S and self.count >= ENOUGH)

    @property
    def times(self) -> float | None:
        """So many times slower, by those who know it best; None: nothing is known to be. Whether it is slow is the word
        of the lower half of the tenants, how slow that of all."""
        for _, logs in sorted(self._logs.items()):
            told = sorted(total / count for total, count in logs.values() if count >= FEW)
            if told:
                middle = told[(len(told) - 1) // 2]
                return exp(middle if middle <= log(TOLERANCE) else sum(told) / len(told))
        return None


class ConcurrencyLimit:
    """The limit of one endpoint. Invariant: least <= allowed <= most, and least <= level."""

    __slots__ = ("_calm_at", "_limit", "_probe_s", "_probe_until", "_shift", "_smallest", "least", "most", "reason",
                 "slower")

    def __init__(self, least: int, most: int, now: float) -> None:
        self.least = least
        self.most = most
        self.reason = ConcurrencyReason.CAP
        self.slower = 1.0
        """Times slower than usual the server was when it was last measured."""
        self._limit = float(most)
        self._smallest = 1.0
        """Part of the tenant with the least weight among those that run something."""
        self._calm_at = now
        """When something was last seen in as little company as a probe makes."""
        self._probe_s = FIRST_PROBE_S
        self._probe_until = 0.0
        """A probe is under way until then; 0: none is (monotonic seconds)."""
        self._shift = 1.0
        """Of the next probe: drawn, so that several routers do not probe together."""

    @property
    def allowed(self) -> int:
        """Connections that may run something at once."""
        return min(int(self.level + _EXACT), self.most)

    @property
    def level(self) -> float:
        """What the tenants' parts are parts of; above the cap where all do not make use of theirs."""
        return float(self.least) if self._probe_until else self._limit

    @property
    def divides(self) -> bool:
        """Every tenant has its part and no more; else what one leaves is there for the others."""
        return self.probing or self._limit < self._ceiling

    @property
    def _ceiling(self) -> float:
        return self.most / self._smallest

    @property
    def probing(self) -> bool:
        """The usual times are being measured."""
        return self._probe_until > 0.0

    def resize(self, least: int, most: int) -> None:
        """Other bounds."""
        self._bound(min(least, most), most, self._smallest)

    def share(self, smallest: float) -> None:
        """Other tenants run something now. smallest: the least part of one of them, in (0, 1]."""
        self._bound(self.least, self.most, smallest)

    def _bound(self, least: int, most: int, smallest: float) -> None:
        divides = self._limit < self._ceiling
        self.least, self.most, self._smallest = least, most, smallest
        self._limit = min(max(self._limit, least), self._ceiling) if divides else self._ceiling

    def step(self, measured: Slowness[_K], now: float, drawn: float) -> bool:
        """Called every now and then. drawn: from [0, 1). Whether the measurement is over, and another one begins."""
        if self.probing:
            return self._end_probe(measured, now)
        if not measured.is_whole(now):
            return False
        if measured.calm:
            self._calm_at = now
        if measured.count:
            self.slower = measured.times or 1.0
            self._follow(self.slower, measured.level)
        if measured.peak > self.least and now - self._calm_at > self._probe_s * self._shift:
            self._shift = 0.9 + 0.2 * drawn
            self._probe_until = now + PROBING_S
            self.reason = ConcurrencyReason.PROBE
        return True

    def _follow(self, slower: float, level: float) -> None:
        before = self._limit
        if slower > TOLERANCE:
            used = min(before, max(level, float(self.least)))
            before = min(before, max(used, float(self.most)))
            aimed = min(before, max(0.5, TOLERANCE / slower) * used + sqrt(used))
            self._probe_s = min(self._probe_s, PROBE_S)
        elif level < before / 2:
            aimed = before  # nothing is known of what lies beyond
        else:
            aimed = before + sqrt(before)
        share = 1.0 if slower > TOO_SLOW else SMOOTH
        self._limit = min(max(before + share * (aimed - before), self.least), self._ceiling)
        if self._limit >= self._ceiling:
            self.reason = ConcurrencyReason.CAP
        elif aimed > before:
            self.reason = ConcurrencyReason.GROWING
        else:
            self.reason = ConcurrencyReason.SLOW if slower > TOLERANCE else ConcurrencyReason.UNUSED

    def _end_probe(self, measured: Slowness[_K], now: float) -> bool:
        if measured.calm < ENOUGH and now < self._probe_until:
            return False
        self._probe_until = 0.0
        self._calm_at = now
        self._probe_s = min(2 * self._probe_s, PROBE_MOST_S)
        self.reason = ConcurrencyReason.CAP if self._limit >= self._ceiling else ConcurrencyReason.SLOW
        return True


@dataclass(frozen=True, slots=True)
class Due:
    """What a tenant is due of an endpoint, beside the others."""

    floor: int
    weight: float


def parts(level: float, tenants: Mapping[_K, Due]) -> dict[_K, int]:
    """Of a limit, connections for each tenant that runs something: in proportion to weights, not less than its floor
    (all floors are cut where they exceed the limit), and one in any case."""
    claims = [Claim(0, UNBOUNDED, one.floor, one.weight) for one in tenants.values()]
    return {name: max(1, floor(due + _EXACT)) for name, due in zip(tenants, dues(claims, level), strict=True)}


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a pool that waits: what its tenant, and it itself, has running at the endpoint."""

    running: int
    due: Due
    own: int
    """Of the tenant's, those of this pool."""
    turn: int
    """When it was last let in, counted in turns."""


def next_to_run(waiting: Mapping[_K, Standing]) -> _K:
    """Whose turn it is: of the tenants who has less than its floor, then who has least for its weight, so that what
    runs is divided max-min fairly in proportion to weights; of one tenant's pools who has least; then in turn."""

    def order(pool: _K) -> tuple[bool, float, int, int]:
        one = waiting[pool]
        return one.running >= one.due.floor, one.running / one.due.weight, one.own, one.turn

    return min(waiting, key=order)
