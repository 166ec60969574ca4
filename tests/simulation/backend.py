"""What the servers of the model do with statements: tests.support's backends, with a log, standbys and a network.

Statements: `insert into t values ('ID')` writes; `update NAME set x = x + 1 returning stamp` does, too, and tells a
number that no other execution has; `select newest from t` says how much of what callers were told to be committed is in
this server's log (see Judge.newest_in); `select what is seen by $1` whether a session sees what it must (see
SessionLedger); and the router's own question how far a server is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router.engine.positions import POSITION
from router.model.identity import Lsn, lsn_to_text
from router.model.request import Statement
from router.ports import Unit
from tests.simulation.logged_keys import LoggedKeys, increment
from tests.simulation.network import Wire
from tests.simulation.wal import RECORD_BYTES
from tests.support.fake_replies import Reply
from tests.support.fake_server import Backend, FakeServer, Message, Status

if TYPE_CHECKING:
    from tests.simulation.node import Node, Waiting

READ = b"select newest from t"
LOOK = b"select what is seen by $1"


class ModelServer(FakeServer):
    """The sessions of one node."""

    backends: list[ModelBackend]  # type: ignore[assignment]

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.keys = LoggedKeys(node)

    def reply_to(self, statement: Statement) -> Reply:
        if statement.sql == READ:
            return Reply(rows=((b"%d" % self.node.servers.judge.newest_in(self.node),),), takes=self._takes())
        if statement.sql == LOOK:
            look = self.node.servers.judge.sessions.look(self.node, int(statement.params[0] or b""))
            return Reply(rows=((b"%d" % look,),), takes=self._takes())
        if statement.sql == POSITION.sql:
            return self._position()
        if statement.sql.startswith((b"insert", b"update")):
            if self.node.in_recovery:
                return Reply(error="25006", message="cannot execute a write in a read-only transaction")
            if statement.sql.startswith(b"update"):
                return self._increment(statement.sql.split()[1])
            return Reply(effect=True, tag="INSERT 0 1", affected=1, takes=self._takes())
        return super().reply_to(statement)

    def _increment(self, counter: bytes) -> Reply:
        stamp = self.node.servers.stamp()
        return Reply(effect=True, tag="UPDATE 1", affected=1, rows=((b"%d" % stamp,),), takes=self._takes(),
                     wrote=increment(counter, stamp))

    def _position(self) -> Reply:
        node = self.node
        lsn = lsn_to_text(Lsn((node.replayed if node.in_recovery else len(node.wal)) * RECORD_BYTES)).encode()
        file = None if node.in_recovery else b"%08X%016X" % (node.timeline, 0)
        return Reply(rows=((lsn, file, b"t" if node.sync_names else b"f"),))

    def _takes(self) -> float:
        return 0.0002 + 0.0006 * self.node.servers.chance.draw()


class ModelBackend(Backend):
    """Both ends of a connection between router and node. What the client sees has travelled."""

    def __init__(self, node: Node, read_only: bool, deliver: Callable[[], None], host: str) -> None:
        super().__init__(node.server, read_only, deliver)
        self.node = node
        network = node.servers.network
        self._up = Wire(network, host, node.name)
        self._down = Wire(network, node.name, host)
        self._wait: Waiting | None = None
        self._seen_end = False
        self._client_killed = False
        self._read_write = False
        """The open transaction, or the last one, said so itself."""

    # --- the client's end ---------------------------------------------------------------------------------------

    @property
    def clean(self) -> bool:
        unsaid = any(not message.ended for message in self.outbox)
        return not unsaid and (self._dead or (self.status is Status.IDLE and not self._work))

    @property
    def dead(self) -> bool:
        return self._seen_end

    def receive(self, unit: Unit) -> None:
        if not self._client_killed:
            self._up.send(self._at_server, super().receive, unit)

    def client_killed(self) -> None:
        """The router's process is gone; its kernel closes the socket."""
        self.leave()
        self._client_killed = True

    def signal(self) -> None:
        """A cancel request; whoever sends it has seen to its journey."""
        if self._dead or self._client_killed:
            return
        if self._wait is not None:
            if self.node.end_wait(self._wait):
                self.server.cancelled.append(b"a commit's wait")
                self._wait.told(True)
        elif self.current is None or self.current.sql.upper() != b"COMMIT":
            super().signal()

    def leave(self) -> None:
        if not self._client_gone:
            self._up.send(self._at_server, super().leave)

    def _arrive(self, message: Message) -> None:
        self._seen_end |= message.ended
        self.outbox.append(message)
        self.deliver()

    # --- the server's end ---------------------------------------------------------------------------------------

    def _at_server(self, act: Callable[..., None], *arguments: object) -> None:
        if not self._dead:
            self.node.soon(act, *arguments)

    def _judge(self, statement: Statement) -> Reply:
        if statement.sql.startswith(b"BEGIN") and b"READ WRITE" in statement.sql and self.node.in_recovery:
            return Reply(error="25006", message="cannot set transaction read-write mode during recovery")
        held = self.node.read_only and not (self._read_write and self.status is not Status.IDLE)
        if held and self.status is not Status.FAILED and self._would_write(statement):
            return Reply(error="25006", message="cannot execute a write in a read-only transaction")
        return super()._judge(statement)

    def _would_write(self, statement: Statement) -> bool:
        return statement.sql.startswith((b"insert", b"update")) or self.server.keys.concerns(statement)

    def _control(self, statement: Statement) -> str:
        word = super()._control(statement)
        if word == "BEGIN":
            # What a transaction says of itself beats default_transaction_read_only.
            self._read_write = b"READ WRITE" in statement.sql
        return word

    def _end_statement(self) -> None:
        commits = self.current is not None and self.current.sql.upper() == b"COMMIT"
        if commits and self.status is Status.OPEN and self._effects:
            self._begin_commit(super()._end_statement)
        else:
            super()._end_statement()

    def _sync(self) -> None:
        if self.status is Status.IDLE and self._effects:
            self._begin_commit(super()._sync)
        else:
            super()._sync()

    def _begin_commit(self, then: Callable[[], None]) -> None:
        writes, self._effects = tuple(filter(None, self._effects)), []

        def told(local: bool) -> None:
            self._wait = None
            if not self._dead:
                self._local_commit |= local
                then()

        self._wait = self.node.commit(writes, told, self.server.keys.held_by(self))

    def _check_client(self) -> None:
        if self._wait is None:  # nobody looks at the socket while a commit waits
            super()._check_client()

    def terminate(self) -> None:
        """pg_terminate_backend: a commit that waits is kept, locally."""
        if self._wait is not None and not self.node.end_wait(self._wait):
            return
        self.die()

    @property
    def in_transaction(self) -> bool:
        """It writes, or may."""
        return self.status is not Status.IDLE or bool(self._effects)

    def end_open_transaction(self) -> None:
        """What a surgeon that holds writes does to who still writes; a commit under way may end."""
        if self._wait is None and self.in_transaction:
            self.die()

    def die(self, last_word: str = "") -> None:
        if self._dead:
            return
        self._exit()
        if not self.node.host_down:
            self._down.send(self._arrive, Message(ended=True, last_word=last_word))

    def _tell(self, message: Message) -> None:
        if not self._client_gone:
            message.status = self.status
            self._down.send(self._arrive, message)
