"""What statements do on a scripted server: the replies that tests write, and the usual ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from router.model.request import Statement


class Lost(Enum):
    """How a connection ends instead of an answer."""

    BEFORE = "before the statement took effect"
    AFTER = "after it took effect"


@dataclass
class Reply:
    """What a statement does."""

    takes: float = 0.0005
    rows: tuple[tuple[bytes | None, ...], ...] = ()
    tag: str = ""
    affected: int | None = None
    error: str = ""
    """SQLSTATE; with lost: of the server's last word."""
    stale: bool = False
    lost: Lost | None = None
    silent: bool = False
    """Runs for ever."""
    ignores_cancel: bool = False
    local_commit: bool = False
    """The commit that follows is not confirmed by the standby."""
    effect: bool = False
    """It writes: its text is in the ledger once its transaction commits."""
    wrote: bytes | None = None
    """What the ledger has instead of its text; empty: nothing, as for a row that is only locked."""
    message: str = ""


Script = Reply | list[Reply] | Callable[[Statement], Reply]
"""For a text: always this, these one after the other and then the usual, or what a function says."""


def understood(sql: str) -> Reply:
    """The usual answer to the few texts that tests share with the real server."""
    text = sql.strip().lower()
    if match := re.fullmatch(r"select pg_sleep\(([\d.]+)\)", text):
        return Reply(takes=float(match[1]), rows=((b"",),))
    if match := re.fullmatch(r"copy \(select pg_sleep\(([\d.]+)\)\) to stdout", text):
        return Reply(takes=float(match[1]), rows=((b"\n",),), tag="COPY 1")
    if text.startswith("copy "):
        return Reply(tag="COPY 0")
    if match := re.fullmatch(r"select g from generate_series\(1, ?(\d+)\) g", text):
        return Reply(rows=tuple((str(n + 1).encode(),) for n in range(int(match[1]))))
    if match := re.fullmatch(r"select (\d+)", text):
        return Reply(rows=((match[1].encode(),),))
    if text == "select 1/0":
        return Reply(error="22012", message="division by zero")
    if text.startswith(("insert", "update", "delete")):
        return Reply(tag="INSERT 0 1" if text.startswith("insert") else f"{text.split()[0].upper()} 1", affected=1,
                     effect=True)
    if text.startswith(("create", "drop", "alter")):
        return Reply(tag=" ".join(text.upper().split()[:2]), affected=0, effect=True)
    if text.startswith(("select", "show", "with")):
        return Reply(rows=((b"1",),))
    return Reply(error="42601", message="syntax error")
