"""`pointsman listen`: notifications as they come, one a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from router.console.copy_commands import Address, Tenant, Token
from router.console.dev_option import Dev

if TYPE_CHECKING:
    import pointsman


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

    It goes on over failovers and restarts of the router. Where notifications may be missing a gap says so: read anew,
    then, what they are about.

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
                _show(_began(heard.endpoint, channels), _began_words(heard.endpoint, channels), as_json)
                left = count
                for item in heard:
                    _show(_as_json(item), _in_words(item), as_json)
                    if left is not None and isinstance(item, pointsman.Notification):
                        left -= 1
                        if not left:
                            return
        except pointsman.Error as error:
            raise trouble_of(error, target.address) from None
        except ValueError as error:
            raise Trouble(str(error), code=ExitCode.USAGE) from None


def _show(facts: dict[str, object], words: str, as_json: bool) -> None:
    print(json.dumps(facts, ensure_ascii=False) if as_json else words, flush=True)


def _began(endpoint: str, channels: list[str]) -> dict[str, object]:
    return {"event": "listening", "endpoint": endpoint, "channels": channels}


def _began_words(endpoint: str, channels: list[str]) -> str:
    return f"listening on {endpoint} to {', '.join(channels)}"


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
