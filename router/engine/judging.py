"""What the inspector's word on each statement means for a request, or for an interactive transaction.

Here: refusals by the kind of connection, and what the whole leaves behind. Not here: what a statement is (sql/).
"""

from __future__ import annotations

from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.request import Access, Escape, Method, Request, Residue, StatementTraits, TransactionMode
from router.ports import StatementInspector

_MAKE_OBJECTS = frozenset({"ddl", "unknown"})
_DRAWS_NOTHING = frozenset({"select", "show", "set", "explain", "transaction"})
_DRAWING_WORDS = (b"nextval", b"setval", b"insert", b"update", b"merge", b"delete")


def judge_steps(inspector: StatementInspector, request: Request) -> None:
    """Note on a request what its statements are; RouterError when one may not run so."""
    reads, mode = request.access is Access.READ_ONLY, request.mode
    path_to_temporary = False
    for step in request.steps:
        traits = inspector.inspect(step.statement.sql)
        refusal = traits.refuse_as_read if reads else traits.refuse
        if refusal is not None:
            if not traits.reads_sequences or request.method is not Method.EXECUTE_BATCH:
                raise refused(refusal, traits)
            request.own_sequences = True
        if traits.escape > request.escape:
            check_stays_read_only(traits, mode)
            request.escape = traits.escape
        if traits.residue > request.residue:
            request.residue = traits.residue
        if traits.commits_inside:
            request.commits_inside = True
        if traits.path_to_temporary:
            path_to_temporary = True
        elif path_to_temporary and traits.kind in _MAKE_OBJECTS:
            request.residue = max(request.residue, Residue.DISCARD)


def refused(reason: RefuseReason, traits: StatementTraits) -> RouterError:
    """The error for a statement that may not run where it was sent."""
    no_read = reason is RefuseReason.WRITE_ON_READ_METHOD
    return RouterError(Code.FAILED_PRECONDITION if no_read else Code.INVALID_ARGUMENT, reason, traits.message)


def check_stays_read_only(traits: StatementTraits, mode: TransactionMode | None) -> None:
    """RouterError for what would make a read-only transaction writable: it is repeated, and told to be undone."""
    if traits.escape is Escape.CERTAIN and mode is not None and mode.read_only:
        raise RouterError(
            Code.INVALID_ARGUMENT,
            RefuseReason.TRANSACTION_CONTROL,
            "the transaction was begun read-only, and stays so: give ExecuteBatch or Transact a mode that is not",
        )


class SessionTraces:
    """What the statements of one interactive transaction have done to their session so far."""

    __slots__ = ("_drew", "_path_to_temporary")

    def __init__(self) -> None:
        self._drew = False
        """A statement of its own may have drawn from a sequence."""
        self._path_to_temporary = False

    def take(self, traits: StatementTraits, sql: bytes) -> tuple[Residue, bool]:
        """What the next statement leaves, and whether what others drew from sequences is forgotten in front of it."""
        forgets = traits.reads_sequences and not self._drew
        self._drew |= forgets or _may_draw(traits, sql)
        makes = self._path_to_temporary and traits.kind in _MAKE_OBJECTS
        self._path_to_temporary |= traits.path_to_temporary
        return max(traits.residue, Residue.DISCARD) if makes else traits.residue, forgets


def _may_draw(traits: StatementTraits, sql: bytes) -> bool:
    """Whether lastval may be of its making from now on. In doubt yes: what is its own is never forgotten."""
    text = sql.lower()
    return traits.kind not in _DRAWS_NOTHING or bool(traits.residue) or any(word in text for word in _DRAWING_WORDS)
