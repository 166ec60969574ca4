"""Divides an endpoint's cap among the workers of a router, by what they need.

Here: who may have how many connections. Not here: the messages' way (workers/), the worker's end
(engine/connection_budget.py). The state is explicit, every step a function from ledger to ledger.

Invariant: the sum of what workers may have open never passes the cap (a cap that was lowered aside: until the workers
have followed, nobody gets more). What a worker *may have open* is what counts, `held`: not its newest grant, but the
most that any grant it may still be obeying allows. It falls only by the worker's own word that it obeys a lower grant
and has closed down to it, and it ends only with `gone`: a worker that is silent, or whose channel broke, may still
have its connections. A successor of a dead worker is another worker. A worker that had nothing open may have forgotten
its grant; it gets the newest again, and counts in full all the time. Messages may be lost, but keep their order: after
an older, larger grant it would open more than it may have.

A tenant's floor is divided in whole connections as well, to the workers that use them: half a connection in each of two
would be none. What a worker needs for its parts of floors goes before all else; a part stays where it is until another
worker lacks it. A tenant's ceiling is divided as the cap is (ceiling_parts.py), whatever the worker's part of the cap.

The goal is max-min fairness by demand (max_min.py). Grants move only when a wish is not met, and then no more of them
than that takes; so what is granted in excess of demand stays where it is, and constant demand comes to rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NewType

from router.decisions import ceiling_parts
from router.decisions.ceiling_parts import NO_PART, CeilingPart
from router.decisions.max_min import fill
from router.model.identity import EndpointName, TenantName
from router.model.ledger import Demand, FloorWish, Grant

WorkerId = NewType("WorkerId", int)
"""One process; never used again."""


@dataclass(frozen=True, slots=True)
class Account:
    """One worker's."""

    granted: int = 0
    """By its newest grant."""
    number: int = 0
    """Of its newest grant; 0: none yet."""
    held: int = 0
    """Most it may have open: held >= granted."""
    obeyed: int = 0
    """Number of the newest grant it has said to obey, and not forgotten since."""
    wish: int = 0
    """Open and waiting for more, by its newest word."""
    floor: int = 1
    """Its due however little it asks for, while the cap allows one each."""
    floors: Mapping[TenantName, FloorWish] = field(default_factory=dict)
    """Of its tenants, by its newest word."""
    parts: Mapping[TenantName, int] = field(default_factory=dict)
    """Of these floors, what is its own by its newest grant."""
    ceilings: Mapping[TenantName, CeilingPart] = field(default_factory=dict)
    """Of tenants' ceilings."""

    @property
    def reserved(self) -> int:
        """Connections that its tenants' floors take here now."""
        return sum(min(part, self.floors[tenant].wish) for tenant, part in self.parts.items())

    @property
    def limits(self) -> Mapping[TenantName, int]:
        """Most connections of each tenant with a ceiling, by its newest grant."""
        return {tenant: part.granted for tenant, part in self.ceilings.items() if part.granted}

    @property
    def terms(self) -> tuple[object, ...]:
        """All that its newest grant says."""
        return self.granted, self.parts, self.limits


@dataclass(frozen=True, slots=True)
class Ledger:
    """An endpoint's."""

    endpoint: EndpointName
    cap: int
    accounts: Mapping[WorkerId, Account] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Most connections that all workers together may have open."""
        return sum(account.held for account in self.accounts.values())


# --- what happens --------------------------------------------------------------------------------------------------


def join(ledger: Ledger, worker: WorkerId, floor: int = 1) -> Ledger:
    """A worker begins, with nothing. ValueError when it is known already."""
    if worker in ledger.accounts:
        raise ValueError(f"worker {worker} has joined already")
    return replace(ledger, accounts={**ledger.accounts, worker: Account(floor=floor)})


def hear(ledger: Ledger, worker: WorkerId, demand: Demand) -> Ledger:
    """A worker's word. That of one who is gone, or about a grant that never was, changes nothing."""
    account = ledger.accounts.get(worker)
    if account is None or demand.number > account.number:
        return ledger
    if demand.number < account.obeyed:
        # It has forgotten what it said it obeys: nothing is known but that its newest grant is to be sent again.
        return _with(ledger, worker, replace(account, obeyed=demand.number))
    held = account.held
    if demand.number == account.number:
        # It obeys the newest grant: from now on it opens nothing beyond it, and what is open beyond it only falls.
        held = min(held, max(account.granted, demand.in_use))
    wish = demand.in_use + demand.waiting
    parts = {
        tenant: ceiling_parts.hear(
            account.ceilings.get(tenant, NO_PART), demand.ceilings.get(tenant), obeys=demand.number == account.number
        )
        for tenant in dict.fromkeys((*account.ceilings, *demand.ceilings))
    }
    heard = replace(account, held=held, obeyed=demand.number, wish=wish, floors=demand.floors, ceilings=parts)
    return _with(ledger, worker, heard)


def gone(ledger: Ledger, worker: WorkerId) -> Ledger:
    """Its process is known to have ended, and PostgreSQL has had the time to notice: a backend that runs a statement
    outlives its client by up to a second (client_connection_check_interval)."""
    return replace(ledger, accounts={one: account for one, account in ledger.accounts.items() if one != worker})


def resize(ledger: Ledger, cap: int) -> Ledger:
    """The configuration has another cap."""
    return replace(ledger, cap=cap)


# --- what is to be done --------------------------------------------------------------------------------------------


def divide(ledger: Ledger, now: float) -> tuple[Ledger, dict[WorkerId, Grant]]:
    """Grants to send: those that change, and again those that a worker has not said to obey (lost, or on the way).

    now: monotonic seconds."""
    before, ledger = ledger.accounts, _part_ceilings(_part_floors(ledger), now)
    due = fair_shares(ledger)
    ledger = _spread(_raise(_shrink(ledger, due), due))
    for worker, account in ledger.accounts.items():
        if account.terms != before[worker].terms:
            ledger = _with(ledger, worker, replace(account, number=account.number + 1))
    return ledger, {
        worker: Grant(ledger.endpoint, account.granted, account.number, account.parts, account.limits)
        for worker, account in ledger.accounts.items()
        if account.obeyed < account.number
    }


def fair_shares(ledger: Ledger) -> dict[WorkerId, int]:
    """Max-min fair: tenants' floors first, then everybody's own, then everybody's wish; nobody gets more than the
    largest of these.

    A part that cannot be divided further stays with who has it now.
    """
    accounts = ledger.accounts
    order = sorted(accounts, key=lambda one: (-accounts[one].granted, one))
    shares = fill(order, dict.fromkeys(order, 0), {one: accounts[one].reserved for one in order}, ledger.cap)
    shares = fill(order, shares, {one: max(accounts[one].floor, shares[one]) for one in order}, ledger.cap)
    wishes = {one: max(accounts[one].wish, shares[one]) for one in order}
    return fill(order, shares, wishes, ledger.cap)


def _part_floors(ledger: Ledger) -> Ledger:
    """The same with tenants' floors where they are used."""
    accounts = ledger.accounts
    parts: dict[WorkerId, dict[TenantName, int]] = {worker: {} for worker in accounts}
    for tenant in dict.fromkeys(tenant for account in accounts.values() for tenant in account.floors):
        for worker, part in _parts_of(tenant, accounts).items():
            if part:
                parts[worker][tenant] = part
    return replace(ledger, accounts={one: replace(account, parts=parts[one]) for one, account in accounts.items()})


def _parts_of(tenant: TenantName, accounts: Mapping[WorkerId, Account]) -> dict[WorkerId, int]:
    """Max-min fair by what the workers use of it; as it is while nobody lacks anything."""
    words = {worker: account.floors[tenant] for worker, account in accounts.items() if tenant in account.floors}
    now = {worker: accounts[worker].parts.get(tenant, 0) for worker in words}
    floor = max(word.floor for word in words.values())
    order = sorted(now, key=lambda one: (-now[one], one))
    due = fill(order, dict.fromkeys(order, 0), {one: word.wish for one, word in words.items()}, floor)
    enough = sum(now.values()) <= floor and all(now[one] >= due[one] for one in order)
    return now if enough else due


def _part_ceilings(ledger: Ledger, now: float) -> Ledger:
    """The same with tenants' ceilings where they are used; what nobody has, wants or may have is forgotten."""
    accounts = ledger.accounts
    divided: dict[WorkerId, dict[TenantName, CeilingPart]] = {worker: {} for worker in accounts}
    for tenant in dict.fromkeys(tenant for account in accounts.values() for tenant in account.ceilings):
        parts = {one: account.ceilings[tenant] for one, account in accounts.items() if tenant in account.ceilings}
        if not ceiling_parts.is_settled(parts):
            parts = ceiling_parts.divide(parts, now)
        for worker, part in parts.items():
            if part.held or part.ceiling:
                divided[worker][tenant] = part
    return replace(ledger, accounts={one: replace(account, ceilings=divided[one]) for one, account in accounts.items()})


def _shrink(ledger: Ledger, due: Mapping[WorkerId, int]) -> Ledger:
    """Ask back what others are due and is not free: from whoever has most beyond its own due."""
    accounts = ledger.accounts
    short = sum(max(0, due[one] - account.granted) for one, account in accounts.items())
    asked = sum(account.granted for account in accounts.values())
    short -= ledger.cap - asked  # what is free, or has been asked back already
    while short > 0:
        rich = max(accounts, key=lambda one: (accounts[one].granted - due[one], one), default=None)
        if rich is None or accounts[rich].granted <= due[rich]:
            break
        others = [accounts[one].granted - due[one] for one in accounts if one != rich]
        surplus = accounts[rich].granted - due[rich]
        take = min(short, max(1, surplus - max([0, *others])))
        ledger = _granted(ledger, rich, accounts[rich].granted - take)
        accounts = ledger.accounts
        short -= take
    return ledger


def _raise(ledger: Ledger, due: Mapping[WorkerId, int]) -> Ledger:
    """Give what is free to those who are due more, the worst off first."""
    for one in sorted(due, key=lambda one: (ledger.accounts[one].granted, one)):
        account = ledger.accounts[one]
        free = ledger.cap - ledger.held
        # What it may still have open by an older grant is its own already.
        reach = min(due[one], account.held + max(0, free))
        if reach > account.granted:
            ledger = _granted(ledger, one, reach)
    return ledger


def _spread(ledger: Ledger) -> Ledger:
    """What nobody is due is granted as well, so that a worker may grow without asking: to whoever has least."""
    free = ledger.cap - max(ledger.held, sum(account.granted for account in ledger.accounts.values()))
    if free <= 0 or not ledger.accounts:
        return ledger
    now = {one: account.granted for one, account in ledger.accounts.items()}
    order = sorted(now, key=lambda one: (now[one], one))
    shares = fill(order, now, dict.fromkeys(order, ledger.cap), sum(now.values()) + free)
    for one, share in shares.items():
        if share > now[one]:
            ledger = _granted(ledger, one, share)
    return ledger


def _granted(ledger: Ledger, worker: WorkerId, connections: int) -> Ledger:
    account = ledger.accounts[worker]
    return _with(ledger, worker, replace(account, granted=connections, held=max(account.held, connections)))


def _with(ledger: Ledger, worker: WorkerId, account: Account) -> Ledger:
    return replace(ledger, accounts={**ledger.accounts, worker: account})
