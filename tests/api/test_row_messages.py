"""A stream's messages: all rows in their order, no message too long that could be cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.row_messages import MAX_MESSAGE_BYTES, PIECE_BYTES, row_messages
from tests.api.fake_engine import FakeEncoder, rows_of

SCHEMA = types_pb2.ResultSchema(has_columns=True)


def messages_of(*texts: str) -> list[pb.StreamQueryResponse]:
    raw = [*row_messages(FakeEncoder(), rows_of(*texts), SCHEMA)]
    messages = [pb.StreamQueryResponse.FromString(one) for one in raw]
    for one, message in zip(raw, messages, strict=True):
        assert len(one) <= MAX_MESSAGE_BYTES or message.batch.row_count == 1
    return messages


@given(st.lists(st.integers(0, 400_000), max_size=8))
def test_all_rows_leave_in_order(sizes: list[int]) -> None:
    texts = [str(number) + "x" * size for number, size in enumerate(sizes)]
    messages = messages_of(*texts)
    assert [text for message in messages for text in message.batch.columns[0].texts] == texts
    assert [message.HasField("schema") for message in messages] == [True] + [False] * (len(messages) - 1)


def test_a_run_of_the_usual_length_is_one_message() -> None:
    assert len(messages_of(*["x" * 1000] * 96)) == 1


def test_a_long_run_is_cut_into_pieces_of_the_usual_length() -> None:
    sizes = [message.ByteSize() for message in messages_of(*["x" * 10_000] * 100)]
    assert len(sizes) > 10
    assert all(size <= PIECE_BYTES * 1.2 for size in sizes)


def test_rows_are_cut_again_when_the_long_ones_are_together() -> None:
    texts = ["x"] * 10_000 + ["y" * 200_000] * 4
    assert sum(message.batch.row_count for message in messages_of(*texts)) == len(texts)


def test_no_row_is_one_message() -> None:
    (message,) = messages_of()
    assert message.schema == SCHEMA
