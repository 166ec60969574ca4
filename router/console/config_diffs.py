"""What a configuration would change, asked of the router or told of two files, as lines or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointsman.v1 import admin_service_pb2 as pb

from router.config.differences import diff
from router.config.loaded import LoadedConfig
from router.console.admin_client import READING_S, AdminClient
from router.console.message_values import word
from router.console.trouble import Trouble
from router.model.views import ConfigChange, ConfigEffect

_HOW = {
    ConfigEffect.AT_ONCE: "",
    ConfigEffect.NEW_CONNECTIONS: " (new connections; open ones close when what runs on them has ended)",
    ConfigEffect.DRAINS: " (takes nothing new; what runs ends, then its connections close)",
    ConfigEffect.RESTART: " (after a restart)",
}


def between(old: LoadedConfig, new: LoadedConfig) -> Sequence[ConfigChange]:
    """What the second file changes."""
    return diff(old, new)


def against_the_router(client: AdminClient, document: str, file: Path | None) -> Sequence[ConfigChange]:
    """What a file's text would change in the running router; empty: its own file. Trouble with all its problems."""
    answer = client.call("DiffConfig", pb.DiffConfigRequest(document=document), READING_S)
    if answer.problems:
        raise Trouble(
            "\n".join(answer.problems),
            f"{file or 'the file'} would change nothing: the running configuration stays",
        )
    return [_change(one) for one in answer.changes]


def _change(message: Any) -> ConfigChange:
    try:
        effect = ConfigEffect(word(message, "effect"))
    except ValueError:
        effect = ConfigEffect.AT_ONCE  # of a newer router
    return ConfigChange(message.place, message.change, effect)


def as_lines(changes: Sequence[ConfigChange]) -> str:
    """For people."""
    return "\n".join(f"{one}{_HOW[one.effect]}" for one in changes) or "no difference"


def as_json(changes: Sequence[ConfigChange]) -> str:
    """For programs."""
    values = [{"place": one.place, "change": one.change, "effect": one.effect.value} for one in changes]
    return json.dumps(values, indent=2, ensure_ascii=False)
