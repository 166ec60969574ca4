"""The command `pointsman` as a group: what stands at the wrong place is told its right one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

BEFORE_THE_COMMAND = frozenset({"--tls", "--ca", "--cert", "--key"})


class CommandGroup(TyperGroup):
    """Knows the options that stand before the command, and says so where one stands behind it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except Exception as error:  # NoSuchOption, which typer keeps to itself
            wrong: Any = error
            name = getattr(wrong, "option_name", "")
            if name in BEFORE_THE_COMMAND:
                wrong.possibilities = None
                wrong.message = f"{name} stands before the command: pointsman {name} ... {ctx.invoked_subcommand} ..."
            raise
