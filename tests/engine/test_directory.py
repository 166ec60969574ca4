"""Who is calling: only a token proves it."""

from __future__ import annotations

import pytest

from router.engine.directory import Directory, token_id
from router.model.callers import Evidence
from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason
from router.model.topology import Secret, Tenant, Topology
from tests.support.builders import replace_tenants, tenant


def directory(*tenants: Tenant) -> Directory:
    return Directory(topology(*tenants))


def topology(*tenants: Tenant) -> Topology:
    return Topology({}, {one.name: one for one in tenants})


ACME = tenant("acme", tokens=(Secret("acme-1"), Secret("shared")))
GLOBEX = tenant("globex", tokens=(Secret("globex-1"), Secret("shared")))


def refused(found: Directory, token: str | None, claimed: str | None) -> RouterError:
    with pytest.raises(RouterError) as failed:
        admitted(found, token, claimed)
    return failed.value


def admitted(found: Directory, token: str | None, claimed: str | None) -> Tenant:
    return found.admit(Evidence(token_id(token) if token else None), claimed).caller


def test_a_token_proves_its_tenant() -> None:
    found = directory(ACME, GLOBEX)
    assert admitted(found, "acme-1", None) is ACME
    assert admitted(found, "acme-1", "acme") is ACME


@pytest.mark.parametrize("token", [None, "", "wrong", "acme-1 ", "ACME-1"])
def test_without_a_known_token_nobody_is_anyone(token: str | None) -> None:
    error = refused(directory(ACME), token, "acme")
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, RefuseReason.UNAUTHENTICATED)
    assert "acme" not in error.message


@pytest.mark.parametrize("claimed", ["globex", "no such tenant"])
def test_a_name_that_the_token_does_not_prove_is_denied_whether_it_exists_or_not(claimed: str) -> None:
    error = refused(directory(ACME, GLOBEX), "acme-1", claimed)
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, RefuseReason.TENANT_DENIED)
    assert error.message == f"this identity may not act for tenant {claimed!r}"


def test_a_shared_token_needs_a_name() -> None:
    found = directory(ACME, GLOBEX)
    error = refused(found, "shared", None)
    assert (error.code, error.numbers) == (Code.PERMISSION_DENIED, {"tenants": 2})
    assert "acme" not in error.message
    assert admitted(found, "shared", "globex") is GLOBEX


def test_a_new_topology_counts_at_once() -> None:
    found = directory(ACME)
    replace_tenants(found, topology(GLOBEX))
    assert refused(found, "acme-1", None).code is Code.UNAUTHENTICATED
    assert admitted(found, "shared", None) is GLOBEX
    assert found.get(ACME.name) is None
    assert list(found) == [GLOBEX]
