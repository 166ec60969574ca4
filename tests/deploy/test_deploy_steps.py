"""The README's commands as somebody runs them: in order, in one shell, as root."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "pointsman.service").read_text()
NOT_HERE = ("psql", "docker", "compose", "kubectl", "install", "systemctl", "pointsman")
"""What would change something outside: says nothing and succeeds."""
TOOLS = ("cat", "chmod", "mkdir")
"""All else that can be run."""
STAND_INS = {
    **dict.fromkeys(NOT_HERE, "exit 0"),
    "openssl": "echo 00ff",
    # As `python3 -m venv FOLDER` does: the modes are the shell's umask.
    "python3": 'mkdir -p "$3/bin"; : > "$3/bin/pip"; chmod +x "$3/bin/pip"',
}


def blocks() -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder in which all of the README's blocks were run; /opt is a folder in it."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed: the README's blocks are not run")
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    for name, does in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{does}\n")
        (stand_ins / name).chmod(0o755)
    for name in TOOLS:
        (stand_ins / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "opt").mkdir(mode=0o755)
    (tmp_path / "deploy" / "compose").mkdir(parents=True)
    script = "\n".join(["set -e", *blocks()]).replace("/opt/", f"{tmp_path}/opt/")
    environ = {"PATH": str(stand_ins)}
    argv = [bash, "-c", f"umask 022\n{script}"]
    ran = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_service_user_can_enter_what_is_installed(done: Path):
    made = [path for path in (done / "opt").rglob("*") if path.is_dir()]
    assert len(made) == 2, made
    assert {mode(path) for path in made} == {0o755}


def test_nobody_else_can_read_the_secrets(done: Path):
    assert mode(done / "secrets") == 0o700
    secrets = [*(done / "secrets").iterdir(), done / "environment", done / "deploy" / "compose" / "env"]
    assert len(secrets) == 6
    assert {mode(path) for path in secrets} == {0o600}


def test_the_unit_may_write_where_the_sample_and_the_readme_say():
    """DynamicUser and ProtectSystem=strict leave it these folders and no others."""
    told = (DEPLOY / "README.md").read_text().partition("## systemd")[2]
    (state,) = re.findall(r"^StateDirectory=(.*)$", UNIT, re.MULTILINE)
    (logs,) = re.findall(r"^LogsDirectory=(.*)$", UNIT, re.MULTILINE)
    writable = {f"/var/lib/{one}" for one in state.split()} | {f"/var/log/{one}" for one in logs.split()}
    assert state.split()[0] == "pointsman", "the first is the router's state directory"
    (tenants,) = re.findall(r"`tenants_dir: (\S+)`", told)
    (audit,) = re.findall(r"`server\.audit\.file: (\S+)`", told)
    assert tenants in writable
    assert str(Path(audit).parent) in writable
    assert f"file: {audit}" in (DEPLOY / "pointsman.yaml").read_text()


def test_secrets_that_are_roots_files_reach_the_service():
    told = (DEPLOY / "README.md").read_text().partition("## systemd")[2]
    (loaded,) = re.findall(r"`LoadCredential=(\S+):/etc/\S+`", told)
    assert f"file:/run/credentials/pointsman.service/{loaded}" in told
    assert f"#LoadCredential={loaded}:/etc/" in UNIT
