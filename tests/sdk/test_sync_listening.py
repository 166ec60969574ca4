"""The synchronous client's listening: threads that are interrupted, and others that close."""

from __future__ import annotations

from typing import Any

import pointsman
import pytest
from pointsman import Notification
from pointsman.loop_thread import Waiting

from tests.sdk.bounded import Started, bounded, until
from tests.sdk.copy_router import CopyRouter
from tests.sdk.test_listening import Script, note, ready


@pytest.fixture
def script(copy_router: CopyRouter) -> Script:
    copy_router.on_listen = script = Script([ready(), 0.2, note("a", "b")])
    return script


def started(db: pointsman.sync.Client) -> pointsman.sync.SyncListening:
    heard = db.listen("jobs")
    bounded(heard.__enter__)
    return heard


def payload(item: Any) -> str:
    assert isinstance(item, Notification), item
    return item.payload


class Interrupted:
    """Waiting.result that is interrupted: once its result is there, or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, late: bool) -> None:
        self._late = late
        self._wait = Waiting.result
        self._patch = monkeypatch
        monkeypatch.setattr(Waiting, "result", lambda waiting, look: self(waiting, look))

    def __call__(self, waiting: Waiting, look: Any) -> None:
        self._patch.setattr(Waiting, "result", self._wait)
        if self._late:
            waiting.result(look)
            waiting._done = False  # as who does not know yet that it is
        raise KeyboardInterrupt


@pytest.mark.parametrize("late", [True, False])
def test_an_interrupt_loses_nothing(
    script: Script, own_db: pointsman.sync.Client, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    heard = started(own_db)
    Interrupted(monkeypatch, late=late)
    with pytest.raises(KeyboardInterrupt):
        bounded(heard.next)
    assert [payload(bounded(heard.next)) for _ in range(2)] == ["a", "b"]
    assert bounded(lambda: heard.next(0.05)) is None
    bounded(heard.close)


def test_another_thread_ends_the_waiting(script: Script, own_db: pointsman.sync.Client) -> None:
    heard = started(own_db)
    waiting = Started(lambda: [payload(item) for item in heard])
    until(lambda: heard._taking is not None)
    bounded(heard.close)
    assert waiting.result() == []
    assert bounded(heard.next) is None
    assert bounded(lambda: own_db.query_value("select 1")) == 1


def test_what_was_taken_and_not_given_out_ends_with_it(
    script: Script, own_db: pointsman.sync.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = started(own_db)
    Interrupted(monkeypatch, late=True)
    with pytest.raises(KeyboardInterrupt):
        bounded(heard.next)
    bounded(heard.close)
    assert bounded(heard.next) is None


def test_the_clients_close_is_told_to_who_waits(script: Script, own_db: pointsman.sync.Client) -> None:
    heard = started(own_db)
    waiting = Started(heard.next)
    until(lambda: heard._taking is not None)
    bounded(own_db.close)
    with pytest.raises(pointsman.ClientClosed):
        waiting.result()
