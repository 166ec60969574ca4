"""The prompt of `pointsman sql`, over a scripted router."""

from __future__ import annotations

import asyncio
import io

import grpc
import pytest
from pointsman.v1 import errors_pb2
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2 as types
from rich.console import Console

from router.console.sql_prompt import SqlPrompt, receipt_line
from router.console.sql_session import Outcome, SqlSession
from router.console.targets import Target
from tests.cli.conftest import failing
from tests.sdk.fake_router import FakeRouter, one_row, result_set, status


class Person:
    """Types lines; notes the prompts it was asked with."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


async def prompted(fake: FakeRouter, *lines: str | BaseException) -> tuple[str, list[str]]:
    """What a session showed, and its prompts."""
    out, person = io.StringIO(), Person(*lines)

    def session() -> None:
        with SqlSession(Target(fake.address, "t", "acme")) as made:
            SqlPrompt(made, Console(file=out, width=120), person).run()

    await asyncio.to_thread(session)
    return out.getvalue(), person.prompts


class TestPrompt:
    async def test_a_statement_may_take_several_lines(self, fake: FakeRouter, capsys: pytest.CaptureFixture[str]):
        shown, prompts = await prompted(fake, "select", "  1", ";")
        assert prompts == ["acme=> ", "acme-> ", "acme-> ", "acme=> "]
        assert "│ 1 │" in shown
        assert len(fake.calls) == 1

    async def test_an_error_is_shown_and_the_prompt_goes_on(self, fake: FakeRouter):
        fake.on_call = failing(grpc.StatusCode.INVALID_ARGUMENT, "syntax error", reason="BAD_SQL", executed="no")
        shown, prompts = await prompted(fake, "selec 1;", "\\q")
        assert "syntax error (bad_sql)" in shown
        assert len(prompts) == 2

    async def test_an_interrupt_forgets_what_was_begun(self, fake: FakeRouter):
        _, prompts = await prompted(fake, "select (", KeyboardInterrupt(), "\\q")
        assert prompts == ["acme=> ", "acme-> ", "acme=> "]
        assert fake.calls == []

    async def test_commands(self, fake: FakeRouter):
        shown, _ = await prompted(fake, "\\?", "\\timing", "\\x", "\\read any", "\\nonsense", "select 1;", "\\q")
        assert "BEGIN ... COMMIT runs a transaction" in shown
        assert "timing is off" in shown
        assert "reads go to any" in shown
        assert "unknown command \\nonsense" in shown
        assert "─ row 1" in shown
        assert "ms in all" not in shown
        assert fake.calls[0].query.options.read != types.READ_PREFERENCE_UNSPECIFIED

    @pytest.mark.parametrize("word", ["exit", " QUIT; ", "\\q"])
    async def test_the_words_that_end_it(self, fake: FakeRouter, word: str):
        _, prompts = await prompted(fake, word, "select 1;")
        assert len(prompts) == 1

    async def test_a_word_that_ends_it_ends_no_statement(self, fake: FakeRouter):
        _, prompts = await prompted(fake, "select 1 as", "exit", ";", "\\q")
        assert len(prompts) == 4
        assert len(fake.calls) == 1

    async def test_commands_work_within_a_statement_and_its_first_time_says_how_to_leave_it(self, fake: FakeRouter):
        shown, prompts = await prompted(fake, "select", "\\timing", "\\r", "select 2", "\\q")
        assert shown.count("\\r or Ctrl-C drops what was begun, \\q leaves") == 1
        assert "timing is off" in shown
        assert prompts == ["acme=> ", "acme-> ", "acme-> ", "acme=> ", "acme-> "]
        assert fake.calls == []

    async def test_a_backslash_within_quotes_is_no_command(self, fake: FakeRouter):
        _, prompts = await prompted(fake, "select '", "\\q", "';", "\\q")
        assert len(prompts) == 4
        assert len(fake.calls) == 1

    async def test_describing_a_table_that_is_not_there(self, fake: FakeRouter):
        async def nothing(call: pb.MultiplexCall) -> pb.MultiplexReply:
            return pb.MultiplexReply(query=pb.QueryResponse(result=result_set(rows=())))

        fake.on_call = nothing
        shown, _ = await prompted(fake, "\\d nowhere")
        assert "there is no table or view nowhere" in shown

    async def test_a_failed_transaction_shows_in_the_prompt(self, fake: FakeRouter):
        async def answer(message: tx_pb.TransactRequest) -> tx_pb.TransactResponse:
            return tx_pb.TransactResponse(
                tag=message.tag,
                failed=status(
                    grpc.StatusCode.INVALID_ARGUMENT, "no", reason="BAD_SQL",
                    pg=errors_pb2.PgErrorDetail(sqlstate="42601"), executed="rolled_back",
                )
            )  # fmt: skip

        fake.on_transact = answer
        _, prompts = await prompted(fake, "begin;", "selec 1;", "\\q")
        assert prompts == ["acme=> ", "acme*=> ", "acme=!> "]

    @pytest.mark.parametrize(
        ("lines", "words"),
        [
            (("begin;", "begin;"), "already in a transaction"),
            (("begin;", "savepoint a;"), "there are no savepoints here"),
            (("set work_mem = '1MB';",), "SET works inside BEGIN … COMMIT only"),
            (("commit;",), "there is no transaction"),
        ],
    )
    async def test_what_has_no_place_is_told_in_words_of_sql(
        self, fake: FakeRouter, lines: tuple[str, ...], words: str
    ):
        shown, prompts = await prompted(fake, *lines, "\\q")
        assert words in shown
        assert len(prompts) == len(lines) + 1
        assert fake.calls == []

    async def test_tables_are_listed(self, fake: FakeRouter):
        fake.on_call = one_row
        shown, _ = await prompted(fake, "\\d")
        assert "1 row" in shown


RECEIPT_FIELDS = {
    "request_id": "r", "token": b"", "endpoint": "pg2", "role": "replica", "topology": 1, "attempts": 2,
    "replayed": False, "queued_us": 0, "held_us": 2_000_000, "executed_us": 400, "route_reason": "balanced",
}  # fmt: skip


def test_the_receipt_line_tells_what_a_failover_cost():
    from pointsman import Receipt

    outcome = Outcome(("n",), [(1,)], "SELECT 1", 1, Receipt(**RECEIPT_FIELDS), (), 2.0019)
    assert receipt_line(outcome) == (
        "1 row · pg2 (replica) · 0.4 ms in PostgreSQL, 2001.9 ms in all · 2 attempts · held 2000 ms by a failover"
    )
    assert receipt_line(outcome, timing=False).startswith("1 row · pg2 (replica) · 2 attempts")
