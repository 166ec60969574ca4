"""check-config and config: exit codes, and what is printed where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import router
from router.config.reference import END, START, fill
from router.config.sample import sample
from tests.cli.conftest import Command
from tests.config.test_config_loading import ENVIRON, GOOD, MANY_MISTAKES


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_file_is_summed_up(command: Command, good: Path):
    ended = command("check-config", str(good))
    assert (ended.code, ended.out) == (0, f"{good}: good (1 cluster, 2 endpoints, 2 tenants)\n")


def test_every_mistake_is_printed_with_its_line(command: Command, good: Path):
    good.write_text(MANY_MISTAKES)
    ended = command("check-config", str(good))
    assert ended.code == 1
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert lines[0] == f"{good}:1: server.listn: is an unknown key: did you mean listen?"
    assert lines[-1] == f"pointsman: 17 problems in {good}"
    assert len(lines) == 18


def test_a_check_as_json(command: Command, good: Path):
    told = json.loads(command("check-config", str(good), "--json").out)
    assert told == {"file": str(good), "good": True, "problems": [], "clusters": 1, "endpoints": 2, "tenants": 2}
    good.write_text(MANY_MISTAKES)
    ended = command("check-config", str(good), "--json")
    told = json.loads(ended.out)
    assert (ended.code, told["good"], len(told["problems"])) == (1, False, 17)
    assert told["problems"][0] == {
        "file": str(good), "line": 1, "place": "server.listn", "message": "is an unknown key: did you mean listen?"
    }  # fmt: skip


def test_a_file_that_is_not_there(command: Command):
    ended = command("check-config", "/nowhere/x.yaml")
    assert ended.code == 1
    assert ended.err.startswith("/nowhere/x.yaml: no such file\n")


def test_show_has_defaults_and_stars(command: Command, good: Path):
    ended = command("config", "show", str(good))
    shown = yaml.safe_load(ended.out)
    assert shown["tenants"]["acme"]["pool"]["max_size"] == 5
    assert shown["tenants"]["acme"]["tokens"] == ["***"]


def test_schema_is_json(command: Command):
    assert json.loads(command("config", "schema").out)["title"] == "Pointsman configuration"


def test_diff(command: Command, good: Path, tmp_path: Path):
    other = tmp_path / "other.yaml"
    other.write_text(f"server: {{grace_s: 1}}\n{GOOD}".replace("max_size: 5", "max_size: 6"))
    assert command("config", "diff", str(good), str(good)).out == "no difference\n"
    assert command("config", "diff", str(good), str(other)).out.splitlines() == [
        "server.grace_s: 10.0 → 1.0 (after a restart)",
        "tenants.acme.pool.max_size: 5 → 6 (new connections; open ones close when what runs on them has ended)",
    ]


def test_sample_and_reference_are_printed_or_written(command: Command, tmp_path: Path):
    assert command("config", "sample").out == sample()
    page = tmp_path / "page.md"
    page.write_text(f"a\n{START}\n{END}\n")
    assert command("config", "reference", "--write", str(page)).code == 0
    assert page.read_text() == fill(f"a\n{START}\n{END}\n")
    page.write_text("no place")
    ended = command("config", "reference", "--write", str(page))
    assert ended.code == 1
    assert "needs a line" in ended.err


def test_version_and_help(command: Command):
    assert command("version").out == f"pointsman {router.__version__}\n"
    told = command("--help")
    assert told.code == 0
    assert "Begin with: pointsman dev" in told.out


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "--nonsense"], ["weight", "pg1", "-1"], ["serve"]])
def test_a_wrong_command_line_is_exit_code_two(command: Command, arguments: list[str]):
    assert command(*arguments).code == 2


def test_serve_with_a_bad_file_tells_every_mistake(command: Command, good: Path):
    good.write_text(MANY_MISTAKES)
    ended = command("serve", "-c", str(good))
    assert ended.code == 1
    assert len(ended.err.splitlines()) >= 17
