"""Who uses what: as often as a tenant stands in its own lists, it uses each thing once."""

from __future__ import annotations

from router.config.caller_sections import token_id
from router.config.tenant_index import TenantIndex
from router.model.callers import CallerGrant, CallerRole
from router.model.identity import EndpointName
from router.model.topology import IsolationMode, Secret, Tenant
from tests.support.builders import tenant

TOKEN = Secret("one-token")


def greedy(name: str) -> Tenant:
    """With each of its lists holding the same thing twice."""
    return tenant(
        name,
        tokens=(TOKEN, TOKEN),
        callers=(CallerGrant(token_id(TOKEN.value), CallerRole.READER),) * 2,
        isolation=IsolationMode.REGISTERED,
        role=name,
        channels=("jobs", "jobs"),
        weights={EndpointName("a"): 1},
    )


def test_what_stands_twice_is_known_once_and_forgotten_at_once() -> None:
    index = TenantIndex()
    index.add(greedy("a"))
    section = {"cluster": "main", "database": "a", "channels": ["jobs", "jobs"]}
    assert index.neighbours({"new": section}) == {"a"}
    assert index.owner(token_id(TOKEN.value)) == "a"
    index.drop(greedy("a"))
    assert index.neighbours({"new": section}) == set()
    assert index.owner(token_id(TOKEN.value)) is None


def test_what_is_not_there_can_be_dropped() -> None:
    index = TenantIndex()
    index.drop(greedy("a"))
    index.add(greedy("a"))
    index.drop(greedy("a"))
    index.drop(greedy("a"))
    assert index.neighbours({"new": {"cluster": "main", "database": "a"}}) == set()


def test_what_another_one_has_taken_over_is_not_dropped_with_its_former_owner() -> None:
    index = TenantIndex()
    index.add(greedy("a"))
    index.add(greedy("b"))
    index.drop(greedy("a"))
    assert index.owner(token_id(TOKEN.value)) == "b"
