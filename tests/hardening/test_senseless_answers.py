"""Answers that no sound server gives, one by one: they end a connection or count as nothing, and raise nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from psycopg.pq import DiagnosticField

from router.postgres import faults
from router.postgres.command_tags import MOST_ROWS, read_tag


@pytest.mark.parametrize("place", ["²", "9" * 5000, "-1", "", "1.5"])
def test_a_place_that_is_no_number_is_none(place: str) -> None:
    fields = {DiagnosticField.STATEMENT_POSITION: place.encode()}
    result: Any = SimpleNamespace(error_field=fields.get)
    assert faults.pg_error(result).position == 0


def test_more_rows_than_a_message_can_tell() -> None:
    result: Any = SimpleNamespace(command_status=b"SELECT 99999999999999999999", command_tuples=99999999999999999999)
    assert read_tag(result) == ("SELECT 99999999999999999999", MOST_ROWS)
