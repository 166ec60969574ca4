"""`pointsman sql` and its prompt, over a scripted router."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path

import grpc
import pytest
from pointsman.v1 import errors_pb2
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb

from tests.cli.conftest import Command, Ended, failing
from tests.sdk.fake_router import FakeRouter, one_row, result_set, status


async def sql(command: Command, fake: FakeRouter, *arguments: str) -> Ended:
    given = ("--address", fake.address, "--tenant", "acme", "--token", "t")
    return await asyncio.to_thread(command, "sql", *arguments, *given)


async def test_a_read_shows_rows_and_where_they_came_from(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "select 1 as n", "--read", "replica")
    assert ended.code == 0
    assert "│ 1 │" in ended.out
    assert ended.out.splitlines()[-1].startswith("1 row · one · ")
    (call,) = fake.calls
    assert call.WhichOneof("call") == "query"
    assert fake.metadata[0]["authorization"] == "Bearer t"


async def test_a_token_from_one_run_is_for_the_next(command: Command, fake: FakeRouter):
    async def answer(call: pb.MultiplexCall) -> pb.MultiplexReply:
        reply = await one_row(call)
        reply.query.receipt.token = b"t1"
        return reply

    fake.on_call = answer
    ended = await sql(command, fake, "select 1", "--csv", "--show-token", "--read", "any")
    assert (ended.code, ended.out.split(), ended.err) == (0, ["n", "1"], "token: dDE=\n")
    ended = await sql(command, fake, "select 1", "--after-token", "dDE=", "--read", "any")
    assert (ended.code, ended.err) == (0, "")
    assert [call.query.options.after_token for call in fake.calls] == [b"", b"t1"]
    ended = await sql(command, fake, "select 1", "--after-token", "?")
    assert (ended.code, "no consistency token" in ended.err) == (2, True)


async def test_a_write_shows_its_command_tag(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "insert into t values (1)")
    assert ended.out.startswith("INSERT 0 1 · one")
    assert fake.calls[0].WhichOneof("call") == "execute"


async def test_a_read_that_writes_goes_again_as_a_write(command: Command, fake: FakeRouter):
    async def answer(call: pb.MultiplexCall) -> pb.MultiplexReply:
        if call.WhichOneof("call") == "query":
            pg = errors_pb2.PgErrorDetail(sqlstate="25006", message="read-only")
            return pb.MultiplexReply(
                failure=status(
                    grpc.StatusCode.FAILED_PRECONDITION, "read-only", reason="WRITE_ON_READ_METHOD", pg=pg,
                    executed="rolled_back",
                )
            )  # fmt: skip
        return pb.MultiplexReply(execute=pb.ExecuteResponse(result=result_set(rows_affected=1, command_tag="SELECT 1")))

    fake.on_call = answer
    ended = await sql(command, fake, "with x as (insert into t values (1) returning 1) select * from x")
    assert ended.code == 0
    assert [call.WhichOneof("call") for call in fake.calls] == ["query", "execute"]


async def test_json_and_csv_write_nothing_but_the_rows(command: Command, fake: FakeRouter):
    assert json.loads((await sql(command, fake, "select 1", "--json")).out) == [{"n": 1}]
    assert (await sql(command, fake, "select 1", "--csv")).out == "n\n1\n"


async def test_json_tells_what_was_done_when_there_are_no_rows(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "insert into t values (1)", "--json")
    assert json.loads(ended.out) == {"command": "INSERT 0 1", "rows": 1, "endpoint": "one", "attempts": 1}
    mixed = await sql(command, fake, "insert into t values (1); select 1", "--json")
    assert json.loads(mixed.out) == [{"n": 1}]


async def test_json_of_several_statements_is_a_line_each(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "select 1; insert into t values (1); select 1", "--json")
    assert [json.loads(line) for line in ended.out.splitlines()] == [[{"n": 1}], [{"n": 1}]]


async def test_a_table_is_described_without_a_prompt(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "\\d accounts", "--csv")
    assert (ended.code, ended.out) == (0, "n\n1\nn\n1\n")
    assert len(fake.calls) == 2, "columns, and indexes"
    unknown = await sql(command, fake, "\\timing")
    assert (unknown.code, "works at the prompt only" in unknown.err) == (2, True)


async def test_several_statements_run_in_their_order_until_one_fails(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "select 1; insert into t values (';'); select 2")
    assert ended.code == 0
    assert [call.WhichOneof("call") for call in fake.calls] == ["query", "execute", "query"]


async def test_a_sql_error_is_one_line_with_its_way_out(command: Command, fake: FakeRouter):
    pg = errors_pb2.PgErrorDetail(
        sqlstate="42703", message='column "foo" does not exist', hint='Perhaps you meant "f00".', position=9
    )
    fake.on_call = failing(
        grpc.StatusCode.INVALID_ARGUMENT, 'column "foo" does not exist', reason="BAD_SQL", pg=pg, executed="rolled_back"
    )
    ended = await sql(command, fake, "select\n foo")
    assert ended.code == 1
    assert (
        ended.err
        == 'pointsman: column "foo" does not exist (42703)\nLINE 2:  foo\n         ^\nHINT: Perhaps you meant "f00".\n'
    )


async def test_a_wrong_token_tells_which_options_to_check(command: Command, fake: FakeRouter):
    fake.on_call = failing(grpc.StatusCode.UNAUTHENTICATED, "unknown token", reason="UNAUTHENTICATED", executed="no")
    ended = await sql(command, fake, "select 1")
    assert ended.code == 1
    assert "check --token (POINTSMAN_TOKEN) and --tenant (POINTSMAN_TENANT)" in ended.err


async def test_a_wrong_token_is_a_matter_of_options_first_and_of_metadata_second(command: Command, fake: FakeRouter):
    words = "unknown token: send metadata 'authorization: Bearer TOKEN' with a token from the configuration"
    fake.on_call = failing(grpc.StatusCode.UNAUTHENTICATED, words, reason="UNAUTHENTICATED", executed="no")
    ended = await sql(command, fake, "select 1")
    assert ended.err == (
        "pointsman: unknown token (unauthenticated)\ncheck --token (POINTSMAN_TOKEN) and --tenant (POINTSMAN_TENANT); "
        "programs send metadata 'authorization: Bearer TOKEN' with a token from the configuration\n"
    )


@pytest.mark.parametrize(
    ("statement", "reason", "command_line"),
    [
        ("listen jobs", "SESSION_STATEMENT", "pointsman listen jobs"),
        ("LISTEN \"my jobs\"", "SESSION_STATEMENT", "pointsman listen 'my jobs'"),
        ("copy t to stdout", "COPY_NOT_HERE", "pointsman copy out TABLE FILE"),
    ],
)
async def test_what_has_a_command_of_its_own_is_sent_there(
    command: Command, fake: FakeRouter, statement: str, reason: str, command_line: str
):
    fake.on_call = failing(grpc.StatusCode.FAILED_PRECONDITION, "use the RPC X", reason=reason, executed="no")
    ended = await sql(command, fake, statement)
    assert ended.code == 1
    assert command_line in ended.err
    assert "RPC" not in ended.err


async def test_a_statement_may_be_given_as_psql_takes_it(command: Command, fake: FakeRouter):
    assert (await sql(command, fake, "-c", "select 1", "--csv")).out == "n\n1\n"
    both = await sql(command, fake, "select 1", "-c", "select 2")
    assert (both.code, "there are two statements" in both.err) == (2, True)


async def test_one_write_may_have_an_idempotency_key(command: Command, fake: FakeRouter):
    ended = await sql(command, fake, "insert into t values (1)", "--idempotency-key", "order-17")
    assert (ended.code, ended.err) == (0, "")
    (call,) = fake.calls
    assert call.execute.idempotency_key == "order-17"
    for statements in ("insert into t values (1); insert into t values (2)", "begin"):
        ended = await sql(command, fake, statements, "--idempotency-key", "order-18")
        assert (ended.code, "is for one write" in ended.err) in ((1, True), (2, True))
    assert len(fake.calls) == 1


async def test_a_deadline_names_its_seconds(command: Command, fake: FakeRouter):
    fake.on_call = failing(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed", reason="DEADLINE", executed="no")
    ended = await sql(command, fake, "select 1")
    assert re.match(r"pointsman: the deadline passed \(after \d\.\d s\) \(deadline\)\n", ended.err)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [("\\?\nselect 1;\n", 1, "\\?"), ("select 1;\nselect '\n\\x', -- \n 2;\n  \\d t\n", 5, "\\d")],
)
async def test_a_backslash_command_among_statements_is_told_with_its_line(
    command: Command, fake: FakeRouter, monkeypatch: pytest.MonkeyPatch, text: str, line: int, word: str
):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    ended = await sql(command, fake)
    assert ended.code == 2
    assert ended.err.startswith(f"pointsman: line {line}: {word} works at the prompt only, like all backslash")
    assert fake.calls == []


async def test_the_operators_port_is_told_apart(command: Command, fake: FakeRouter):
    fake.on_call = failing(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    ended = await sql(command, fake, "select 1")
    assert ended.code == 1
    assert f"{fake.address} does not serve QueryService\nis this the operators' port?" in ended.err


async def test_a_transaction_without_an_end_is_no_success(command: Command, fake: FakeRouter):
    async def answer(request: tx_pb.TransactRequest) -> tx_pb.TransactResponse:
        return tx_pb.TransactResponse(began=tx_pb.Began())

    fake.on_transact = answer
    ended = await sql(command, fake, "begin")
    assert ended.code == 1
    assert "the transaction was not ended, and is rolled back\nend it with COMMIT" in ended.err


async def test_an_outcome_that_may_have_happened_says_so(command: Command, fake: FakeRouter):
    fake.on_call = failing(grpc.StatusCode.UNKNOWN, "lost in flight", reason="OUTCOME_UNKNOWN", executed="maybe")
    ended = await sql(command, fake, "insert into t values (1)")
    assert ended.err == "pointsman: lost in flight (outcome_unknown, executed: maybe)\n"


async def test_standard_input_is_read(command: Command, fake: FakeRouter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("select 1;\nselect 2;\n"))
    ended = await sql(command, fake, "-")
    assert ended.code == 0
    assert len(fake.calls) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["select 1", "--format", "xml"], "there is no output format 'xml'"),
        (["select 1", "--read", "nowhere"], "reads cannot go to 'nowhere'"),
        ([" ; "], "there is no statement to run"),
    ],
)
async def test_wrong_options_are_usage_errors(command: Command, fake: FakeRouter, arguments: list[str], words: str):
    ended = await sql(command, fake, *arguments)
    assert ended.code == 2
    assert words in ended.err


def test_without_a_token_nothing_is_tried(command: Command):
    ended = command("sql", "select 1")
    assert ended.code == 2
    assert "POINTSMAN_TOKEN" in ended.err


def test_no_router_is_told_at_once(command: Command):
    ended = command("sql", "select 1", "--address", "127.0.0.1:1", "--token", "t")
    assert ended.code == 3
    assert ended.err.startswith("pointsman: no router answers at 127.0.0.1:1\n")


async def test_a_development_routers_tenant_is_the_default(command: Command, fake: FakeRouter, tmp_path: Path):
    tenants = [{"name": "acme", "token": "a-token"}, {"name": "globex", "token": "g-token"}]
    (tmp_path / "dev.json").write_text(json.dumps({"router": fake.address, "admin": "x:1", "tenants": tenants}))
    ended = await asyncio.to_thread(command, "sql", "select 1", "--dev", str(tmp_path))
    assert ended.code == 0
    assert fake.metadata[-1]["authorization"] == "Bearer a-token"
    await asyncio.to_thread(command, "sql", "select 1", "--dev", str(tmp_path), "--tenant", "globex")
    assert fake.metadata[-1]["authorization"] == "Bearer g-token"
    ended = await asyncio.to_thread(command, "sql", "select 1", "--dev", str(tmp_path), "--tenant", "none")
    assert (ended.code, "its tenants: acme, globex" in ended.err) == (2, True)


async def test_an_explicit_dev_beats_the_environment_and_is_beaten_by_an_explicit_address(
    command: Command, fake: FakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tenants = [{"name": "acme", "token": "a-token"}]
    there = json.dumps({"router": fake.address, "admin": "x:1", "tenants": tenants})
    (tmp_path / "dev.json").write_text(there)

    async def ended(*arguments: str) -> Ended:
        monkeypatch.setenv("POINTSMAN_ADDRESS", "127.0.0.1:1")
        monkeypatch.setenv("POINTSMAN_TOKEN", "another")
        return await asyncio.to_thread(command, "sql", "select 1", *arguments)

    assert (await ended("--dev", str(tmp_path))).code == 0
    assert fake.metadata[-1]["authorization"] == "Bearer a-token"
    assert (await ended("--dev", str(tmp_path), "--token", "mine")).code == 0
    assert fake.metadata[-1]["authorization"] == "Bearer mine"
    assert "127.0.0.1:2" in (await ended("--dev", str(tmp_path), "--address", "127.0.0.1:2")).err
    monkeypatch.setenv("POINTSMAN_DEV", str(tmp_path))
    assert "127.0.0.1:1" in (await ended()).err, "both from the environment: the address is the nearer word"
