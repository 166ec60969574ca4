"""Lines of the audit log on disks that are full, pipes that are, and outputs that nobody reads any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.model.auditing import AuditEntry
from router.model.port_policies import AuditPolicy
from router.telemetry import audit_log
from router.telemetry.audit_log import AuditLog, line
from tests.support.eventually import eventually

PIPE_BUF = 4096


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A descriptor that stands for standard output."""
    place = os.open("/dev/null", os.O_WRONLY)
    monkeypatch.setattr(audit_log, "_STANDARD_OUTPUT", place)
    yield place
    os.close(place)


def told(text: str) -> tuple[int, int]:
    """Entries that are there, and how many are said to be missing; each line is JSON."""
    found = [json.loads(one) for one in text.splitlines()]
    missing = [int(one["outcome"].removeprefix("dropped ")) for one in found if one["what"] == "audit"]
    return sum(one["what"] == "x" for one in found), sum(missing)


async def test_an_output_without_room_is_counted_and_told_once_it_has_some(output: int, tmp_path: Path):
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, output)
    os.close(full)
    log = AuditLog(AuditPolicy("-"))
    for count in (1, 2):
        log.record(AuditEntry("x", "ok"))
        await eventually(lambda count=count: log.dropped == count, within_s=5, what="the loss in the count")
    file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, output)
    os.close(file)
    log.record(AuditEntry("x", "ok"))
    log.close()
    assert told((tmp_path / "out").read_text()) == (1, 2)


async def test_a_full_pipe_that_does_not_wait_is_waited_for(output: int):
    end, begin = os.pipe()
    os.set_blocking(begin, False)
    os.dup2(begin, output)
    os.close(begin)
    read: list[bytes] = []

    def reading() -> None:
        with open(end, "rb") as stream:
            read.extend(stream)

    log = AuditLog(AuditPolicy("-"))
    for _ in range(2000):
        log.record(AuditEntry("x", "ok", "w" * 100))
    reader = threading.Timer(0.2, reading)
    reader.start()
    log.close()
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, output)
    os.close(null)
    reader.join()
    assert (told(b"".join(read).decode()), log.dropped) == ((2000, 0), 0)


ON_A_FULL_DISK = """
import resource, sys, time
from router.model.auditing import AuditEntry
from router.model.port_policies import AuditPolicy
from router.telemetry.audit_log import AuditLog

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
log = AuditLog(AuditPolicy(sys.argv[1]))
for _ in range(50):
    log.record(AuditEntry("x", "ok"))
while not log.dropped or log._waiting:
    time.sleep(0.01)
time.sleep(0.1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.record(AuditEntry("x", "ok"))
log.close()
print(log.dropped)
"""


@pytest.mark.parametrize("left", [0, 1, 2], ids=["in a line", "at its end", "after it"])
def test_a_disk_that_fills_up_tears_no_line_and_hides_no_loss(tmp_path: Path, left: int):
    file = tmp_path / "audit.jsonl"
    size = len(line(0.0, AuditEntry("x", "ok"))) * 10
    room = size + {0: -20, 1: -1, 2: 0}[left]
    ended = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(file), str(room)], capture_output=True, text=True, check=False
    )
    assert ended.stderr == "" or "cannot be written" in ended.stderr
    whole = 10 if left == 2 else 9
    assert told(file.read_text()) == (whole + 1, 50 - whole)
    assert int(ended.stdout.splitlines()[-1]) == 50 - whole


def test_lines_of_several_processes_do_not_mix_in_a_pipe():
    entries = [line(0.0, AuditEntry("x", "ok", "w" * count)).encode() for count in range(200)]
    pieces = list(audit_log._pieces(entries))
    assert b"".join(pieces) == b"".join(entries)
    assert len(pieces) < 20
    assert all(len(piece) <= PIPE_BUF and piece.endswith(b"\n") for piece in pieces)
    odd = "\U0001f40d" * 1000
    assert len(line(0.0, AuditEntry(odd, odd, odd, odd, about=odd, why=odd, sql=("0" * 16,) * 99))) <= PIPE_BUF
