"""The stage that the escapes and the residues are played on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolation.stage import Stage, database, rows, schema, stage, taken


@pytest.fixture(scope="session")
def played() -> Iterator[Stage]:
    """Two tenants of each isolation mode: the first attacks, the second must not notice."""
    own, halves = (database("da"), database("db")), (schema("sa"), schema("sb"))
    with stage(*own, *halves, rows("ra"), rows("rb"), taken("ta"), taken("tb")) as ready:
        yield ready
