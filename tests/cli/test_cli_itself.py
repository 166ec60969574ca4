"""The command as such: its version, and what it sets up before anything else is imported."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pointsman
import pytest

import router
from tests.cli.conftest import Command

NOTED_AT_IMPORT = """
import importlib.abc, os, sys
import router.cli
assert "grpc" not in sys.modules, "grpc is imported before the command could set anything"

class Noting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_VERBOSITY"), os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))

sys.meta_path.insert(0, Noting())
router.cli.main()
"""


NOBODY = ["--address", "127.0.0.1:1", "--token", "t"]


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (["dev", "--pg-bin", "/nowhere"], "ERROR"),
        (["serve", "-c", "/nowhere"], "ERROR"),
        (["status", *NOBODY], "NONE"),
        (["sql", "select 1", *NOBODY], "NONE"),
        (["copy", "out", "t", "t", *NOBODY], "NONE"),
        (["tenant", "list", *NOBODY], "NONE"),
    ],
)
def test_grpc_is_told_to_be_quiet_before_it_is_imported(arguments: list[str], level: str, tmp_path: Path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    ended = subprocess.run(
        [sys.executable, "-c", NOTED_AT_IMPORT, *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**clean, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert ended.stdout.splitlines()[0] == f"{level} false", ended.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version(command: Command, arguments: list[str]):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (0, f"pointsman {router.__version__}\n")


MAIN = [sys.executable, "-c", "from router.cli import main; main()"]


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", [["version"], ["config", "schema"], ["--help"]])
def test_a_reader_that_left_is_no_error_to_tell(arguments: list[str], unbuffered: bool):
    end, begin = os.pipe()
    os.close(end)
    ended = printing(arguments, begin, unbuffered)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", [["version"], ["config", "schema"]])
def test_a_full_disk_is_told_in_words(arguments: list[str], unbuffered: bool):
    ended = printing(arguments, os.open("/dev/full", os.O_WRONLY), unbuffered)
    assert (ended.returncode, ended.stderr) == (
        1, "pointsman: standard output cannot be written: no space left on device\n",
    )  # fmt: skip


def test_without_a_standard_output_a_command_does_its_work():
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *MAIN, "version"]
    ended = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def printing(arguments: list[str], output: int, unbuffered: bool) -> subprocess.CompletedProcess[str]:
    """The command, its output going there."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment = {**clean, "PYTHONUNBUFFERED": "1"} if unbuffered else clean
    with open(output, "wb") as place:
        return subprocess.run(
            [*MAIN, *arguments], stdout=place, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )


def test_a_taken_port_is_told_before_any_server_is_started(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-c", "from router.cli import main; main()", "dev", "--data", str(tmp_path / "data")]
        ended = subprocess.run(
            [*command, "--port", str(port - 1)], capture_output=True, text=True, check=False, timeout=60
        )
    assert ended.returncode == 1
    assert f"port {port} (for operators) cannot be used: address already in use" in ended.stderr
    assert 'make run ARGS="--port 0"' in ended.stderr
    assert not (tmp_path / "data").exists()


def test_operations_list_every_variable_that_options_honour():
    from typer.main import get_command

    from router.cli import app

    def honoured(name: str, command: Any) -> set[tuple[str, str]]:
        """Pairs of a command and a variable that it honours, of groups and their commands, too."""
        own = {(name, param.envvar) for param in command.params if isinstance(param.envvar, str)}
        below = getattr(command, "commands", {})
        return own.union(*(honoured(f"{name} {word}".strip(), one) for word, one in below.items()))

    operations = (Path(__file__).parents[2] / "deploy" / "OPERATIONS.md").read_text()
    listed = operations.partition("## Environment and files")[2]
    rows = [line for line in listed.splitlines() if line.startswith("| `")]
    found = honoured("", get_command(app))
    assert {("sql", "POINTSMAN_TOKEN"), ("tenant init", "POINTSMAN_SUPERUSER_DSN")} <= found
    assert not [name for _, name in found if not any(f"`{name}`" in row for row in rows)]
    callers = ("POINTSMAN_ADDRESS", "POINTSMAN_TENANT")
    missing = [
        (command, name)
        for command, name in found
        for row in rows
        if name in callers and f"`{name}`" in row and f"`{command.split()[0]}`" not in row
    ]
    assert not missing


def test_whatever_asks_or_orders_can_answer_in_json():
    from typer.main import get_command

    from router.cli import app

    def without(name: str, command: Any) -> set[str]:
        below = getattr(command, "commands", {})
        names = {param.name for param in command.params}
        own = {name} if not below and "as_json" not in names else set()
        return own.union(*(without(f"{name} {word}".strip(), one) for word, one in below.items()))

    documents = {"config schema", "config show", "config sample", "config reference", "tenant init"}
    assert without("", get_command(app)) == {"serve", "dev", "health", "version"} | documents


@pytest.mark.parametrize("port", ["-1", "65534", "70000"])
def test_a_port_without_two_more_above_it_is_a_usage_error(command: Command, port: str):
    ended = command("dev", "--port", port)
    assert (ended.code, "--port" in ended.err, "Traceback" in ended.err) == (2, True, False)


def test_what_cannot_start_leaves_no_folder_behind(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert command("dev", "--port", "0", "--pg-bin", "/nowhere").code == 1
    assert list(tmp_path.iterdir()) == []


def test_what_a_tenant_lacks_is_told_as_json_too(monkeypatch, capsys):
    from router import tenant_commands, tenant_setup
    from router.console.trouble import Trouble

    findings = [tenant_setup.Finding("login"), tenant_setup.Finding("marker", "there is none")]
    monkeypatch.setattr(tenant_commands, "_find", lambda config, name: (None, SimpleNamespace(name=name)))
    monkeypatch.setattr(tenant_setup, "check", lambda dsn, topology, tenant: findings)
    with pytest.raises(Trouble, match="1 of 2 checks"):
        tenant_commands.tenant_check("acme", Path("file.yaml"), dsn="host=nowhere", as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"what": "login", "ok": True, "problem": ""},
        {"what": "marker", "ok": False, "problem": "there is none"},
    ]


def test_no_help_text_loses_words_in_brackets():
    """A help text is markup to the printer: words in square brackets vanish."""
    from typer.main import get_command

    from router.cli import app

    def texts(command: Any) -> list[str]:
        own = [getattr(param, "help", None) or "" for param in command.params] + [command.help or ""]
        return own + [text for one in getattr(command, "commands", {}).values() for text in texts(one)]

    assert not [text for text in texts(get_command(app)) if "[" in text]


def test_who_ran_out_of_time_is_told_how_to_get_more():
    from router.console.sql_session import trouble_of

    assert "--timeout" in trouble_of(pointsman.DeadlineExceeded("no answer within 0.3 s"), "127.0.0.1:1").way_out
