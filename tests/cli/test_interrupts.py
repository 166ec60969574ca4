"""Ctrl-C, and a reader of the output that leaves: the command ends at once, and says what is known."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from pointsman.sync import SyncTransaction
from pointsman.v1 import admin_service_pb2 as admin_pb
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2 as types

from router.console.interrupting import Interrupted
from router.console.sql_session import SqlSession
from router.console.targets import Target
from tests.cli.conftest import TOKEN, FakeAdmin
from tests.sdk.fake_router import Answer, FakeRouter, never, result_set, status, until

PIPE = asyncio.subprocess.PIPE


RUNNING: list[asyncio.subprocess.Process] = []


@pytest.fixture(autouse=True)
async def nothing_runs_on() -> AsyncIterator[None]:
    """Ends what a failed test has left."""
    yield
    while RUNNING:
        process = RUNNING.pop()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def started(*arguments: str) -> asyncio.subprocess.Process:
    run = ("-c", "from router.cli import main; main()")
    made = await asyncio.create_subprocess_exec(sys.executable, *run, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    RUNNING.append(made)
    return made


async def sql(fake: FakeRouter, *arguments: str) -> asyncio.subprocess.Process:
    return await started("sql", *arguments, "--address", fake.address, "--tenant", "acme", "--token", "t")


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Endless:
    """A result that is too large for one answer: rows without end, or with a pause that has none after some."""

    def __init__(self, fake: FakeRouter, pause_after: int | None = None) -> None:
        self.pause_after = pause_after
        self.over = asyncio.Event()
        fake.on_call = self.too_large
        fake.on_rows = self.rows

    async def too_large(self, call: pb.MultiplexCall) -> Answer:
        return pb.MultiplexReply(
            failure=status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large", reason="RESULT_TOO_LARGE", executed="no")
        )

    async def rows(self, request: pb.StreamQueryRequest, context: Any) -> AsyncIterator[pb.StreamQueryResponse]:
        try:
            number = 0
            while True:
                found = result_set(rows=[(n,) for n in range(number, number + 1000)])
                message = pb.StreamQueryResponse(batch=found.batch)
                if not number:
                    message.schema.CopyFrom(found.schema)
                yield message
                number += 1000
                if number == self.pause_after:
                    await asyncio.Event().wait()
        finally:
            self.over.set()


async def test_a_table_of_any_size_is_shown_as_it_comes_until_its_reader_leaves(fake: FakeRouter):
    source = Endless(fake)
    process = await sql(fake, "select n from endless")
    assert process.stdout is not None
    lines = [(await asyncio.wait_for(process.stdout.readline(), 10)).decode() for _ in range(5000)]
    assert lines[1] == f"┃ {'n':>10} ┃\n"
    assert lines[3:] == [f"│ {n:>10} │\n" for n in range(4997)]
    process.stdout._transport.close()  # type: ignore[attr-defined]
    await asyncio.wait_for(source.over.wait(), 10)
    code, _, err = await ended(process)
    assert (code, err) == (1, "")


async def test_ctrl_c_in_a_read_says_how_far_it_came(fake: FakeRouter):
    source = Endless(fake, pause_after=3000)
    process = await sql(fake, "select n from endless", "--csv")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readuntil(b"2000\n"), 10)
    process.send_signal(signal.SIGINT)
    code, _, err = await ended(process)
    told = re.fullmatch(r"pointsman: interrupted after (\d+) rows\n", err)
    assert code == 130
    assert told is not None
    assert 2000 <= int(told.group(1)) <= 3000
    await asyncio.wait_for(source.over.wait(), 10)


@pytest.mark.parametrize(
    ("executed", "words"),
    [
        ("no", "interrupted: it was not executed (executed: no)\n"),
        ("rolled_back", "interrupted: it was rolled back (executed: rolled_back)\n"),
        ("maybe", "interrupted: whether it was done is not known (executed: maybe)\nlook at the data before"),
        ("", "interrupted too late: it was done (executed: yes)\n"),
    ],
)
async def test_ctrl_c_in_a_write_tells_what_became_of_it(fake: FakeRouter, executed: str, words: str):
    async def answer(call: pb.MultiplexCall) -> Answer:
        await until(lambda: call.execute.request_id in fake.cancel_requests)
        if executed:
            failure = status(grpc.StatusCode.CANCELLED, "x", reason="CANCELLED", executed=executed)
            return pb.MultiplexReply(failure=failure)
        done = types.ResultSet(rows_affected=1, command_tag="UPDATE 1")
        return pb.MultiplexReply(execute=pb.ExecuteResponse(result=done))

    fake.on_call = answer
    process = await sql(fake, "update t set n = 1")
    await until(lambda: fake.calls)
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)
    assert (code, out) == (130, "")
    assert err.startswith(f"pointsman: {words}")


@pytest.mark.parametrize(("sql", "executed"), [("insert into t values (1)", "rolled_back"), ("commit", "maybe")])
async def test_ctrl_c_in_a_transaction_undoes_it_and_of_a_commit_nothing_is_known(
    fake: FakeRouter, monkeypatch: pytest.MonkeyPatch, sql: str, executed: str
):
    async def answer(request: tx_pb.TransactRequest) -> tx_pb.TransactResponse:
        return tx_pb.TransactResponse(tag=request.tag, began=tx_pb.Began())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def session() -> None:
        with SqlSession(Target(fake.address, "t", "acme")) as made:
            made.run("begin")
            monkeypatch.setattr(SyncTransaction, "execute", interrupted)
            monkeypatch.setattr(SyncTransaction, "commit", interrupted)
            with pytest.raises(Interrupted, match=rf"executed: {executed}\)"):
                made.run(sql)
            assert not made.in_transaction

    fake.on_transact = answer
    await asyncio.to_thread(session)


async def test_a_router_that_answers_nothing_is_waited_for_no_longer_than_a_second(fake: FakeRouter):
    async def frozen(context: Any) -> None:
        await asyncio.Event().wait()

    fake.on_call, fake.on_question = never, frozen
    process = await sql(fake, "delete from t")
    await until(lambda: fake.calls)
    process.send_signal(signal.SIGINT)
    began = asyncio.get_running_loop().time()
    code, _, err = await ended(process)
    assert asyncio.get_running_loop().time() - began < 4
    assert (code, "(executed: maybe)" in err) == (130, True)


async def test_ctrl_c_in_a_switchover_says_that_it_goes_on(admin: FakeAdmin):
    over = threading.Event()

    def steps() -> Iterator[admin_pb.SwitchoverResponse]:
        yield admin_pb.SwitchoverResponse(step="fence", elapsed_s=0.1)
        over.wait(10)

    admin.steps = steps()  # type: ignore[assignment]
    process = await started("switchover", "main", "--address", admin.address, "--token", TOKEN)
    assert process.stdout is not None
    try:
        assert b"fence" in await asyncio.wait_for(process.stdout.readline(), 10)
        process.send_signal(signal.SIGINT)
        code, _, err = await ended(process)
    finally:
        over.set()
    words = "interrupted: the router goes on with the switchover of main, or undoes it\nsee: pointsman status\n"
    assert (code, err) == (130, f"pointsman: {words}")
