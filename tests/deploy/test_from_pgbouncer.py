"""The page for who comes from PgBouncer names keys, commands and calls that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pointsman
import pytest
import typer

from router.cli import app
from router.config.json_schema import names_at

PAGE = (Path(__file__).parents[2] / "deploy" / "FROM_PGBOUNCER.md").read_text()
KEYS = sorted(set(re.findall(r"`((?:server|admin|log|retry|clusters|tenants)\.[\w.]+|tenants_dir)`", PAGE)))
COMMANDS = sorted(set(re.findall(r"`pointsman ([^`]+)`", PAGE)))
CALLS = sorted(set(re.findall(r"\bdb\.(\w+)", PAGE)))


def is_key(path: str) -> bool:
    """Whether the configuration has it. NAME stands for any name."""
    place: tuple[str, ...] = ()
    for part in path.split("."):
        names = names_at(place)
        if part not in (names or ("NAME",)):
            return False
        place = (*place, part)
    return True


def is_command(words: str) -> bool:
    """Whether its first words are a command, and its options are that command's."""
    found, options = typer.main.get_command(app), []
    for word in words.split():
        inner = getattr(found, "commands", None)
        if inner is not None:
            if word not in inner:
                return False
            found = inner[word]
        elif word.startswith("-"):
            options.append(word)
    known = {option for parameter in found.params for option in parameter.opts}
    return not hasattr(found, "commands") and known.issuperset(options)


def test_keys_exist() -> None:
    assert len(KEYS) > 30
    assert [key for key in KEYS if not is_key(key)] == []
    assert not is_key("tenants.NAME.pool.size")
    assert not is_key("clusters.main.mode")


def test_commands_exist() -> None:
    assert len(COMMANDS) > 10
    assert [words for words in COMMANDS if not is_command(words)] == []
    assert not is_command("tenant stop NAME")
    assert not is_command("tenant check NAME --fast")


@pytest.mark.parametrize("name", CALLS)
def test_calls_exist(name: str) -> None:
    assert callable(getattr(pointsman.Client, name))
