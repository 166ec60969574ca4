"""`pointsman workers` and what the other commands say about workers."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import TOKEN, Command, Ended, FakeAdmin

Ask = Callable[..., Ended]


@pytest.fixture
def ask(command: Command, admin: FakeAdmin) -> Ask:
    def run(*arguments: str) -> Ended:
        return command(*arguments, "--address", admin.address, "--token", TOKEN)

    return run


def test_workers_are_listed_with_state_load_and_restarts(ask: Ask):
    rows = [line.split() for line in ask("workers", "list").out.splitlines()]
    assert rows[0] == ["worker", "pid", "state", "up", "running", "conns", "restarts"]
    assert rows[1] == ["1", "101", "serving", "12.5", "s", "3", "8", "0"]
    assert rows[2] == ["2", "102", "silent", "0.0", "s", "0", "0", "2"]


def test_workers_as_json_are_plain_values(ask: Ask):
    first, second = json.loads(ask("workers", "list", "--json").out)
    assert (first["pid"], first["state"], first["connections"]) == (101, "serving", 8)
    assert (second["state"], second["restarts"]) == ("silent", 2)


def test_status_shows_several_workers_and_says_nothing_of_a_single_process(ask: Ask, admin: FakeAdmin):
    assert "silent" in ask("status").out
    assert [one["number"] for one in json.loads(ask("status", "--json").out)["workers"]] == [1, 2]
    del admin.workers[1:]
    assert "serving" not in ask("status").out


def test_a_restart_tells_each_step(ask: Ask):
    ended = ask("workers", "restart")
    assert ended.code == 0
    assert [line.split("s  ", 1)[1] for line in ended.out.splitlines()] == ["worker 1 serves (pid 201)", "all workers"]


def test_a_restart_as_json_is_one_line_a_step(ask: Ask):
    first, last = map(json.loads, ask("workers", "restart", "--json").out.splitlines())
    assert (first["worker"], first["step"], first["done"], last["done"]) == (1, "serves", False, True)


def test_a_restart_that_stops_half_way_is_no_success(ask: Ask, admin: FakeAdmin):
    admin.restart_stops = True
    ended = ask("workers", "restart")
    assert ended.code == 1
    assert "without saying how" in ended.err


def test_an_order_that_a_worker_has_not_taken_says_so(ask: Ask, admin: FakeAdmin):
    admin.behind = ["worker 2 (pid 102) has not confirmed within 1 s"]
    admin.reload.behind.extend(admin.behind)
    for arguments in (("drain", "pg1"), ("weight", "pg1", "5"), ("reload",)):
        ended = ask(*arguments)
        assert ended.code == 0
        assert "worker 2 (pid 102) has not confirmed within 1 s; it takes the" in ended.out
