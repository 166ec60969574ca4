"""The command as such: its version, and what it sets up before anything else is imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("arguments", [["dev", "--pg-bin", "/nowhere"], ["serve", "-c", "/nowhere"]])
def test_grpc_is_told_to_be_quiet_before_it_is_imported(arguments: list[str], tmp_path: Path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    ended = subprocess.run(
        [sys.executable, "-c", NOTED_AT_IMPORT, *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**clean, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert ended.stdout.splitlines()[0] == "ERROR false", ended.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version(command: Command, arguments: list[str]):
    ended = command(*arguments)
    assert (ended.code, ended.out) == (0, f"pointsman {router.__version__}\n")


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


def test_the_readme_lists_every_variable_that_options_honour():
    from typer.main import get_command

    from router.cli import app

    commands = get_command(app).commands.values()
    honoured = {param.envvar for one in commands for param in one.params if isinstance(param.envvar, str)}
    listed = (Path(__file__).parents[2] / "README.md").read_text().partition("## Environment and files")[2]
    assert "POINTSMAN_TOKEN" in honoured
    assert not [name for name in honoured if f"`{name}`" not in listed.partition("## Configuration reference")[0]]
