"""`pointsman copy` over a scripted router: arguments, summaries, errors, and the bar that only a person sees."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from pointsman.v1 import errors_pb2
from pointsman.v1 import query_service_pb2 as pb

from router.console import copying
from tests.cli.conftest import Command, Ended
from tests.sdk.copy_router import CopyRouter
from tests.sdk.fake_router import status, until

WHOLE = b"1\tone\n2\ttwo\n"


@pytest.fixture
async def fake() -> AsyncIterator[CopyRouter]:
    router = CopyRouter()
    await router.start()
    yield router
    await router.stop()


async def copy(command: Command, fake: CopyRouter, *arguments: str) -> Ended:
    given = ("--address", fake.address, "--tenant", "acme", "--token", "t")
    return await asyncio.to_thread(command, "copy", *arguments, *given)


async def test_out_and_in(command: Command, fake: CopyRouter, tmp_path: Path):
    path = tmp_path / "t.csv"
    ended = await copy(command, fake, "out", "s.t", str(path), "--header", "--columns", "a, b", "--read", "any")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("COPY 2 · 12 bytes in ")
    assert ended.out.endswith("· one (primary)\n")
    assert path.read_bytes() == WHOLE
    (asked,) = fake.out_requests
    assert asked.table == pb.CopyTable(schema="s", name="t", columns=["a", "b"])
    assert (asked.encoding.format, asked.encoding.header, asked.options.read) == (pb.COPY_FORMAT_CSV, True, 3)
    ended = await copy(command, fake, "in", "t", str(path), "--format", "text", "--null", "-", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert (told["rows"], told["bytes"], told["command"], told["endpoint"]) == (2, 12, "COPY", "one")
    assert (fake.taken, fake.ends[-1]) == ([WHOLE], "committed")
    encoding = fake.starts[0].encoding
    assert (encoding.format, encoding.null_text) == (pb.COPY_FORMAT_TEXT, "-")


async def test_in_with_a_key(command: Command, fake: CopyRouter, tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(WHOLE)
    assert "it was done before" not in (await copy(command, fake, "in", "t", str(path))).out
    fake.receipt.replayed = True
    ended = await copy(command, fake, "in", "t", str(path), "--idempotency-key", "job 7")
    assert ended.code == 0
    assert ended.out.endswith("· it was done before\n")
    assert [one.idempotency_key for one in fake.starts] == ["", "job 7"]


async def test_a_query(command: Command, fake: CopyRouter, tmp_path: Path):
    ended = await copy(command, fake, "out", str(tmp_path / "x"), "--query", "select 1")
    assert ended.code == 0
    assert (fake.out_requests[0].query, fake.out_requests[0].encoding.format) == ("select 1", pb.COPY_FORMAT_TEXT)


async def test_standard_output_holds_the_data_alone(
    fake: CopyRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, flush=lambda: None, isatty=lambda: False))
    target = copying.Target(fake.address, "t", "acme")
    encoding = copying.Encoding("csv", False, "", None, "")
    asked = copying.CopyOut("t", "", "-", [], encoding, "primary", None)
    await asyncio.to_thread(copying.run_out, target, asked, True)
    assert out.getvalue() == WHOLE
    assert json.loads(capsys.readouterr().err)["rows"] == 2


async def test_standard_input(command: Command, fake: CopyRouter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(WHOLE), isatty=lambda: False))
    assert (await copy(command, fake, "in", "t", "-")).code == 0
    assert fake.taken == [WHOLE]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert "terminal" in (await copy(command, fake, "in", "t", "-")).err


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("out", "t"), "no file given", 2),
        (("out", "select 1 as n", "file"), "pointsman copy out file --query 'select 1 as n'", 2),
        (("out", " WITH x as (select 1) table x", "file"), "--query", 2),
        (("out", "t", "/no/such/folder/t.csv"), "there is no folder /no/such/folder\n", 1),
        (("out", "t", "file", "--query", "select 1"), "either a table or --query", 2),
        (("out", "t", "file", "--format", "xml"), "there is no format xml", 2),
        (("in", "t", "/nowhere/t.csv"), "/nowhere/t.csv cannot be read: No such file", 1),
        (("out", "t", "/nowhere/t.csv"), "/nowhere/t.csv", 1),
        (("out", "a.b.c", "file"), "schema.name", 2),
    ],
)
async def test_mistakes(command: Command, fake: CopyRouter, arguments: tuple[str, ...], words: str, code: int):
    ended = await copy(command, fake, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert "Traceback" not in ended.err


async def test_bad_data_names_its_line(command: Command, fake: CopyRouter, tmp_path: Path):
    fake.refuse_data = status(
        grpc.StatusCode.INVALID_ARGUMENT, "invalid input", reason="BAD_DATA", executed="rolled_back", sqlstate="22P02",
        pg=errors_pb2.PgErrorDetail(sqlstate="22P02", context="COPY t, line 2, column n"),
    )  # fmt: skip
    (tmp_path / "t").write_bytes(WHOLE)
    ended = await copy(command, fake, "in", "t", str(tmp_path / "t"))
    assert ended.code == 1
    assert ended.err.splitlines() == ["pointsman: invalid input (22P02)", "CONTEXT: COPY t, line 2, column n"]


async def test_a_name_in_capitals_is_asked_back(command: Command, fake: CopyRouter, tmp_path: Path):
    fake.refuse_data = status(
        grpc.StatusCode.INVALID_ARGUMENT, 'relation "ACCOUNTS" does not exist', reason="BAD_SQL", sqlstate="42P01"
    )
    (tmp_path / "t").write_bytes(WHOLE)
    ended = await copy(command, fake, "in", "ACCOUNTS", str(tmp_path / "t"))
    assert (ended.code, "capitals included: is it accounts?" in ended.err) == (1, True)


async def test_no_router(command: Command, fake: CopyRouter, tmp_path: Path):
    await fake.stop()
    assert (await copy(command, fake, "out", "t", str(tmp_path / "t"))).code == 3
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_a_person_sees_a_bar(
    command: Command, fake: CopyRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "t").write_bytes(b"1\n" * 500_000)
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    ended = await copy(command, fake, "in", "t", str(tmp_path / "t"))
    assert ended.code == 0
    assert "1.0/1.0 MB" in seen.getvalue()


async def test_ctrl_c_rolls_back(fake: CopyRouter, tmp_path: Path):
    """As its own process, with a pipe that gives nothing more."""
    command = "from router.cli import main; main()"
    given = ("copy", "in", "t", "-", "--address", fake.address, "--tenant", "acme", "--token", "t")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, *given, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"1\tone\n" * 100_000)
    await process.stdin.drain()
    await until(lambda: fake.taken, within_s=20)
    process.send_signal(2)
    await until(lambda: fake.ends == ["undone"])
    assert process.stderr is not None
    err = await asyncio.wait_for(process.stderr.read(), 10)  # it ends although nobody closes the pipe
    assert (await process.wait(), err) == (130, b"")
    process.stdin.close()
