"""Commands that print passwords: found at load, run without a shell, bounded, and shown nowhere."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from router.config import secret_commands
from router.config.secret_commands import CommandRunner
from router.config.secret_references import SecretReader, SecretUnavailable
from router.model.secret_commands import SecretCommand, SecretFailed

SECRET = "canary-of-the-commands"


def command(script: str, timeout_s: float = 20.0) -> SecretCommand:
    return SecretCommand(("/bin/sh", "-c", script), "/", timeout_s=timeout_s)


@pytest.mark.parametrize(
    "script",
    [f"echo {SECRET}", f"printf '%s' {SECRET}", f"printf '{SECRET}\\r\\n'", f"echo noise >&2; echo {SECRET}"],
)
async def test_what_is_printed_is_the_secret_without_its_newline(script: str) -> None:
    assert (await CommandRunner().run(command(script))).value == SECRET


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "command sh ended with exit code 3"),
        (f"echo {SECRET}; echo 'no token: '{SECRET} >&2; echo more >&2; exit 1", "exit code 1: no token: ***"),
        ("kill -9 $$", "was ended by signal 9"),
        ("echo expired >&2", "printed nothing: expired"),
        (f"echo {SECRET}; echo {SECRET}", "more than one line"),
        ("printf '\\377'", "not UTF-8"),
        ("head -c 70000 /dev/zero", "more than 65536 bytes"),
    ],
)
async def test_why_there_is_no_secret_is_told_without_it(script: str, words: str) -> None:
    with pytest.raises(SecretFailed) as failed:
        await CommandRunner().run(command(script))
    assert words in str(failed.value)
    assert SECRET not in str(failed.value)


async def test_one_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    began = time.monotonic()
    with pytest.raises(SecretFailed, match=r"was ended after 0\.5 s \(command_timeout_s\)"):
        await CommandRunner().run(command(script, 0.5))
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(500):
        if not _runs(child):
            return
        await asyncio.sleep(0.01)
    pytest.fail("its child goes on")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_one_that_cannot_be_started_is_told() -> None:
    with pytest.raises(SecretFailed, match="command nothing cannot be started: no such file"):
        await CommandRunner().run(SecretCommand(("/nowhere/nothing",)))


async def test_a_run_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    running = asyncio.create_task(CommandRunner().run(command(f"echo $$ > {tmp_path}/own; sleep 60")))
    while not (tmp_path / "own").exists() or not (tmp_path / "own").read_text():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.wait({running})
    pid = int((tmp_path / "own").read_text())
    while _runs(pid):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.005)


async def test_only_so_many_run_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secret_commands, "AT_ONCE", 2)
    runner = CommandRunner()
    script = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l | tr -d ' '; sleep 0.05; rm {tmp_path}/$$"
    counts = await asyncio.gather(*(runner.run(command(script)) for _ in range(6)))
    assert {int(one.value) for one in counts} <= {1, 2}


def test_a_reference_is_split_without_a_shell_and_the_program_is_found(tmp_path: Path) -> None:
    program = tmp_path / "token"
    program.write_text("#!/bin/sh\n")
    reader = SecretReader(tmp_path, {"PATH": os.environ["PATH"]})
    with pytest.raises(SecretUnavailable, match=r"program \./token cannot be found or executed"):
        reader.command("command:./token", 600, 10)
    program.chmod(0o755)
    found = reader.command("command: ./token --host 'a b' $HOME ; ls", 60, 5)
    assert found.argv == (str(program), "--host", "a b", "$HOME", ";", "ls")
    assert (found.folder, found.ttl_s, found.timeout_s) == (str(tmp_path), 60, 5)
    assert str(found) == "command token"
    assert "a b" not in repr(found)
    assert os.path.isabs(reader.command(f"command:{sys.executable} -V", 60, 5).argv[0])


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("command:'unclosed", "cannot be split into words"),
        ("command: ", "names no program"),
        ("command:no-such-program-here x", "program no-such-program-here cannot be found"),
    ],
)
def test_a_reference_that_names_no_program_is_a_mistake(reference: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SecretUnavailable, match=words):
        SecretReader(tmp_path, os.environ).command(reference, 600, 10)
