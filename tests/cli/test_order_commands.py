"""Operators' orders: what is said of a wrong one, and of what comes next."""

from __future__ import annotations

import json

from tests.cli.conftest import Ask, FakeAdmin


def test_a_weight_out_of_range_is_told_its_range(ask: Ask, admin: FakeAdmin):
    ended = ask("weight", "pg1", "-1")
    assert ended.code == 2
    assert (ended.err, admin.seen) == ("pointsman: WEIGHT must be 0 to 1000000, not -1\n", [])


def test_a_new_tenant_is_told_what_it_needs_in_postgresql(ask: Ask):
    ended = ask("tenant", "create", "acme", "--set", "cluster=main")
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "its role and database, if not yet done: pointsman tenant init acme"
    assert json.loads(ask("tenant", "create", "acme", "--json").out)["changes"] == []
