"""F3 edge: results on their way to the caller, from PostgreSQL's cells to messages.

Here: encoders of result tables. Not here: limits on answers, receipts, errors (api). May import: ports, model, and the
generated messages (pointsman.v1).
To add one: a file with a class that offers encode_schema, encode_batch and estimate_bytes, a member of Encoding, a
line in ENCODERS; tests/encoding then runs its contract over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique

from router.encoding.typed_columns import TypedColumns

__all__ = ["ENCODERS", "Encoding", "TypedColumns"]


@unique
class Encoding(Enum):
    """How a result table travels."""

    TYPED_COLUMNS = "typed_columns"


ENCODERS: Mapping[Encoding, type[TypedColumns]] = {Encoding.TYPED_COLUMNS: TypedColumns}
"""Makes an encoder, with a RowLoader where there is one; it belongs to one event loop."""
