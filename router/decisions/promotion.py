"""Whether a standby may be promoted, and which one. Pure; failover.py asks when, the engine carries the plan out.

Safety rests on the quorum: when commits need k of n synchronous standbys, fencing n - k + 1 of them makes it
impossible for the old primary to acknowledge anything more, and at least one of the fenced ones has every
acknowledged commit; the most advanced of them therefore has them all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router.model.identity import EndpointName, Term
from router.model.observation import RoleClaim
from router.model.policy import FailoverPolicy
from router.model.reasons import PhaseReason

SILENCE_S = 1.0
"""A walreceiver that has heard nothing for this long, and longer than its ping interval, has lost its upstream."""
PING_SLACK_S = 0.25
LATER_S = 1.0
"""A standby that heard the primary for so much longer than this router did knows of it what the router cannot see: its
silence may be a crash restart, which by itself is no reason to promote (seconds)."""
GAP_S = 1.0
"""What a standby says twice counts for the time in between, unless it was not heard for so long (seconds)."""
_TOKEN = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s,()"]+)|([,()]))')


@dataclass(frozen=True, slots=True)
class SyncRule:
    """synchronous_standby_names, read: how many of which standbys must confirm a commit."""

    method: str = "ANY"
    """ANY or FIRST. For fencing both count the same: any k of the names may have confirmed."""
    k: int = 0
    """0: replication is asynchronous."""
    names: tuple[str, ...] = ()
    """application_names in lower case, as PostgreSQL compares them; ("*",) for all."""

    def text(self) -> str:
        """The form that PostgreSQL reads; empty when nobody needs to confirm."""
        if self.k == 0 or not self.names:
            return ""
        quoted = ", ".join(name if name == "*" else '"' + name.replace('"', '""') + '"' for name in self.names)
        return f"{self.method} {self.k} ({quoted})"


def read_sync_names(text: str) -> SyncRule:
    """Parse synchronous_standby_names: `a, b`, `2 (a, b)`, `FIRST 2 (a, b)`, `ANY 1 (a, b)` or `*`."""
    words = [_word(match) for match in _TOKEN.finditer(text)]
    method, k = "FIRST", 1
    if len(words) > 1 and words[1] == "(" and words[0].isdigit():
        k, words = int(words[0]), words[1:]
    elif len(words) > 2 and words[2] == "(" and words[0].upper() in ("ANY", "FIRST"):
        method, k, words = words[0].upper(), int(words[1]), words[2:]
    names = tuple(dict.fromkeys(word.lower() for word in words if word not in ("(", ")", ",")))
    return SyncRule(method, k, names) if names else SyncRule()


def _word(match: re.Match[str]) -> str:
    quoted, bare, mark = match.groups()
    if quoted is not None:
        return str(quoted).replace('""', '"')
    return str(bare or mark)


@dataclass(frozen=True, slots=True)
class Standby:
    """A configured endpoint other than the old primary, as last probed."""

    name: EndpointName
    answers: bool
    claim: RoleClaim | None = None
    probed_at: float = float("-inf")
    lost_since: float | None = None
    """Since when it has been without its upstream, each time it was asked; None: it hears one, or never told."""

    @property
    def application_name(self) -> str:
        """What synchronous_standby_names lists; by convention the endpoint's name where the server does not say."""
        told = self.claim.application_name if self.claim is not None else ""
        return (told or self.name).lower()

    @property
    def streams(self) -> bool:
        """Whether it answers, and follows someone."""
        return self.answers and self.claim is not None and self.claim.in_recovery and self.claim.receiver_alive

    def lost_upstream(self, since: float) -> bool:
        """Whether it says, after `since`, that it no longer hears the old primary."""
        if not self.answers or self.claim is None or self.probed_at < since or not self.claim.in_recovery:
            return False
        return has_lost_upstream(self.claim)

    def is_sure(self, doubted_at: float, policy: FailoverPolicy) -> bool:
        """Whether it has been without the old primary for long enough, all the time. doubted_at: when this router last
        had reason to believe in the old primary, or began to doubt it."""
        if self.lost_since is None:
            return False
        later = self.lost_since - doubted_at > LATER_S
        needed_s = max(policy.confirm_s, policy.restart_grace_s) if later else policy.confirm_s
        return self.probed_at - self.lost_since >= needed_s


def has_lost_upstream(claim: RoleClaim) -> bool:
    """Whether a server says that it is a standby without an upstream."""
    return claim.in_recovery and (not claim.receiver_alive or is_silent(claim))


def lost_since(before: float | None, asked_before: float, claim: RoleClaim, asked_at: float) -> float | None:
    """Since when a standby has been without its upstream, by what it says now and said before; None: it is not."""
    if not has_lost_upstream(claim):
        return None
    since = asked_at - max(0.0, claim.receiver_silent_s) if claim.receiver_alive else asked_at
    if before is None or asked_at - asked_before > GAP_S:
        return since
    return min(before, since)


def is_silent(claim: RoleClaim) -> bool:
    """Whether a streaming walreceiver has heard nothing for longer than a living upstream can keep quiet."""
    if claim.receiver_ping_s < 0:
        return False
    return claim.receiver_silent_s > max(SILENCE_S, claim.receiver_ping_s + PING_SLACK_S)


@dataclass(frozen=True, slots=True)
class PromotionPlan:
    """All that the engine needs to promote without asking again."""

    old_primary: EndpointName | None
    term: Term
    """The term that ends; the new primary's must be higher."""
    fence: tuple[EndpointName, ...]
    """Standbys to cut from the old primary, all that answer."""
    counted: tuple[EndpointName, ...]
    """Those of them whose fencing counts, and that may be chosen."""
    needed: int
    """So many of the counted must be fenced before anyone is promoted."""
    rule: SyncRule
    """Which standbys had to confirm the old primary's commits."""
    application_names: tuple[tuple[EndpointName, str], ...]
    """Of every endpoint, the old primary included."""
    may_lose: bool = False
    pinned: EndpointName | None = None
    """The only one that may be chosen: it may have been promoted already, by a move that did not end."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why there is no promotion (yet)."""

    reason: PhaseReason
    detail: str
    waits: bool
    """True: time may clear it; False: someone has to help."""


def plan_promotion(
    old_primary: EndpointName | None,
    old_claim: RoleClaim | None,
    standbys: Iterable[Standby],
    term: Term,
    doubted_at: float,
    policy: FailoverPolicy,
    *,
    answered_at: float = float("-inf"),
    hearsay: bool = False,
    pinned: EndpointName | None = None,
) -> PromotionPlan | Obstacle:
    """A plan when it is safe to promote now, else what is in the way.

    old_claim: the old primary's last. doubted_at: only what standbys said after it tells about the old primary now.
    answered_at: the old primary's last sign of life to this router.
    hearsay: old_claim is from before this router started, and may be outdated: then everyone else must be fenced.
    pinned: see PromotionPlan; then there is no way back, whether or not standbys still hear the old primary.
    """
    everyone = tuple(standbys)
    alive = tuple(s for s in everyone if s.answers and s.claim is not None and s.claim.in_recovery)
    rule = read_sync_names(old_claim.sync_names) if old_claim is not None else SyncRule()
    if rule.k == 0 and not policy.may_lose:
        what = "replication was asynchronous" if old_claim is not None else "the old primary's settings were never seen"
        detail = f"{what}: promoting could lose acknowledged writes (failover.may_lose allows it)"
        return Obstacle(PhaseReason.NOT_SYNCHRONOUS, detail, waits=False)
    if hearsay and not policy.may_lose:
        listed = tuple(s.application_name for s in everyone)
        counted, needed = alive, len(everyone)
    else:
        listed = _listed(rule, everyone, old_claim)
        counted = tuple(s for s in alive if s.application_name in listed) if rule.k else alive
        needed = fences_needed(len(listed), rule.k) if rule.k else 1
    obstacle = _too_few(counted, len(alive), len(listed), needed, policy)
    needed = min(needed, len(counted))
    if obstacle is None and pinned is None:
        obstacle = _still_heard(counted, needed, doubted_at, answered_at, policy)
    obstacle = obstacle or _left_behind(counted, term)
    if obstacle is not None:
        return obstacle
    names = tuple((s.name, s.application_name) for s in everyone)
    if old_primary is not None:
        names += ((old_primary, old_primary.lower()),)
    fence, candidates = tuple(s.name for s in alive), tuple(s.name for s in counted)
    return PromotionPlan(old_primary, term, fence, candidates, needed, rule, names, policy.may_lose, pinned)


def fences_needed(listed: int, k: int) -> int:
    """How many of the listed standbys must be fenced when k of them confirm each commit.

    n - k + 1, so that the old primary can collect k confirmations no more; and more than half of them, so that two
    routers can never both have fenced enough: a fence is one router's at a time.
    """
    return max(1, listed - k + 1, listed // 2 + 1)


def plan_rescue(
    everyone: Iterable[Standby], term: Term, since: float, policy: FailoverPolicy
) -> PromotionPlan | Obstacle:
    """A plan for a cluster whose primary this router has never seen: it was lost while no router watched.

    Its synchronous_standby_names are not known, so every other server must be fenced: whichever of them had to
    confirm a commit is then among them. At most one server may be missing, as only that one can be the primary.
    """
    standbys = tuple(everyone)
    alive = tuple(s for s in standbys if s.answers and s.claim is not None and s.claim.in_recovery)
    missing = tuple(s.name for s in standbys if s not in alive)
    if len(missing) > 1 or len(alive) < 2:
        detail = f"no primary was ever seen, and {len(missing)} of {len(standbys)} servers do not answer as standbys"
        return Obstacle(PhaseReason.FENCE_INCOMPLETE, detail, waits=False)
    if not policy.may_lose and not any(s.claim is not None and s.claim.sync_names for s in alive):
        detail = "no primary was ever seen, and synchronous_standby_names is set nowhere (failover.may_lose allows it)"
        return Obstacle(PhaseReason.NOT_SYNCHRONOUS, detail, waits=False)
    obstacle = _still_heard(alive, len(alive), since, since, policy)
    if obstacle is not None:
        return obstacle
    rule = SyncRule("ANY", 0 if policy.may_lose else 1, tuple(s.application_name for s in alive))
    names = tuple((s.name, s.application_name) for s in standbys)
    fence = tuple(s.name for s in alive)
    old_primary = missing[0] if missing else None
    return PromotionPlan(old_primary, term, fence, fence, len(fence), rule, names, policy.may_lose)


def _too_few(
    counted: tuple[Standby, ...], alive: int, listed: int, needed: int, policy: FailoverPolicy
) -> Obstacle | None:
    if not counted:
        return Obstacle(PhaseReason.NO_CANDIDATE, "no standby that may be promoted answers", waits=False)
    if policy.may_lose:
        return None
    if len(counted) < needed:
        detail = f"{len(counted)} of {listed} synchronous standbys answer, {needed} must be fenced"
        return Obstacle(PhaseReason.FENCE_INCOMPLETE, detail, waits=False)
    if alive < 2:
        detail = f"{counted[0].name} would be alone and could acknowledge no write (failover.may_lose allows it)"
        return Obstacle(PhaseReason.NO_CANDIDATE, detail, waits=False)
    return None


def _still_heard(
    counted: tuple[Standby, ...], needed: int, doubted_at: float, answered_at: float, policy: FailoverPolicy
) -> Obstacle | None:
    """Standbys that hear the primary, or heard it so lately that a backend's crash may be all that has happened."""
    lost = tuple(s for s in counted if s.lost_upstream(doubted_at))
    sure = tuple(s for s in lost if s.is_sure(max(doubted_at, answered_at), policy))
    hearing = tuple(s.name for s in counted if s not in sure)
    if len(counted) - len(hearing) >= needed:
        return None
    if len(lost) < needed:
        detail = f"{', '.join(hearing)} may still hear the primary: perhaps only this router is cut off from it"
    else:
        detail = f"{', '.join(hearing)} lost the primary only just now (failover.confirm_s): perhaps it is restarting"
    return Obstacle(PhaseReason.NO_PRIMARY, detail, waits=True)


def _left_behind(counted: tuple[Standby, ...], term: Term) -> Obstacle | None:
    """Nobody has followed the primary to its timeline: whoever is promoted would begin the same timeline again."""
    if any(s.claim is not None and s.claim.timeline >= term for s in counted):
        return None
    detail = f"no standby has followed the primary to timeline {term}: promoting one would make two of that timeline"
    return Obstacle(PhaseReason.NO_CANDIDATE, detail, waits=False)


def _listed(rule: SyncRule, everyone: tuple[Standby, ...], old_claim: RoleClaim | None) -> tuple[str, ...]:
    """Who may have confirmed a commit. Under * that is whoever streams, also a standby that is not configured here: it
    counts, and cannot be fenced."""
    if rule.names != ("*",):
        return rule.names
    ours = Counter(s.application_name for s in everyone)
    confirming = Counter(name.lower() for name in old_claim.sync_standbys) if old_claim is not None else Counter[str]()
    return tuple((ours | confirming).elements())


def choose_candidate(plan: PromotionPlan, fenced: Mapping[EndpointName, RoleClaim]) -> EndpointName | None:
    """The most advanced of the fenced synchronous standbys; None while fewer than needed are fenced."""
    counted = sorted(name for name in plan.counted if name in fenced)
    if len(counted) < plan.needed:
        return None
    if plan.pinned is not None:
        return plan.pinned if plan.pinned in fenced else None
    return max(counted, key=lambda name: (fenced[name].timeline, fenced[name].received_lsn, fenced[name].lsn))


def is_rival(claim: RoleClaim, fenced: Iterable[RoleClaim]) -> bool:
    """Whether a server that was to be fenced is a primary, and not one of the past, whose timeline they have left."""
    return not claim.in_recovery and all(claim.timeline >= one.timeline for one in fenced)


def next_rule(plan: PromotionPlan, chosen: EndpointName, remaining: Iterable[EndpointName]) -> SyncRule:
    """Who must confirm the new primary's commits: as many as before, but no more than remain to do so.

    The old primary is listed, so that it counts as soon as it is back as a standby. With nobody left the rule is
    empty when losing writes is allowed, and otherwise names the absent ones: nothing is acknowledged until one is back.
    """
    if plan.rule.k == 0:
        return SyncRule()
    names = dict(plan.application_names)
    left = tuple(remaining)
    if not left and plan.may_lose:
        return SyncRule()
    others = plan.rule.names
    if plan.old_primary is not None and others != ("*",):
        others = (*others, names[plan.old_primary])
    cohort = tuple(sorted({name for name in others if name != names[chosen]}))
    return SyncRule(plan.rule.method, max(1, min(plan.rule.k, len(left))), cohort)
