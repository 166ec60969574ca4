"""The passwords of logins: those that are known, and those that a command prints, run when one is first needed.

A command runs once for all who wait for it, beside the event loop. What it printed is used until it has printed
something newer (decisions/secret_life.py); while it fails, the old goes on, and operators are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from router.decisions.secret_life import Next, SecretLife
from router.engine.alarms import Alarms
from router.model.events import CredentialKind, SecretCommandEnded
from router.model.secret_commands import SecretCommand, SecretFailed
from router.model.topology import Login, Secret
from router.ports import Clock, EventSink

_KEPT_UNUSED = 2.0
"""Lives of a secret after which one that nobody has asked for is forgotten."""


class SecretRunner(Protocol):
    """Runs programs that print secrets."""

    async def run(self, command: SecretCommand) -> Secret:
        """Run it once, to its end. SecretFailed, which tells the exit code and what it complained of."""
        ...


class _Token:
    """What is known of one command."""

    __slots__ = ("asked_at", "life", "problem", "running", "secret")

    def __init__(self, ttl_s: float) -> None:
        self.life = SecretLife(ttl_s)
        self.secret: Secret | None = None
        self.problem = ""
        self.running: asyncio.Task[None] | None = None
        self.asked_at = 0.0


class Passwords:
    """postgres.passwords.Passwords. To be used inside one event loop."""

    def __init__(self, runner: SecretRunner, clock: Clock, events: EventSink) -> None:
        self._runner = runner
        self._clock = clock
        self._events = events
        self._tokens: dict[SecretCommand, _Token] = {}
        self._tidy_at = 64
        self._alarms: Alarms[SecretCommand] = Alarms(CredentialKind.COMMAND, clock, events)

    async def of(self, login: Login) -> Secret | None:
        """See postgres.passwords.Passwords."""
        if not isinstance(login.password, SecretCommand):
            return login.password
        token = self._token(login.password)
        match token.life.next(self._clock.now()):
            case Next.RUN:
                await asyncio.shield(self._run(login.password, token, login.user))
            case Next.USE_AND_RUN:
                self._run(login.password, token, login.user)
            case Next.USE | Next.DO_WITHOUT:
                pass
        if token.secret is None:
            raise SecretFailed(token.problem)
        return token.secret

    async def newer(self, login: Login, refused: Secret | None) -> Secret | None:
        """See postgres.passwords.Passwords."""
        if not isinstance(login.password, SecretCommand):
            return None
        token = self._token(login.password)
        under_way = token.running is not None
        secret = await self._instead(login, token, refused)
        if secret == refused and under_way:  # that run may have looked before the password was changed
            secret = await self._instead(login, token, refused)
        return None if secret == refused else secret

    async def _instead(self, login: Login, token: _Token, refused: Secret | None) -> Secret | None:
        """What is used after a refusal; what was refused if there is nothing else."""
        if token.secret == refused:
            token.life.refused()
            if token.life.failing_since is None:  # printed a moment ago: what comes next may be better
                await self._clock.sleep(max(0.0, token.life.again_at - self._clock.now()))
        try:
            return await self.of(login)
        except SecretFailed:
            return refused

    def trouble(self, login: Login) -> tuple[str, float] | None:
        """Why a login's command brings nothing, and for how long (seconds); None: all is well, as far as known."""
        token = self._tokens.get(login.password) if isinstance(login.password, SecretCommand) else None
        if token is None or token.life.failing_since is None:
            return None
        goes_on = ", what it printed before goes on" if token.secret is not None else ""
        return f"{token.problem}{goes_on}", self._clock.now() - token.life.failing_since

    def configured(self, logins: Iterable[Login]) -> None:
        """Logins as they are configured now; read only when there is an alarm about the command of one that is not."""
        if self._alarms:
            used = {one.password for one in logins}
            self._alarms.drop(lambda command: command not in used)

    def _token(self, command: SecretCommand) -> _Token:
        token = self._tokens.get(command)
        if token is None:
            self._tidy()
            token = self._tokens[command] = _Token(command.ttl_s)
        token.asked_at = self._clock.now()
        return token

    def _tidy(self) -> None:
        """Forget the secrets of logins that have gone; seldom enough that it costs nothing."""
        if len(self._tokens) < self._tidy_at:
            return
        now = self._clock.now()
        self._tokens = {
            command: one
            for command, one in self._tokens.items()
            if one.running is not None or now - one.asked_at < _KEPT_UNUSED * command.ttl_s
        }
        self._alarms.drop(lambda command: command not in self._tokens)
        self._tidy_at = max(64, 2 * len(self._tokens))

    def _run(self, command: SecretCommand, token: _Token, user: str) -> asyncio.Task[None]:
        """The run that is under way, or a new one; never raises."""
        if token.running is None:
            token.running = asyncio.get_running_loop().create_task(self._renew(command, token, user))
        return token.running

    async def _renew(self, command: SecretCommand, token: _Token, user: str) -> None:
        try:
            token.secret = await self._runner.run(command)
        except SecretFailed as failed:
            token.problem = str(failed)
            token.life.failed(self._clock.now())
            self._alarms.begin(command, f"{command}, for user {user}", token.problem)
            self._events.emit(SecretCommandEnded(str(command), token.problem, kept=token.secret is not None))
        else:
            token.life.printed(self._clock.now())
            self._alarms.end(command)
            self._events.emit(SecretCommandEnded(str(command)))
        finally:
            token.running = None
