"""`pointsman outcome`: what became of a write whose answer did not arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.console.copy_commands import Address, Tenant, Token
from router.console.dev_option import Dev

if TYPE_CHECKING:
    import pointsman

_MEANING = {
    "committed": "it was done; the same write with the same key gets its first answer, and changes nothing",
    "not_found": "no trace of it: it was undone, has not come yet, or went with a former primary. Send it again with "
    "the same key, and it is done once (unless it is older than keys are kept, a day: then look at the data)",
    "running": "it is under way, or waits for its standby: ask again",
    "unknown": "this router cannot tell: a write without a key leaves no trace (another router may be at work on it); "
    "of one with a key the standby has not confirmed the commit, or a worker did not answer. With a key, ask again or "
    "send it again; without one, look at the data",
}


def outcome(
    key: Annotated[str, typer.Argument(help="The write's idempotency key.", show_default=False)] = "",
    request_id: Annotated[
        str, typer.Option(metavar="ID", help="Of a write without a key: is it under way?", show_default=False)
    ] = "",
    address: Address = "",
    tenant: Tenant = "",
    token: Token = "",
    development: Dev = "",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to look for.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")] = False,
) -> None:
    """Tell what became of a write whose answer did not arrive.

    A write has an idempotency key where its program gives it one: execute(..., idempotency_key=KEY), or
    pointsman sql and pointsman copy in by --idempotency-key KEY. It is recorded in the write's own transaction, so the
    primary knows: committed, running, not_found (send it again with the same key) or unknown. Asking changes nothing.

    Such as: pointsman outcome 5e2f6a34-order-17 --tenant shop
    """
    from router.console.trouble import ExitCode, Trouble

    if bool(key) == bool(request_id):
        raise Trouble(
            "name the write by its idempotency key, or by --request-id, one of them",
            "such as: pointsman outcome 5e2f6a34-order-17 --tenant shop",
            ExitCode.USAGE,
        )
    import json

    found = _ask(key, request_id, (address, token, tenant, development), timeout)
    print(json.dumps(_as_json(found), ensure_ascii=False) if as_json else _in_words(found))


def _ask(key: str, request_id: str, given: tuple[str, str, str, str], timeout_s: float) -> pointsman.Outcome:
    import pointsman

    from router.console.admin_client import reach
    from router.console.sql_session import trouble_of
    from router.console.targets import Given, caller_target
    from router.console.trouble import ExitCode, Trouble

    target = caller_target(Given(*given))
    reach(target)
    with pointsman.sync.connect(target.address, tenant=target.tenant, token=target.token, tls=target.tls) as db:
        try:
            return db.outcome(key, request_id=request_id, timeout=timeout_s)
        except pointsman.Error as error:
            raise trouble_of(error, target.address) from None
        except ValueError as error:
            raise Trouble(str(error), code=ExitCode.USAGE) from None


def _as_json(found: pointsman.Outcome) -> dict[str, object]:
    return {
        "outcome": found.outcome.value,
        "began": found.began.isoformat() if found.began is not None else None,
        "command_tags": list(found.command_tags),
        "endpoint": found.receipt.endpoint,
        "durability": found.receipt.durability,
    }


def _in_words(found: pointsman.Outcome) -> str:
    facts = [found.outcome.value]
    if found.began is not None:
        facts.append(f"began {found.began:%Y-%m-%d %H:%M:%S %Z}")
    facts += [", ".join(tag or "skipped" for tag in found.command_tags)] if found.command_tags else []
    facts += [f"asked {found.receipt.endpoint}"] if found.receipt.endpoint else []
    return f"{' · '.join(facts)}\n{_MEANING[found.outcome.value]}"
