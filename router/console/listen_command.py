"""`pointsman listen`: notifications as they come, one a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from router.console.copy_commands import Address, Tenant, Token
from router.console.dev_option import Dev

if TYPE_CHECKING:
    import pointsman
    from pointsman.sync_listening import SyncListening

LOOK_S = 1.0
"""How soon it is told that nothing is heard any more."""


def listen(
    channels: Annotated[
        list[str], typer.Argument(metavar="CHANNEL...", help="What to listen to.", show_default=False)
    ],
    address: Address = "",
    tenant: Tenant = "",
    token: Token = "",
    development: Dev = "",
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many notifications.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
) -> None:
    """Show what is sent by NOTIFY on these channels, until Ctrl-C.

    It goes on over failovers and restarts of the router, and says while it does not listen. Where notifications may be
    missing a gap says so: read anew, then, what they are about.

    Such as: pointsman listen jobs --tenant shop
    """
    import pointsman

    from router.console.admin_client import reach
    from router.console.sql_session import trouble_of
    from router.console.targets import Given, caller_target
    from router.console.trouble import ExitCode, Trouble

    target = caller_target(Given(address, token, tenant, development))
    reach(target)
    with pointsman.sync.connect(target.address, tenant=target.tenant, token=target.token, tls=target.tls) as db:
        try:
            with db.listen(*channels) as heard:
                _show_all(heard, channels, count, as_json)
        except pointsman.Error as error:
            raise trouble_of(error, target.address) from None
        except ValueError as error:
            raise Trouble(str(error), code=ExitCode.USAGE) from None


def _show_all(heard: SyncListening, channels: list[str], count: int | None, as_json: bool) -> None:
    """What is heard, and where it listens whenever that changes: silence shall not pass for nothing to hear."""
    import pointsman

    where: str | None = None
    item = None
    while True:
        if heard.endpoint != where:
            where = heard.endpoint
            _show(_state(where, channels), _state_words(where, channels), as_json)
        if item is not None:
            _show(_as_json(item), _in_words(item), as_json)
        if isinstance(item, pointsman.Notification) and count is not None:
            count -= 1
            if not count:
                return
        item = heard.next(timeout=LOOK_S)


def _show(facts: dict[str, object], words: str, as_json: bool) -> None:
    print(json.dumps(facts, ensure_ascii=False) if as_json else words, flush=True)


def _state(endpoint: str, channels: list[str]) -> dict[str, object]:
    return {"event": "listening" if endpoint else "waiting", "endpoint": endpoint, "channels": channels}


def _state_words(endpoint: str, channels: list[str]) -> str:
    names = ", ".join(channels)
    return f"listening on {endpoint} to {names}" if endpoint else "-- not listening: no primary, or no router; it waits"


def _as_json(item: pointsman.Notification | pointsman.Gap) -> dict[str, object]:
    import pointsman

    if isinstance(item, pointsman.Notification):
        return {
            "event": "notification", "channel": item.channel, "payload": item.payload, "process_id": item.process_id
        }  # fmt: skip
    return {"event": "gap", "reason": item.reason.value, "since": item.since.isoformat(), "missed": item.missed}


def _in_words(item: pointsman.Notification | pointsman.Gap) -> str:
    import pointsman

    from router.console.result_output import visible

    if isinstance(item, pointsman.Notification):
        return f"{visible(item.channel)}: {visible(item.payload)}"
    many = f", {item.missed} for certain" if item.missed else ""
    return f"-- gap ({item.reason.value}): notifications since {item.since:%H:%M:%S} UTC may be missing{many}"
