"""Asking PostgreSQL how far it is, for consistency tokens: behind a commit, behind a read, or for itself.

The question is a statement of its own: behind a commit it must stand behind the commit's Sync, as within the same
implicit transaction it would be answered before the commit is written. Behind a read it shares the read's unit.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from router.engine.calls import Call
from router.engine.endpoints import Pools
from router.engine.expiry import Expired, wait_until
from router.engine.lane_pool import LanePool, SharedRead, Slot
from router.model.errors import RouterError
from router.model.identity import EndpointName, Generation, Lsn, TenantName, Term, lsn_from_text
from router.model.observation import AttemptFailed
from router.model.request import Access, ReadFrom, Request, Statement
from router.model.result import StatementResult
from router.model.state import ClusterState
from router.model.token import Token, decode
from router.model.topology import Tenant
from router.ports import Clock, Unit

POSITION = Statement(
    b"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
    b" ELSE pg_catalog.pg_current_wal_insert_lsn() END,"
    b" CASE WHEN NOT pg_catalog.pg_is_in_recovery()"
    b" THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END,"
    b" pg_catalog.current_setting('synchronous_standby_names') <> ''"
    b" AND pg_catalog.current_setting('synchronous_commit') NOT IN ('off', 'local')"
)
"""Position, on a primary the name of its log file (the first eight digits are the timeline), whether it confirms."""
LINGER_S = 0.05
"""A committed write is answered without its exact position after this long, or at its deadline."""


def seen(known: bytes, result: StatementResult) -> Token | None:
    """The exact token of an answer. known: its route's token; result: POSITION's.

    None, too, where the answer makes no sense: what it stands behind is done, and must be told.
    """
    lsn, cells = _lsn(result), result.cells
    if not known or lsn is None or cells is None or cells.nfields < 3:
        return None
    token = replace(decode(known), lsn=lsn, now=False)
    file, confirms = cells.get_value(0, 1), cells.get_value(0, 2)
    if file is None:
        return token
    try:
        timeline = int(file[:8], 16)
    except ValueError:
        return None
    return replace(token, timeline=Term(timeline), unconfirmed=confirms != b"t") if timeline > 0 else None


def _lsn(result: StatementResult) -> Lsn | None:
    """The position in POSITION's answer."""
    cells = result.cells
    text = cells.get_value(0, 0) if cells is not None and cells.ntuples else None
    try:
        return None if text is None else lsn_from_text(text.decode())
    except ValueError:
        return None


def note(call: Call, result: StatementResult) -> None:
    """Put the exact token of its answer on a call, with what it was asked to see."""
    token = seen(call.token, result)
    if token is not None:
        after = call.request.after
        if after is not None and after.system_id == token.system_id:
            token = token.merge(replace(after, now=False))  # its "and now" was answered on the way here
        call.token = token.encode()


def position_wanted(request: Request) -> Statement | None:
    """POSITION, where its exact answer is worth the question: for who passes tokens on and may be behind."""
    return POSITION if request.after is not None and request.options.read is not ReadFrom.PRIMARY else None


class PositionBehind(Unit):
    """Asks for the position behind a commit, on the same lane and in the same send."""

    __slots__ = ("_answered",)

    def __init__(self) -> None:
        super().__init__((POSITION,), _told, commits=False)
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    async def note(self, call: Call, commit: Unit, now: float) -> None:
        """Once the commit is answered: put its exact token on the call. Without one in time "and now" must do, as where
        the commit was sent once more, behind this question: then the position may be the one before it."""
        until = min(now + LINGER_S, call.request.deadline)
        if not self._answered.done():
            if until <= now:
                return
            try:
                await wait_until(self._answered, until)
            except Expired:
                return
        if self.fault is None and self.results and self.sent_at >= commit.sent_at:
            note(call, self.results[0])


def _told(unit: Unit) -> None:
    assert isinstance(unit, PositionBehind)
    unit.wake()


async def note_on(pool: LanePool, slot: Slot, call: Call, now: float) -> None:
    """The same on a pinned lane that has nothing in flight, after its work; never raises."""
    until = min(now + LINGER_S, call.request.deadline)
    if until <= now:
        return
    try:
        unit = await pool.run_pinned(slot, (POSITION,), until, commits=False)
    except AttemptFailed:
        return
    note(call, unit.results[0])


class Positions:
    """Asks endpoints, on the connections of whoever needs to know, and remembers what replicas said."""

    def __init__(self, pools: Pools, clock: Clock) -> None:
        self._pools = pools
        self._clock = clock
        self._known: dict[EndpointName, tuple[Generation, float, Lsn]] = {}
        """With the moment when it was asked (monotonic seconds)."""
        self._asking: dict[tuple[TenantName, EndpointName, Generation], asyncio.Task[Lsn | None]] = {}

    async def ask(
        self, tenant: Tenant, endpoint: EndpointName, generation: Generation, deadline: float
    ) -> StatementResult:
        """POSITION's result, asked after this call. AttemptFailed, or RouterError as of Pools.get()."""
        return (await self._ask(tenant, endpoint, generation, deadline)).results[0]

    async def _ask(
        self, tenant: Tenant, endpoint: EndpointName, generation: Generation, deadline: float
    ) -> SharedRead:
        pool = self._pools.get(tenant, endpoint, Access.READ_ONLY, generation)
        return await pool.run_shared(POSITION, deadline)

    async def ask_replica(
        self, tenant: Tenant, endpoint: EndpointName, generation: Generation, until: float
    ) -> Lsn | None:
        """How far a replica has replayed; None when it has not said so by then.

        The question goes on without those who asked: a connection may take longer to open than any of them waits, and
        would never be there if each took its wish back.
        """
        key = tenant.name, endpoint, generation
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._ask_replica(tenant, endpoint, generation))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        await asyncio.wait((asking,), timeout=max(0.0, until - self._clock.now()))
        return asking.result() if asking.done() and not asking.cancelled() else None

    async def _ask_replica(self, tenant: Tenant, endpoint: EndpointName, generation: Generation) -> Lsn | None:
        deadline = self._clock.now() + tenant.pool.acquire_timeout_s
        try:
            read = await self._ask(tenant, endpoint, generation, deadline)
        except (AttemptFailed, RouterError):
            return None
        lsn = _lsn(read.results[0])
        if lsn is not None:
            self._known[endpoint] = generation, read.sent_at, lsn
        return lsn

    def known(self, state: ClusterState) -> dict[EndpointName, Lsn]:
        """What replicas have said that still counts: a later failover may have sent one back, and so may a restart."""
        endpoints = state.endpoints
        return {
            name: lsn
            for name, (generation, at, lsn) in self._known.items()
            if generation == state.generation and name in endpoints and at >= endpoints[name].position_at
        }
