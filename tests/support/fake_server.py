"""A scripted PostgreSQL on virtual time: what its backends do with statements, transactions, cancels and lost clients.

Only what the engine can notice is modelled, and tests/contracts holds the model to the real server. Beside the
answers it keeps the truth that no client sees: which effects were committed, and what a cancel request really hit.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from router.model.observation import PgError
from router.model.request import Statement
from router.model.topology import Login
from router.ports import Unit
from tests.support.fake_keys import KeyTable
from tests.support.fake_replies import Lost, Reply, Script, understood

CHECKS_CLIENT_S = 1.0
"""client_connection_check_interval: a statement whose client is gone ends after at most this long."""
BUFFER = 8
"""Messages on their way to a client that does not read; then the backend stands still."""


class Status(Enum):
    """Transaction status, as ReadyForQuery tells it."""

    IDLE = "I"
    OPEN = "T"
    FAILED = "E"


@dataclass
class Message:
    """From a backend to its client. One of: rows of a stream, a statement's end, the unit's end, the connection's."""

    unit: Unit | None = None
    step: int = 0
    reply: Reply | None = None
    chunk: tuple[tuple[bytes | None, ...], ...] | None = None
    error: PgError | None = None
    stale: bool = False
    done: bool = False
    local_commit: bool = False
    ended: bool = False
    last_word: str = ""
    status: Status | None = None
    """As it was when the message left, where messages take time."""


class FakeServer:
    """One server. Its script, its state, its ledger."""

    def __init__(self) -> None:
        self.script: dict[bytes, Script] = {}
        self.backends: list[Backend] = []
        self.connect_takes = 0.005
        self.connect_error: str | None = None
        self.refused_logins: set[Login] = set()
        self.logins: Counter[Login] = Counter()
        """Tries, also those that were refused."""
        """"refused", or an SQLSTATE."""
        self.connects = 0
        """Connections asked for so far, whatever became of them."""
        self.connect_hangs = False
        self.frozen = False
        self.copy_stalls = False
        """Takes no more data of a COPY."""
        self.copied = 0
        """Bytes taken by COPY."""
        self.committed: list[bytes] = []
        """Texts of committed writes, in order."""
        self.seen: list[bytes] = []
        """Texts of all statements begun, in order."""
        self.cancelled: list[bytes] = []
        """What cancel requests really hit."""
        self.violations: list[str] = []
        """What no client of ours may ever do."""
        self.keys = KeyTable()

    def reply_to(self, statement: Statement) -> Reply:
        script = self.script.get(statement.sql)
        if callable(script):
            return script(statement)
        if isinstance(script, list) and script:
            return script.pop(0)
        return script if isinstance(script, Reply) else understood(statement.sql.decode())

    def running(self) -> list[bytes]:
        """Texts running now."""
        return [one.current.sql for one in self.backends if one.current is not None]

    def kill_all(self) -> None:
        """A crash: every connection ends."""
        for backend in list(self.backends):
            backend.die()

    def freeze(self) -> None:
        """As by SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        for backend in list(self.backends):
            backend.go_on()


@dataclass(eq=False)
class Backend:
    """The server's end of one connection."""

    server: FakeServer
    read_only: bool
    deliver: Callable[[], None]
    """Tells the client that messages are there."""
    status: Status = Status.IDLE
    outbox: deque[Message] = field(default_factory=deque)
    current: Statement | None = None
    lock_timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: deque[Unit] = deque()
        self._step = 0
        self._skipping = False
        self._effects: list[bytes] = []
        self._savepoints: dict[bytes, int] = {}
        self._local_commit = False
        self._reply: Reply | None = None
        self._rows: deque[tuple[tuple[bytes | None, ...], ...]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._parked: Callable[[], None] | None = None
        self._dead = False
        self._client_gone = False
        self.server.backends.append(self)

    @property
    def clean(self) -> bool:
        """Fit for the next client: nothing open, nothing to do, nothing unsaid."""
        return self.status is Status.IDLE and not self._work and not self.outbox and not self._dead

    @property
    def dead(self) -> bool:
        return self._dead

    # --- what the client does ----------------------------------------------------------------------------------

    def receive(self, unit: Unit) -> None:
        if not self._dead:
            self._work.append(unit)
            if len(self._work) == 1:
                self._begin_unit()

    def drained(self) -> None:
        """The client has read: a backend that stood still goes on."""
        if self._rows and self._timer is None:
            self._after(0.0, self._send_rows)

    def signal(self) -> None:
        """A cancel request arrives."""
        if self._dead or self.current is None or self._reply is None:
            return
        self.server.cancelled.append(self.current.sql)
        if self.current.sql.upper() == b"COMMIT":
            self.server.violations.append("a cancel request hit COMMIT")
            self._reply.local_commit = True
            self._restart_timer(0.0, self._end_statement)
        elif not self._reply.ignores_cancel:
            self._rows.clear()
            self._reply = Reply(error="57014", message="canceling statement due to user request")
            self._restart_timer(0.0005, self._end_statement)

    def leave(self) -> None:
        """The client has closed its socket: noticed when the statement ends, or by the regular check."""
        if self._dead or self._client_gone:
            return
        self._client_gone = True
        if not self._work:
            self._exit()
        else:
            self._loop.call_later(CHECKS_CLIENT_S, self._check_client)

    def _check_client(self) -> None:
        if not self._dead and not (self.current is not None and self.current.sql.upper() == b"COMMIT"):
            self._undo()
            self._exit()

    def die(self, last_word: str = "") -> None:
        """The connection ends from the server's side."""
        if self._dead:
            return
        self._exit()
        self.outbox.append(Message(ended=True, last_word=last_word))
        self.deliver()

    def _exit(self) -> None:
        self._dead = True
        self._undo()
        self._work.clear()
        self.current = None
        if self._timer is not None:
            self._timer.cancel()
        if self in self.server.backends:
            self.server.backends.remove(self)

    # --- working -----------------------------------------------------------------------------------------------

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, self._act, act)

    def _restart_timer(self, seconds: float, act: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._after(seconds, act)

    def _act(self, act: Callable[[], None]) -> None:
        self._timer = None
        if self._dead:
            return
        if self.server.frozen:
            self._parked = act
        else:
            act()

    def go_on(self) -> None:
        act, self._parked = self._parked, None
        if act is not None and not self._dead:
            act()

    def _begin_unit(self) -> None:
        self._step = -1
        self._skipping = False
        self._local_commit = False
        self._next_statement()

    def _next_statement(self) -> None:
        unit = self._work[0]
        self._step += 1
        if self._skipping or self._step == len(unit.statements):
            self._after(0.0, self._sync)
            return
        statement = unit.statements[self._step]
        self.current = statement
        self.server.seen.append(statement.sql)
        self._reply = self._judge(statement)
        if not self._reply.silent:
            self._after(self._reply.takes, self._end_statement)

    def _judge(self, statement: Statement) -> Reply:
        word = statement.sql.upper().split()[0] if statement.sql.strip() else b""
        if word in _CONTROL:
            scripted = self.server.script.get(statement.sql)
            return self.server.reply_to(statement) if scripted is not None and scripted != [] else Reply()
        if self.status is Status.FAILED:
            return Reply(error="25P02", message="current transaction is aborted")
        if statement.sql.startswith(b"SET LOCAL "):
            return self._set(statement.sql)
        if self.server.keys.concerns(statement):
            return self.server.keys.judge(self, statement)
        if word == b"DISCARD" and statement.sql not in self.server.script:
            return Reply(takes=0.0, tag="DISCARD ALL", affected=0)
        reply = self.server.reply_to(statement)
        if reply.effect and self.read_only and not reply.error:
            return Reply(error="25006", message="cannot execute in a read-only transaction")
        return reply

    def _set(self, sql: bytes) -> Reply:
        name, _, value = sql.removeprefix(b"SET LOCAL ").partition(b" TO ")
        if name == b"lock_timeout":
            self.lock_timeout_s = 3600.0 if value == b"DEFAULT" else int(value) / 1000
        return Reply(takes=0.0, tag="SET", affected=0)

    def judge_again(self) -> None:
        """The transaction that this statement waited for has ended."""
        if self._dead or self.current is None:
            return
        self._reply = self._judge(self.current)
        self._restart_timer(self._reply.takes, self._end_statement)

    def _end_statement(self) -> None:
        unit, reply, statement = self._work[0], self._reply, self.current
        assert reply is not None
        assert statement is not None
        if reply.lost is Lost.BEFORE:
            self._undo()
            self.die(reply.error)
            return
        if reply.error:
            self._fail(unit, reply)
        elif unit.on_rows is not None and reply.rows:
            size = unit.chunk_rows or 1
            self._rows.extend(reply.rows[at : at + size] for at in range(0, len(reply.rows), size))
            self._send_rows()
            return
        else:
            self._succeed(unit, statement, reply)
        if not self._dead:
            self.current = None
            self._next_statement()

    def _send_rows(self) -> None:
        unit, reply, statement = self._work[0], self._reply, self.current
        assert reply is not None
        assert statement is not None
        if not self._rows:
            self._succeed(unit, statement, Reply(tag=reply.tag or f"SELECT {len(reply.rows)}",
                                                  affected=len(reply.rows)))
            if not self._dead:
                self.current = None
                self._next_statement()
        elif len(self.outbox) < BUFFER:
            self.outbox.append(Message(unit, self._step, chunk=self._rows.popleft()))
            self.deliver()
            if self._timer is None and not self._dead:
                self._after(0.0001, self._send_rows)

    def _fail(self, unit: Unit, reply: Reply) -> None:
        error = PgError("ERROR", reply.error, reply.message or f"error {reply.error}",
                        routine="RevalidateCachedQuery" if reply.stale else "")
        if self.status is Status.IDLE or (self.current is not None and self.current.sql.upper() == b"COMMIT"):
            self._undo()  # an error of COMMIT itself ends the transaction
            self.status = Status.IDLE
        else:
            self.status = Status.FAILED
            self.server.keys.ended(self, committed=False)
        self._skipping = True
        self._tell(Message(unit, self._step, error=error, stale=reply.stale))

    def _succeed(self, unit: Unit, statement: Statement, reply: Reply) -> None:
        tag = self._control(statement) or reply.tag or f"SELECT {len(reply.rows)}"
        if reply.effect:
            self._effects.append(statement.sql if reply.wrote is None else reply.wrote)
        if reply.local_commit:
            self._local_commit = True
        if tag == "COMMIT":
            self._commit()
        if reply.lost is Lost.AFTER:
            if self.status is Status.IDLE:
                self._commit()
            self.die(reply.error)
            return
        affected = reply.affected if reply.affected is not None else len(reply.rows)
        self._tell(Message(unit, self._step, reply=Reply(rows=reply.rows, tag=tag, affected=affected)))

    def _control(self, statement: Statement) -> str:
        words = statement.sql.upper().split()
        word = words[0]
        if word not in _CONTROL:
            return ""
        if word == b"BEGIN":
            if self.status is not Status.IDLE:
                self.server.violations.append("BEGIN inside a transaction")
            self.status = Status.OPEN
            return "BEGIN"
        if word == b"COMMIT":
            tag = "ROLLBACK" if self.status is Status.FAILED else "COMMIT"
            if tag == "ROLLBACK":
                self._undo()
            if self.status is Status.IDLE:
                self.server.violations.append("COMMIT outside a transaction")
            self.status = Status.IDLE
            return tag
        if word == b"ROLLBACK" and b"TO" not in words:
            self._undo()
            self.status = Status.IDLE
            return "ROLLBACK"
        if word == b"ROLLBACK":
            del self._effects[self._savepoints[words[-1]] :]
            self.status = Status.OPEN
        elif word == b"SAVEPOINT":
            self._savepoints[words[-1]] = len(self._effects)
        return word.decode()

    def _undo(self) -> None:
        self._effects.clear()
        self.server.keys.ended(self, committed=False)

    def _commit(self) -> None:
        self.server.keys.ended(self, committed=True)
        self.server.committed.extend(filter(None, self._effects))
        self._effects.clear()

    def _sync(self) -> None:
        unit = self._work.popleft()
        if self.status is Status.IDLE:
            self._commit()
        local, self._local_commit = self._local_commit, False
        self._tell(Message(unit, done=True, local_commit=local))
        if self._work:
            self._begin_unit()
        elif self._client_gone:
            self._exit()

    def _tell(self, message: Message) -> None:
        if not self._client_gone:
            self.outbox.append(message)
            self.deliver()


_CONTROL = (b"BEGIN", b"COMMIT", b"ROLLBACK", b"SAVEPOINT", b"RELEASE")
