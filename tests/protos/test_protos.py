"""The contract: it lints, it does not break what was released, and the committed stubs are what it generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "clients/python"
BUF = Path(sys.executable).parent / "buf"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_protos_lint() -> None:
    done = run(BUF, "lint", "protos")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_protos_break_nothing_that_was_released() -> None:
    done = run(BUF, "breaking", "protos", "--against", "protos/released.binpb")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_breaking_change_is_seen(tmp_path: Path) -> None:
    for file in (ROOT / "protos").rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(ROOT / "protos")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    types = tmp_path / "pointsman/v1/types.proto"
    types.write_text(types.read_text().replace("string sql = 1;", "string sql = 9;"))
    done = run(BUF, "breaking", tmp_path, "--against", "protos/released.binpb")
    assert done.returncode != 0
    assert "sql" in done.stdout


@pytest.mark.timeout(60)
def test_the_committed_stubs_are_current(tmp_path: Path) -> None:
    done = run("make", "protos", f"OUT={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    kept = {path.relative_to(STUBS): path.read_bytes() for path in (STUBS / "pointsman/v1").glob("*_pb2*")}
    assert fresh.keys() == kept.keys()
    stale = [str(name) for name, content in fresh.items() if kept[name] != content]
    assert not stale, f"run `make protos`: {stale}"
