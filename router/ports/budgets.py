"""How pools share an endpoint's connections: the budget that counts them, and the pools as it sees them."""

from __future__ import annotations

from typing import Protocol

from router.model.identity import TenantName
from router.model.policy import PoolPolicy


class BudgetHolder(Protocol):
    """A pool, as the budget of its endpoint sees it. All of it is synchronous and cheap."""

    tenant: TenantName
    policy: PoolPolicy
    """The tenant's share: floor, weight and ceiling."""

    @property
    def waiting(self) -> int:
        """Borrowers that wait for a connection."""
        ...

    @property
    def leaving(self) -> int:
        """Permits that are on their way back: connections being closed, or closed a moment ago, and lanes asked to run
        dry a moment ago."""
        ...

    @property
    def keeps(self) -> int:
        """Permits it holds and was not asked to give up; also of closed connections that the server holds on to."""
        ...

    @property
    def idle(self) -> int:
        """Of these, connections that nobody uses."""
        ...

    def idle_since(self, *, below_min: bool) -> float | None:
        """When the connection that has been idle longest was last used; None when it has none to spare. below_min:
        also those that min_size keeps."""
        ...

    def close_idle(self) -> None:
        """Begin to close that connection; its permit comes back when the server has let go of it."""
        ...

    def retire_lane(self) -> bool:
        """Ask the lane that has been lent longest to take nothing new and to end with its last answer. False when
        there is none left to ask."""
        ...


class ConnectionBudget(Protocol):
    """How many connections this process may have open to one endpoint, over all pools. A permit is one of them: taken
    before a connection is opened, given back when the server has let go of it."""

    @property
    def granted(self) -> int:
        """Most connections open now."""
        ...

    @property
    def in_use(self) -> int:
        """Permits that are out."""
        ...

    def join(self, holder: BudgetHolder) -> None:
        """From now on this pool takes permits, and is asked for what it does not use."""
        ...

    def leave(self, holder: BudgetHolder) -> None:
        """The pool is closed: no longer asked for anything. Permits that are on their way back still count."""
        ...

    def try_take(self, holder: BudgetHolder) -> bool:
        """Take a permit if one is free and the tenant's ceiling allows it."""
        ...

    async def take(self, holder: BudgetHolder) -> bool:
        """Take a permit in one's turn; False after withdraw(). May be cancelled at any time: no permit is lost."""
        ...

    def withdraw(self, holder: BudgetHolder) -> None:
        """Nobody in this pool needs a connection any more: its take() returns False."""
        ...

    def give_back(self, holder: BudgetHolder) -> None:
        """A permit is free again."""
        ...

    def still_counts(self, closed_s: float, *, heard: bool) -> bool:
        """Whether a connection counts that was closed here so long ago (seconds) and that the server has not closed;
        heard: the server's machine has answered on it since."""
        ...

    def look_again(self) -> None:
        """Something became idle; if somebody waits, it may be what they wait for."""
        ...
