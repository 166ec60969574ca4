"""All cells of a result as Python values in one call into psycopg's C code, half the price of a call per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types.bool import BoolLoader
from psycopg.types.numeric import FloatLoader, IntLoader
from psycopg.types.string import ByteaBinaryLoader, ByteaLoader, TextLoader

from router.model.result import Cells, Row

if TYPE_CHECKING:
    import psycopg
    from psycopg.pq.abc import PGresult

_ANY = 0
"""The entry of an AdaptersMap for types that have none of their own."""
_LOADERS: dict[int, type[Any]] = {
    _ANY: TextLoader,
    16: BoolLoader,
    17: ByteaLoader,
    20: IntLoader,
    21: IntLoader,
    23: IntLoader,
    26: IntLoader,
    700: FloatLoader,
    701: FloatLoader,
}
"""By type OID (src/include/catalog/pg_type.dat), for the text format."""


class _Context:
    """What a Transformer wants to know: our loaders only, and UTF-8 as without a connection."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap()
        for oid, loader in _LOADERS.items():
            self.adapters.register_loader(oid, loader)
        self.adapters.register_loader(_ANY, ByteaBinaryLoader)

    @property
    def connection(self) -> psycopg.Connection[object] | None:
        return None


class PsycopgRowLoader:
    """model.result.RowLoader for cells that are psycopg's PGresult."""

    __slots__ = ("_transformer",)

    def __init__(self) -> None:
        self._transformer = Transformer(_Context())

    def load(self, cells: Cells) -> list[Row]:
        """model.result.RowLoader.load."""
        transformer = self._transformer
        transformer.set_pgresult(cast("PGresult", cells))
        try:
            return transformer.load_rows(0, cells.ntuples, tuple)
        finally:
            transformer.set_pgresult(None)  # or it would keep the rows until the next result
