"""The floors hold in this repository, and the reader that says so finds what is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.floors import LONG_FUNCTIONS, ROOMS, violations

ROOT = Path(__file__).parents[2]

# path: text that must be found, what is said
PLANTED = {
    "router/model/a.py": ("import asyncio", "model must not import asyncio"),
    "router/model/b.py": ("from router.decisions import retry", "model must not import router.decisions"),
    "router/model/c.py": ("import pydantic", "model must not import the library pydantic"),
    "router/decisions/a.py": ("from time import monotonic", "decisions must not import time"),
    "router/decisions/b.py": ("import random", "decisions must not import random"),
    "router/decisions/c.py": ("from router import ports", "decisions must not import router.ports"),
    "router/decisions/d.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from router.engine.state import State\n",
        "decisions must not import router.engine"),
    "router/decisions/e.py": ("_KNOWN = {}", "mutable state"),
    "router/decisions/f.py": ("_KNOWN: dict[str, int] = {'a': 1}", "mutable state"),
    "router/decisions/g.py": ("class Book:\n    known = []\n", "mutable state"),
    "router/decisions/h.py": ("def f():\n    global x\n    x = 1\n", "global state"),
    "router/decisions/i.py": ("from . import retry", "relative import"),
    "router/decisions/balancing/a.py": ("from collections import Counter\nSEEN = Counter()\n", "mutable state"),
    "router/engine/a.py": ("from uuid import uuid4", "engine must not import uuid"),
    "router/engine/b.py": ("from datetime import datetime", "engine must not import datetime"),
    "router/engine/c.py": ("import grpc", "engine must not import the library grpc"),
    "router/engine/d.py": ("import tenacity", "only router/engine/attempts.py imports tenacity"),
    "router/engine/e.py": ("def f():\n    import psycopg\n", "engine must not import the library psycopg"),
    "router/engine/f.py": ("import router.postgres.lane", "engine must not import router.postgres"),
    "router/postgres/a.py": ("from router.engine import executor", "postgres must not import router.engine"),
    "router/sql/a.py": ("from router.encoding import ENCODERS", "sql must not import router.encoding"),
    "router/telemetry/a.py": ("from router.decisions import retry", "telemetry must not import router.decisions"),
    "router/api/a.py": ("from router.decisions.retry import error", "api must not import router.decisions"),
    "router/api/b.py": ("import psycopg", "api must not import the library psycopg"),
    "router/config/a.py": ("import grpc", "config must not import the library grpc"),
    "router/console/a.py": ("import router.app", "console must not import router.app"),
    "router/ports.py": ("import asyncio", "ports must not import asyncio"),
    "router/engine/lane_utils.py": ("", "says nothing"),
    "router/helpers/a.py": ("", "says nothing"),
    "router/engine/pool_manager.py": ("", "says nothing"),
    "router/engine/long.py": ("x = 1\n" * 401, "401 lines"),
    "router/engine/wide.py": ("def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
    "router/cellar/a.py": ("", "no room named 'cellar'"),
    "clients/python/pointsman/a.py": ("import psycopg", "must not import the library psycopg"),
    "clients/python/pointsman/b.py": ("from router import model", "must not import router.model"),
    "clients/python/pointsman/c.py": ("x = 1\n" * 401, "401 lines"),
}

INNOCENT = {
    "router/model/a.py": "from dataclasses import dataclass\nfrom router.model import b\n",
    "router/decisions/a.py": (
        "from collections.abc import Mapping\nfrom router.model.errors import Code\n"
        "from router.decisions.balancing import BALANCERS\nTABLE: Mapping[str, int] = {'a': 1}\n"
        "__all__ = ['TABLE']\nKEYS = frozenset({'a'})\n"),
    "router/engine/attempts.py": "import asyncio\nimport tenacity\nfrom router.decisions import retry\n",
    "router/engine/wide.py": 'def f():\n    """' + "words\n" * 60 + '    """\n' + "    x = 1\n" * 39,
    "router/postgres/lane.py": "import time\nimport psycopg\nfrom router import ports, model\n",
    "router/api/server.py": "import grpc\nfrom pointsman.v1 import types_pb2\nfrom router.engine import executor\n",
    "router/app.py": "from router import __version__, api, engine, postgres, sql\n",
    "router/engine/long.py": "x = 1\n" * 400,
    "clients/python/pointsman/a.py": "import grpc\nfrom pointsman.v1 import types_pb2\n",
    "clients/python/pointsman/v1/types_pb2.py": "import psycopg\n" * 500,
}


def plant(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_floors_hold() -> None:
    assert list(violations(ROOT)) == []


@pytest.mark.parametrize("path", PLANTED)
def test_what_is_planted_is_found(tmp_path: Path, path: str) -> None:
    text, words = PLANTED[path]
    plant(tmp_path, path, text)
    found = list(violations(tmp_path))
    assert any(words in one and one.startswith(path) for one in found), found


@pytest.mark.parametrize("path", INNOCENT)
def test_what_is_allowed_is_not(tmp_path: Path, path: str) -> None:
    plant(tmp_path, path, INNOCENT[path])
    assert list(violations(tmp_path)) == []


def test_an_empty_tree_has_nothing_to_say(tmp_path: Path) -> None:
    assert list(violations(tmp_path)) == []


def test_exceptions_are_still_needed() -> None:
    for entry in LONG_FUNCTIONS:
        path, _, name = entry.partition(":")
        assert f"def {name}(" in (ROOT / path).read_text(), f"{entry} is gone: drop the exception"


def test_no_room_lets_its_floor_be_climbed() -> None:
    """Who may import whom has no cycle, so that the floors order everything."""
    done: set[str] = set()
    while open_rooms := [name for name in ROOMS if name not in done]:
        free = [name for name in open_rooms if ROOMS[name].rooms <= done]
        assert free, f"these rooms import one another: {open_rooms}"
        done.update(free)
