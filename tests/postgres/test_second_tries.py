"""What is prepared, which errors put it in doubt, and who is told when: without a server."""

from __future__ import annotations

import pytest

from router.model.observation import PgError
from router.model.request import Statement
from router.model.result import StatementResult
from router.ports import Unit
from router.postgres.prepared import MAX_TEXT, MAX_TEXTS, PreparedStatements, is_control
from router.postgres.second_tries import SecondTries, Staleness, is_open_transaction, staleness

NAME = b"pointsman_1_"


def statement(sql: str | bytes, *oids: int) -> Statement:
    return Statement(sql.encode() if isinstance(sql, str) else sql, oids=oids)


def use(prepared: PreparedStatements, one: Statement) -> bytes | None:
    """As a lane does: the name that it runs under."""
    plan = prepared.ready(one) or prepared.add(one)
    return plan.name if plan is not None else None


# --- prepared statements -------------------------------------------------------------------------------------------


def test_the_second_use_prepares_and_later_ones_reuse() -> None:
    prepared = PreparedStatements(4)
    assert use(prepared, statement("select 1")) is None
    assert use(prepared, statement("select 1")) == b"pointsman_1_"
    assert use(prepared, statement("select 1")) == b"pointsman_1_"
    assert use(prepared, statement("select 1", 23)) is None, "other parameter types make another statement"
    assert prepared.closing == []


def test_the_least_recently_used_goes_first_and_is_closed() -> None:
    prepared = PreparedStatements(2)
    first, second, third = (statement(f"select {n}") for n in (1, 2, 3))
    for one in (first, first, second, second, first, third, third):
        use(prepared, one)
    assert prepared.closing == [b"pointsman_2_"]
    assert len(prepared) == 2
    assert use(prepared, first) == b"pointsman_1_"


def test_capacity_0_prepares_nothing() -> None:
    prepared = PreparedStatements(0)
    assert [use(prepared, statement("select 1")) for _ in range(3)] == [None, None, None]


def test_a_forgotten_text_gets_a_new_name_at_its_next_use() -> None:
    prepared = PreparedStatements(4)
    one = statement("select 1")
    use(prepared, one)
    use(prepared, one)
    prepared.forget(b"pointsman_1_", exists=True)
    prepared.forget(b"pointsman_1_", exists=True)
    assert prepared.closing == [b"pointsman_1_"], "once"
    assert use(prepared, one) == b"pointsman_2_"
    prepared.forget(b"pointsman_2_", exists=False)
    assert prepared.closing == [b"pointsman_1_"], "the server does not have it"
    prepared.forget(b"pointsman_1_", exists=True)
    assert len(prepared) == 0, "what is not ours is not touched"


def test_the_bytes_of_all_texts_are_bounded() -> None:
    prepared = PreparedStatements(1000)
    length = MAX_TEXT
    for n in range(2 * MAX_TEXTS // length):
        one = statement(b"%d" % n + b" " * (length - len(b"%d" % n)))
        use(prepared, one)
        assert use(prepared, one) is not None
    assert len(prepared) == MAX_TEXTS // length
    assert len(prepared.closing) == MAX_TEXTS // length
    longer = statement(b" " * (length + 1))
    assert [use(prepared, longer) for _ in range(3)] == [None, None, None]


@pytest.mark.parametrize("sql", ["BEGIN", " begin read only", ";COMMIT", "rollback to x", "savepoint a", "start  x"])
def test_transaction_control_is_never_prepared(sql: str) -> None:
    assert is_control(sql.encode())
    prepared = PreparedStatements(4)
    assert [use(prepared, statement(sql)) for _ in range(3)] == [None, None, None]


@pytest.mark.parametrize("sql", ["select 'begin'", "beginning", "with x as (select 1) select 1", "startle"])
def test_other_texts_are(sql: str) -> None:
    assert not is_control(sql.encode())


# --- staleness -----------------------------------------------------------------------------------------------------

GONE = PgError(sqlstate="26000", message='prepared statement "pointsman_1_" does not exist', routine="Fetch")
TAKEN = PgError(sqlstate="42P05", message="l'instruction préparée « pointsman_1_ » existe déjà")
OTHERS = PgError(sqlstate="26000", message='prepared statement "theirs" does not exist')
CHANGED = PgError(sqlstate="0A000", message="cached plan must not change ...", routine="RevalidateCachedQuery")
UNSUPPORTED = PgError(sqlstate="0A000", message="no such feature", routine="transformX")
INSIDE = PgError(sqlstate="0A000", routine="RevalidateCachedQuery", context="PL/pgSQL function f() line 1")
ANALYSIS = PgError(sqlstate="42883", message="operator does not exist: text = integer", position=20)
RUNNING = PgError(sqlstate="42501", message="permission denied")
PARAMETER = PgError(sqlstate="22P02", context="unnamed portal parameter $1 = '...'")
DIVISION = PgError(sqlstate="22012", message="division by zero")
FUNCTION = PgError(sqlstate="22P02", context="SQL statement \"select $1\"\nPL/pgSQL function f() line 3")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (GONE, Staleness.CERTAIN),
        (TAKEN, Staleness.CERTAIN),
        (OTHERS, Staleness.NONE),
        (CHANGED, Staleness.CERTAIN),
        (UNSUPPORTED, Staleness.NONE),
        (INSIDE, Staleness.NONE),
        (ANALYSIS, Staleness.POSSIBLE),
        (RUNNING, Staleness.NONE),
        (PARAMETER, Staleness.POSSIBLE),
        (DIVISION, Staleness.NONE),
        (FUNCTION, Staleness.NONE),
        (None, Staleness.NONE),
    ],
)
def test_which_errors_put_a_plan_in_doubt(error: PgError | None, found: Staleness) -> None:
    assert staleness(error, NAME, preparing=False) is found


def test_an_error_of_the_text_itself_is_no_doubt() -> None:
    assert staleness(ANALYSIS, NAME, preparing=True) is Staleness.NONE
    assert staleness(TAKEN, NAME, preparing=True) is Staleness.CERTAIN


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["BEGIN"], True),
        (["BEGIN", "INSERT 0 1"], True),
        ([], False),
        (["INSERT 0 1"], False),
        (["BEGIN", "COMMIT"], False),
        (["BEGIN", "ROLLBACK", "SELECT 1"], False),
    ],
)
def test_what_rollback_undoes_whole(tags: list[str], expected: bool) -> None:
    assert is_open_transaction([StatementResult(None, tag) for tag in tags]) is expected


# --- second tries --------------------------------------------------------------------------------------------------


def unit() -> Unit:
    return Unit((statement("select 1"),), lambda _: None)


def test_answers_wait_for_those_in_front_of_them() -> None:
    tries = SecondTries()
    a, b, c, d = (unit() for _ in range(4))
    tries.begin(a, NAME)
    assert tries.settle(b) == []
    tries.begin(c, b"other")
    assert tries.settle(d) == []
    assert (len(tries), tries.waiting, a in tries, b in tries) == (4, 2, True, False)
    assert tries.name(c) == b"other"
    assert tries.settle(c) == []
    assert tries.settle(a) == [a, b, c, d]
    assert not tries


def test_the_end_tells_all_in_order() -> None:
    tries = SecondTries()
    a, b, c, d = (unit() for _ in range(4))
    tries.begin(a, NAME)
    tries.settle(b)
    assert tries.end([c, a, d]) == [a, b, c, d]
    assert not tries
    assert tries.end([c]) == [c]
