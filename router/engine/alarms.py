"""Alarms about credentials, for those who keep a record: each is told once when it begins, and once when it ends.

How things stand is asked elsewhere (Credentials.troubles and its like); here is what has been told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from router.model.events import AlarmChange, CredentialAlarm, CredentialKind
from router.model.identity import TenantName
from router.ports import Clock, EventSink

_K = TypeVar("_K", bound=Hashable)


class Alarms(Generic[_K]):
    """Those about one kind of credentials, by whatever tells them apart. Called from the event loop only."""

    def __init__(self, kind: CredentialKind, clock: Clock, events: EventSink) -> None:
        self._kind = kind
        self._clock = clock
        self._events = events
        self._begun: dict[_K, tuple[float, str, TenantName | None]] = {}

    def __bool__(self) -> bool:
        return bool(self._begun)

    def begin(self, key: _K, about: str, problem: str, tenant: TenantName | None = None) -> None:
        """A credential cannot be used as configured; told unless that is known. about, problem: as CredentialAlarm."""
        if key not in self._begun:
            self._begun[key] = (self._clock.now(), about, tenant)
            self._events.emit(CredentialAlarm(self._kind, about, tenant, AlarmChange.BEGUN, problem))

    def end(self, key: _K, change: AlarmChange = AlarmChange.MENDED) -> None:
        """It can be used, or nobody needs it any more; told if there was an alarm."""
        if key in self._begun:
            since, about, tenant = self._begun.pop(key)
            self._events.emit(CredentialAlarm(self._kind, about, tenant, change, lasted_s=self._clock.now() - since))

    def drop(self, gone: Callable[[_K], bool]) -> None:
        """Nobody needs these any more."""
        for key in [key for key in self._begun if gone(key)]:
            self.end(key, AlarmChange.DROPPED)
