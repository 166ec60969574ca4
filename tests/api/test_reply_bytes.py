"""The quick way of an answer against the message's way: the same message, whatever the result and the receipt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pointsman.replies import token_of
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2
from pointsman.wire import varint

from router.api.reply_bytes import ReplyBytes
from router.api.results import Limits, ResultWriter, WhenTooLarge, write_receipt
from router.encoding.typed_columns import TypedColumns
from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import RouteReason
from router.model.result import Durability, PgNotice, Receipt, StatementResult
from router.model.stored_cells import StoredCells
from router.model.topology import Role
from tests.api.fake_engine import FakeCells

ENCODER = TypedColumns()
REPLIES = ReplyBytes(ENCODER)
ALL = 3 << 20

seconds = st.one_of(st.just(0.0), st.floats(-1e-9, 5000.0))
receipts = st.builds(
    Receipt,
    request_id=st.text(max_size=64),
    endpoint=st.text(max_size=10).map(EndpointName),
    role=st.sampled_from(Role),
    topology=st.integers(0, 1 << 40).map(TopologyNumber),
    attempts=st.integers(1, 500),
    queued_s=seconds,
    held_s=seconds,
    executed_s=seconds,
    route_reason=st.sampled_from(RouteReason),
    token=st.binary(max_size=40),
    replayed=st.booleans(),
    hedged=st.booleans(),
    durability=st.sampled_from(Durability),
)
cells = st.integers(0, 4).flatmap(
    lambda width: st.builds(
        FakeCells,
        st.lists(st.text("abc", min_size=1, max_size=5), min_size=width, max_size=width),
        st.lists(
            st.lists(st.none() | st.text(max_size=200).map(str.encode), min_size=width, max_size=width), max_size=5
        ),
    )
)


def by_messages(result: StatementResult, receipt: Receipt) -> pb.QueryResponse:
    response = pb.QueryResponse()
    ResultWriter(ENCODER, Limits(0, ALL), WhenTooLarge.REFUSE).write(result, response.result)
    write_receipt(receipt, response.receipt)
    return response


@given(cells, receipts, st.text(max_size=20), st.integers(0, 1 << 40))
def test_the_quick_way_says_the_same(found: FakeCells, receipt: Receipt, tag: str, rows: int) -> None:
    result = StatementResult(found, tag, rows)
    assert (plain := REPLIES.response(StatementResult(None, tag, rows), receipt, ALL)) is not None
    assert pb.ExecuteResponse.FromString(plain).result == types_pb2.ResultSet(command_tag=tag, rows_affected=rows)
    quick = REPLIES.response(result, receipt, ALL)
    assert quick is not None
    assert pb.QueryResponse.FromString(quick) == by_messages(result, receipt)
    assert token_of(REPLIES.receipt(receipt)) == receipt.token


@given(st.lists(st.tuples(cells | st.none(), st.text(max_size=20), st.booleans(), st.booleans()), max_size=4), receipts)
def test_a_batch_says_the_same_in_both_ways(
    drawn: list[tuple[FakeCells | None, str, bool, bool]], receipt: Receipt
) -> None:
    steps = [(None if skipped else StatementResult(found, tag, 1), rows) for found, tag, rows, skipped in drawn]
    expected = pb.ExecuteBatchResponse()
    writer = ResultWriter(ENCODER, Limits(0, ALL), WhenTooLarge.TRUNCATE)
    for result, rows in steps:
        message = expected.steps.add()
        if result is None:
            message.skipped = True
        else:
            writer.write(result, message.result, rows=rows)
    write_receipt(receipt, expected.receipt)
    quick = REPLIES.batch_response(steps, receipt, ALL)
    assert quick is not None
    assert pb.ExecuteBatchResponse.FromString(quick) == expected


def test_the_steps_of_a_batch_share_its_limit() -> None:
    step = StatementResult(FakeCells(["a"], [[b"x" * 50]]), "SELECT 1", 1)
    assert REPLIES.batch_response([(step, True)], Receipt(), 120) is not None
    assert REPLIES.batch_response([(step, True), (step, True)], Receipt(), 120) is None
    assert REPLIES.batch_response([(step, True), (step, False)], Receipt(), 120) is not None


def test_what_is_not_small_goes_the_other_way() -> None:
    one = FakeCells(["a"], [[b"x"]])
    kept = StatementResult(StoredCells((), ()), "SELECT 0", 0)
    assert REPLIES.response(kept, Receipt(), ALL) is None, "it may say that rows were left out"
    noticed = StatementResult(one, "SELECT 1", 1, (PgNotice("NOTICE", "00000", "hello"),))
    assert REPLIES.response(noticed, Receipt(), ALL) is None
    many = FakeCells(["a"], [[b"x"]] * 101)
    assert REPLIES.response(StatementResult(many, "SELECT 101", 101), Receipt(), ALL) is None
    assert REPLIES.response(StatementResult(one, "SELECT 1", 1), Receipt(), 3) is None, "the tenant's limit"


def test_a_topology_that_moved_on_is_not_answered_from_memory() -> None:
    one = StatementResult(FakeCells(["a"], [[b"x"]]), "SELECT 1", 1)
    for role in (Role.PRIMARY, Role.REPLICA, Role.PRIMARY):
        for number in (1, 2):
            receipt = Receipt(endpoint=EndpointName("a"), role=role, topology=TopologyNumber(number))
            quick = REPLIES.response(one, receipt, ALL)
            assert quick is not None
            assert pb.QueryResponse.FromString(quick) == by_messages(one, receipt)


@given(st.integers(0, (1 << 64) - 1))
def test_varints_are_protobufs(number: int) -> None:
    message = pb.MultiplexReply.FromString(b"\x08" + varint(number))
    assert message.id == number
