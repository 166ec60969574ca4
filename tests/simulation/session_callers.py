"""Callers that pass consistency tokens on, from each answer to the next read, wherever that is answered."""

from __future__ import annotations

from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Fallback, Method, Options, ReadFrom, Request, Statement
from router.model.topology import Tenant
from tests.simulation.backend import LOOK
from tests.simulation.callers import PAUSE_S, Callers, read
from tests.simulation.session_ledger import Session
from tests.simulation.workload import write_of

_READS = (
    Options(read=ReadFrom.REPLICA),
    Options(read=ReadFrom.REPLICA),
    Options(read=ReadFrom.REPLICA, fallback=Fallback.FAIL),
    Options(read=ReadFrom.ANY),
    Options(read=ReadFrom.PRIMARY),
)
_NEVER = (RefuseReason.TOKEN_LOST, RefuseReason.TOKEN_FOREIGN)
"""What a cluster that always confirms cannot say."""
AT_ONCE_S = 0.01
"""Half of the requests come so soon after the answer before."""
LIFETIME = 40
"""Requests of a session; then another one begins, without a token."""


class SessionCallers(Callers):
    """One session after the other each."""

    CLIENTS = 2

    async def _client(self, number: int) -> None:
        count = 0
        while not self._stopping:
            session = Session(f"session {number}.{count}")
            count += 1
            for _ in range(LIFETIME):
                if self._stopping:
                    break
                await self._request(self._tenant(number), session)

    async def _request(self, who: Tenant, session: Session) -> None:
        life = await self._next_life(AT_ONCE_S if self._chance.draw() < 0.5 else PAUSE_S)
        if life is None:
            return
        deadline, ledger = self._deadline(), self._judge.sessions
        if self._chance.draw() < 0.35:
            text = write_of(f"{session.name} {self._loop.time():.6f}")
            asked = Request(Method.EXECUTE, (BatchStep(Statement(text)),), deadline, size_bytes=100)
            end = await self._attempt(life, "a session's write", deadline, life.path.executor.run(who, asked))
            if end is not None and end.error is not None:
                self._judge.refused_write((text,), end.error)
            elif end is not None:
                place = self._judge.answered_write((text,), life.host)
                if place is not None:
                    ledger.wrote(session, place, end.answer.receipt.token)
            return
        options = _READS[int(self._chance.draw() * len(_READS))]
        statement = Statement(LOOK, (b"%d" % ledger.asks(session),))
        asked = Request(Method.QUERY, (BatchStep(statement),), deadline, options, size_bytes=50, after=session.token)
        work = read(life, who, asked, quick=self._chance.draw() < 0.5)
        end = await self._attempt(life, "a session's read", deadline, work)
        if end is None:
            return
        if end.error is not None:
            self._judge.counts[f"read with a token {end.error.reason.value}"] += 1
            if end.error.reason in _NEVER:
                self._judge.fail(f"a read of {session.name}: {end.error.message}")
            return
        ledger.read(session, int(end.answer.results[0].cells.get_value(0, 0)), end.answer.receipt.token)
