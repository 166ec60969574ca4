"""Interactive transactions against a scripted Transact."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.v1 import query_service_pb2 as query_pb
from pointsman.v1 import transaction_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

from tests.sdk.fake_router import FakeRouter, result_set, silent, status, until


class Server:
    """A transaction as the router would answer it; SQL 'bad' fails, 'hang' never answers, 'end' ends the stream."""

    def __init__(self) -> None:
        self.outcome = pb.TRANSACT_OUTCOME_COMMITTED
        self.commit_failure: Any = None

    async def __call__(self, request: pb.TransactRequest) -> pb.TransactResponse | None:
        if request.end == pb.TRANSACT_END_COMMIT:
            if self.commit_failure == "hang":
                await asyncio.Event().wait()
            if self.commit_failure is not None:
                return pb.TransactResponse(failed=self.commit_failure)
            return pb.TransactResponse(
                done=types.ResultSet(), outcome=self.outcome, receipt=types.Receipt(token=b"t1", endpoint="pg-a")
            )
        if request.end:
            return pb.TransactResponse(done=types.ResultSet(), outcome=pb.TRANSACT_OUTCOME_ROLLED_BACK)
        if request.run.sql == "bad":
            refusal = status(
                grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="BAD_SQL", sqlstate="42601", executed="rolled_back"
            )
            return pb.TransactResponse(failed=refusal)
        if request.run.sql == "hang":
            await asyncio.Event().wait()
        if request.run.sql == "end":
            raise RuntimeError("the fake router breaks")
        return pb.TransactResponse(done=result_set(rows_affected=1, command_tag="SELECT 1"))


@pytest.fixture
def server(router: FakeRouter) -> Server:
    router.on_transact = made = Server()
    return made


def told(router: FakeRouter) -> list[str]:
    """What the router was asked to do, in order."""
    found = []
    for message in router.transact_messages:
        parts = ["begin"] if message.HasField("begin") else []
        action = message.WhichOneof("action")
        if action is not None:
            parts.append(message.run.sql if action == "run" else f"{action} {getattr(message, action)}")
        if message.end:
            parts.append(pb.TransactEnd.Name(message.end).removeprefix("TRANSACT_END_").lower())
        found.append(" + ".join(parts))
    return found


async def test_begin_travels_with_the_first_statement_and_a_clean_exit_commits(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async with db.transaction(isolation="repeatable read", read_only=True, deferrable=True) as tx:
        assert router.transact_messages == []
        assert await tx.query("select $1", 5) == [(1,)]
        assert (await tx.execute("update")).rowcount == 1
        assert await tx.query_value("select") == 1
        assert await tx.query_one("select") == (1,)
    assert told(router) == ["begin + select $1", "update", "select", "select", "commit"]
    first = router.transact_messages[0]
    assert first.begin.transaction == query_pb.TransactionOptions(
        isolation=query_pb.ISOLATION_LEVEL_REPEATABLE_READ, read_only=True, deferrable=True
    )
    assert first.run.params[0].integer == 5
    assert 4000 < first.timeout_ms <= 5000
    assert len({message.tag for message in router.transact_messages}) == 5
    assert tx.receipt is not None
    assert tx.receipt.endpoint == "pg-a"
    assert db.token == "dDE="
    assert router.metadata == [], "a transaction needs no Multiplex stream"


async def test_an_exception_rolls_back_and_passes_on(router: FakeRouter, db: pointsman.Client, server: Server) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.execute("insert")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert told(router) == ["begin + insert", "rollback"]
    await until(lambda: router.transact_ends == 1)


async def test_a_transaction_without_statements_sends_nothing(router: FakeRouter, db: pointsman.Client) -> None:
    async with db.transaction():
        pass
    async with db.transaction() as tx:
        await tx.rollback()
    assert router.transact_messages == []


async def test_a_failed_statement_is_an_exception_and_rolls_back(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    with pytest.raises(pointsman.SqlSyntaxError):
        async with db.transaction() as tx:
            await tx.execute("bad")
    assert told(router) == ["begin + bad", "rollback"]


async def test_committing_after_a_swallowed_error_is_loud(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    server.outcome = pb.TRANSACT_OUTCOME_ROLLED_BACK

    async def swallow() -> None:
        async with db.transaction() as tx:
            with pytest.raises(pointsman.SqlSyntaxError):
                await tx.execute("bad")

    with pytest.raises(pointsman.Aborted, match="nothing was committed") as caught:
        await swallow()
    assert caught.value.executed is pointsman.Executed.ROLLED_BACK


async def test_savepoints_nest_and_undo_alone(router: FakeRouter, db: pointsman.Client, server: Server) -> None:
    async with db.transaction() as tx, tx.savepoint():
        await tx.execute("a")
        try:
            async with tx.savepoint() as inner:
                await inner.execute("bad")
        except pointsman.SqlSyntaxError:
            await tx.execute("b")
    assert told(router) == [
        "begin + savepoint pointsman_1", "a", "savepoint pointsman_2", "bad", "rollback_to pointsman_2", "b",
        "release pointsman_1", "commit",
    ]  # fmt: skip


async def test_commit_and_rollback_by_hand_end_it(router: FakeRouter, db: pointsman.Client, server: Server) -> None:
    async with db.transaction() as tx:
        await tx.execute("a")
        await tx.commit()
        with pytest.raises(pointsman.InvalidRequest, match="committed; begin another"):
            await tx.execute("b")
    async with db.transaction() as tx:
        await tx.execute("c")
        await tx.rollback()
        with pytest.raises(pointsman.InvalidRequest, match="rolled back"):
            await tx.commit()
    assert told(router) == ["begin + a", "commit", "begin + c", "rollback"]


async def test_a_commit_that_fails_tells_why(router: FakeRouter, db: pointsman.Client, server: Server) -> None:
    server.commit_failure = status(
        grpc.StatusCode.ABORTED, "conflict", reason="SERIALIZATION", sqlstate="40001", executed="rolled_back"
    )
    with pytest.raises(pointsman.SerializationFailure):
        async with db.transaction() as tx:
            await tx.execute("a")
    assert told(router) == ["begin + a", "commit"]


async def test_a_silent_router_costs_the_timeout_and_the_transaction(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    begun = time.monotonic()
    tx = db.transaction(timeout=0.2)
    with pytest.raises(pointsman.DeadlineExceeded) as caught:
        await tx.execute("hang")
    assert 0.19 < time.monotonic() - begun < 0.45
    assert caught.value.executed is pointsman.Executed.ROLLED_BACK
    with pytest.raises(pointsman.TransactionLost):
        await tx.execute("a")
    await until(lambda: router.transact_ends == 1)


async def test_a_body_that_overlooks_the_loss_is_told_at_its_end(db: pointsman.Client, server: Server) -> None:
    async def body() -> None:
        async with db.transaction(timeout=0.1) as tx:
            with contextlib.suppress(pointsman.Error):
                await tx.execute("hang")

    with pytest.raises(pointsman.TransactionLost):
        await body()


async def test_a_commit_without_an_answer_may_have_been_done(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    server.commit_failure = "hang"
    tx = db.transaction()
    await tx.execute("a")
    with pytest.raises(pointsman.DeadlineExceeded, match="may have been done") as caught:
        await tx.commit(timeout=0.1)
    assert caught.value.executed is pointsman.Executed.MAYBE


async def test_a_connection_lost_while_committing_leaves_the_outcome_open(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    server.commit_failure = "hang"
    tx = db.transaction()
    await tx.execute("a")
    commit = asyncio.create_task(tx.commit())
    await until(lambda: len(router.transact_messages) == 2)
    await router.stop()
    with pytest.raises(pointsman.Error) as caught:
        await commit
    assert caught.value.executed is pointsman.Executed.MAYBE


async def test_a_connection_lost_before_the_commit_is_rolled_back(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    tx = db.transaction()
    await tx.execute("a")
    await router.stop()
    with pytest.raises(pointsman.TransactionLost) as caught:
        await tx.execute("b")
    assert caught.value.executed is pointsman.Executed.ROLLED_BACK


async def test_the_routers_reason_for_ending_an_idle_transaction_is_told(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    router.transact_failure = status(
        grpc.StatusCode.ABORTED, "idle for 10 s", reason="TRANSACTION_EXPIRED", executed="rolled_back"
    )
    tx = db.transaction()
    await tx.execute("a")
    await until(lambda: router.transact_ends == 1)
    await asyncio.sleep(0.05)
    with pytest.raises(pointsman.TransactionLost, match="idle for 10 s"):
        await tx.execute("b")


async def test_a_draining_router_sends_a_new_transaction_elsewhere(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    refusal = status(grpc.StatusCode.UNAVAILABLE, "draining", reason="DRAINING", executed="no")

    async def refuse_once(request: pb.TransactRequest) -> pb.TransactResponse | None:
        if len(router.transact_messages) == 1:
            return pb.TransactResponse(failed=refusal)
        return await server(request)

    router.on_transact = refuse_once
    async with db.transaction() as tx:
        assert await tx.query("a") == [(1,)]
    assert told(router) == ["begin + a", "begin + a", "commit"]


async def test_a_cancelled_statement_ends_the_transaction_at_once(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async def work() -> None:
        async with db.transaction() as tx:
            await tx.execute("hang")

    task = asyncio.create_task(work())
    await until(lambda: router.transact_messages)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: router.transact_ends == 1)
    assert told(router) == ["begin + hang"]


async def test_a_close_while_a_transaction_opens_says_that_the_client_was_closed() -> None:
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        db = pointsman.connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        tx = db.transaction()
        opening = asyncio.create_task(tx.execute("select 1", timeout=60))
        await asyncio.sleep(0.1)
        await db.close()
        with pytest.raises(pointsman.ClientClosed) as met:
            await asyncio.wait_for(opening, 5)  # at once, not at its deadline
        assert met.value.executed is not pointsman.Executed.MAYBE
        with pytest.raises(pointsman.Error):
            await tx.execute("select 1")


@pytest.mark.parametrize("committing", [False, True])
async def test_a_close_under_a_transaction_says_what_became_of_it(
    router: FakeRouter, server: Server, committing: bool
) -> None:
    server.commit_failure = "hang"
    db = pointsman.connect(router.address, tenant="acme", token="t")
    tx = db.transaction()
    await tx.execute("a")
    under_way = asyncio.create_task(tx.commit() if committing else tx.execute("hang"))
    await until(lambda: len(router.transact_messages) == 2)
    await db.close()
    with pytest.raises(pointsman.ClientClosed) as met:
        await under_way
    expected = pointsman.Executed.MAYBE if committing else pointsman.Executed.ROLLED_BACK
    assert met.value.executed is expected


async def test_a_cancel_after_a_close_is_still_a_cancel() -> None:
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        db = pointsman.connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        opening = asyncio.create_task(db.transaction().execute("select 1", timeout=5))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(db.close())
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await closing


async def test_statements_of_several_tasks_go_one_after_the_other(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async with db.transaction() as tx:
        await asyncio.gather(*(tx.execute(f"s{number}") for number in range(5)))
    assert sorted(told(router)) == sorted(["begin + s0", "s1", "s2", "s3", "s4", "commit"])


async def test_no_router_is_unavailable_after_the_timeout(unused_tcp_port: int) -> None:
    async with pointsman.connect(f"127.0.0.1:{unused_tcp_port}") as db:
        begun = time.monotonic()
        with pytest.raises(pointsman.Unavailable, match="was not reached") as caught:
            await db.transaction(timeout=0.3).execute("a")
        assert time.monotonic() - begun < 0.55
    assert caught.value.executed is pointsman.Executed.NO


async def test_an_unknown_isolation_is_told_here(db: pointsman.Client) -> None:
    with pytest.raises(ValueError, match="isolation must be one of"):
        db.transaction(isolation="dirty")  # type: ignore[arg-type]


async def test_a_read_only_transaction_carries_the_token(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    db.token = "dDE="
    async with db.transaction(read_only=True, read="replica") as tx:
        await tx.query("select")
    options = router.transact_messages[0].begin.options
    assert options == types.QueryOptions(read=types.READ_PREFERENCE_REPLICA, after_token=b"t1")


async def test_more_transactions_than_a_connection_carries_use_another(
    router: FakeRouter, db: pointsman.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.connection.STREAMS_PER_CHANNEL", 2)
    transactions = [db.transaction() for _ in range(5)]
    await asyncio.gather(*(tx.execute("a") for tx in transactions))
    assert len(set(router.transact_peers)) == 3
    await asyncio.gather(*(tx.rollback() for tx in transactions))
