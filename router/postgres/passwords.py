"""What logins prove themselves with: asked for when a connection is opened, as it may change all the time."""

from __future__ import annotations

from typing import Protocol

from router.model.secret_commands import SecretCommand, SecretFailed
from router.model.topology import Login, Secret


class Passwords(Protocol):
    """What logins prove themselves with at this moment."""

    async def of(self, login: Login) -> Secret | None:
        """The password for a connection that is opened now; None: it has none. Waits for a command that has to be run
        first, for its own time at most; SecretFailed when there is none to be had."""
        ...

    async def newer(self, login: Login, refused: Secret | None) -> Secret | None:
        """Another one than that which a server has just refused; None: there is none."""
        ...


class KnownPasswords:
    """Passwords, without commands."""

    async def of(self, login: Login) -> Secret | None:
        """Passwords.of."""
        if isinstance(login.password, SecretCommand):
            raise SecretFailed(f"{login.password} is not run here")
        return login.password

    async def newer(self, login: Login, refused: Secret | None) -> Secret | None:
        """Passwords.newer."""
        return None
