"""`pointsman outcome` over a scripted router: what it tells, and what it teaches."""

from __future__ import annotations

import asyncio
import json

import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2 as types

from tests.cli.conftest import Command, Ended
from tests.sdk.fake_router import FakeRouter


async def outcome(command: Command, fake: FakeRouter, *arguments: str) -> Ended:
    given = ("--address", fake.address, "--tenant", "acme", "--token", "t")
    return await asyncio.to_thread(command, "outcome", *arguments, *given)


async def test_a_write_that_was_done(command: Command, fake: FakeRouter):
    fake.outcome = pb.GetOutcomeResponse(
        outcome=pb.WRITE_OUTCOME_COMMITTED, created_at_us=1_000_000, command_tags=["INSERT 0 1", ""],
        receipt=types.Receipt(endpoint="one"),
    )  # fmt: skip
    ended = await outcome(command, fake, "order-17")
    assert ended.code == 0
    first, meaning = ended.out.splitlines()
    assert first == "committed · began 1970-01-01 00:00:01 UTC · INSERT 0 1, skipped · asked one"
    assert meaning.startswith("it was done")
    ended = await outcome(command, fake, "order-17", "--json")
    told = json.loads(ended.out)
    assert (told["outcome"], told["began"]) == ("committed", "1970-01-01T00:00:01+00:00")
    assert (told["command_tags"], told["endpoint"]) == (["INSERT 0 1", ""], "one")
    assert [one.idempotency_key for one in fake.outcome_requests] == ["order-17"] * 2


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (pb.WRITE_OUTCOME_NOT_FOUND, ("not_found", "Send it again with the same key")),
        (pb.WRITE_OUTCOME_RUNNING, ("running", "ask again")),
        (pb.WRITE_OUTCOME_UNKNOWN, ("unknown", "look at the data")),
    ],
)
async def test_other_outcomes(command: Command, fake: FakeRouter, found: pb.WriteOutcome.ValueType, words: tuple[str]):
    fake.outcome = pb.GetOutcomeResponse(outcome=found)
    ended = await outcome(command, fake, "--request-id", "r" * 20)
    assert ended.code == 0
    for word in words:
        assert word in ended.out
    assert fake.outcome_requests[0].request_id == "r" * 20


@pytest.mark.parametrize("arguments", [(), ("key", "--request-id", "r" * 20)])
async def test_one_name_is_needed(command: Command, fake: FakeRouter, arguments: tuple[str, ...]):
    ended = await outcome(command, fake, *arguments)
    assert (ended.code, "such as: pointsman outcome" in ended.err) == (2, True)


def test_its_help_teaches(command: Command):
    ended = command("outcome", "--help")
    assert ended.code == 0
    for word in ("idempotency key", "not_found", "same key", "Such as"):
        assert word in ended.out
