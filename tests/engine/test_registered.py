"""Tenants that run registered statements only: resolved by name or text, everything else refused, nothing changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.registered import resolve, resolve_steps, resolves, texts_of
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, TenantName
from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Method, Request, Statement
from router.model.topology import IsolationMode, Login, Tenant

SQL = {"one": "select $1", "other": "update t set a = $1"}
TENANT = Tenant(
    TenantName("a"), ClusterName("main"), "a", Login("a"), isolation=IsolationMode.REGISTERED, statements=SQL
)  # fmt: skip
TEXTS = texts_of(TENANT) or {}


def request(*texts: str) -> Request:
    steps = tuple(BatchStep(Statement(text.encode(), (b"1",))) for text in texts)
    return Request(Method.EXECUTE_BATCH, steps, 1.0)


def test_other_tenants_may_send_anything():
    assert texts_of(Tenant(TenantName("a"), ClusterName("main"), "a", Login("a"))) is None


def test_a_name_stands_for_its_text_and_keeps_the_parameters():
    assert resolve(TEXTS, Statement(b"@one", (b"7",), (1,), (23,))) == Statement(b"select $1", (b"7",), (1,), (23,))


def test_exactly_the_text_is_the_statement_itself():
    statement = Statement(b"select $1", (b"7",))
    assert resolve(TEXTS, statement) is statement


@pytest.mark.parametrize(
    "text",
    ["@two", "@", "one", "@one ", "select  $1", "select $1;", "SELECT $1", "select $1 -- x", "@one; reset role", ""],
)
def test_what_is_only_like_it_is_refused(text: str):
    with pytest.raises(RouterError) as caught:
        resolve(TEXTS, Statement(text.encode()))
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, RefuseReason.NOT_REGISTERED)
    assert not any(sql in str(caught.value) for sql in SQL.values())


@given(st.binary())
def test_whatever_is_sent_what_runs_is_the_operators(text: bytes):
    try:
        ran = resolve(TEXTS, Statement(text)).sql
    except RouterError:
        return
    assert ran.decode() in SQL.values()


def test_one_step_that_is_not_registered_refuses_all_and_changes_nothing():
    whole, broken = request("@one", "select $1", "@other"), request("@one", "select 2")
    before = broken.steps
    assert not resolves(TEXTS, broken)
    assert broken.steps is before
    resolve_steps(TEXTS, whole)
    assert [step.statement.sql for step in whole.steps] == [b"select $1", b"select $1", b"update t set a = $1"]
