"""`pointsman status`: what it shows of tenants, and where it writes."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Ask


def test_status_shows_a_paused_tenant(ask: Ask):
    assert "beta paused" in ask("status").out
    assert [one["paused"] for one in json.loads(ask("status", "--json").out)["tenants"]] == [False, True, False]


@pytest.mark.usefixtures("two_looks")
def test_watch_into_a_pipe_writes_one_look_below_the_other(ask: Ask):
    lines = ask("status", "--watch").out.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("pointsman 9.9 · up")]
    assert len(starts) == 2
    assert lines[starts[1] - 1] == ""
