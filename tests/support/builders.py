"""Small things that tests of several floors build."""

from __future__ import annotations

from router.model.events import Event


class Recorder:
    """ports.EventSink that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]
