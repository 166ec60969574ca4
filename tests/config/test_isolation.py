"""Which tenants may share what: what PostgreSQL could not keep apart is refused when the configuration is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from router.config.loading import load_text
from router.config.problems import ConfigProblems
from router.model.topology import IsolationMode, Tenant

ENVIRON = {name: f"{name.lower()}-secret-1234" for name in ("ADMIN", "PW", "A", "B")}
STATEMENTS = {"one": "select 1"}


def tenant(token: str, **more: object) -> dict[str, object]:
    login = {"user": more.pop("user", f"{token.lower()}_app"), "password": "env:PW"}
    return {"cluster": "main", "database": token.lower(), "login": login, "tokens": [f"env:{token}"], **more}


def document(a: dict[str, object], b: dict[str, object]) -> str:
    cluster = {"control": {"user": "control"}, "endpoints": {"pg1": {"host": "one.example"}}}
    tenants = {"a": tenant("A", **a), "b": tenant("B", **b)}
    return yaml.safe_dump({"admin": {"tokens": ["env:ADMIN"]}, "clusters": {"main": cluster}, "tenants": tenants})


REGISTERED = {"isolation": "registered", "statements": STATEMENTS}
SCHEMA = {"isolation": "schema"}

GOOD = {
    "databases of their own": ({}, {}),
    "schemas in one database": ({**SCHEMA, "database": "one"}, {**SCHEMA, "database": "one"}),
    "a schema beside a registered tenant": (
        {**SCHEMA, "database": "one"}, {**REGISTERED, "database": "one"}),
    "one login, statements only": (
        {**REGISTERED, "database": "one", "user": "app"}, {**REGISTERED, "database": "one", "user": "app"}),
    "channels that are nobody else's": (
        {**SCHEMA, "database": "one", "channels": ["a_jobs"]}, {**SCHEMA, "database": "one", "channels": ["b_jobs"]}),
    "the same channel in two databases": ({"channels": ["jobs"]}, {"channels": ["jobs", "jobs"]}),
    "one login, a role each": (
        {**REGISTERED, "user": "app", "role": "a_rows"}, {**REGISTERED, "user": "app", "role": "b_rows"}),
}  # fmt: skip

BAD = {
    "one database for two": (
        {"database": "one"}, {"database": "one"},
        {"tenants.a.database", "tenants.b.database"}, "it is the tenant's alone"),
    "one database, only one knows": (
        {"database": "one"}, {**SCHEMA, "database": "one"}, {"tenants.a.database"}, "also used by tenant b"),
    "a registered tenant in another's database": (
        {"database": "one"}, {**REGISTERED, "database": "one"}, {"tenants.a.database"}, "also used by tenant b"),
    "one login, any SQL": (
        {"user": "app"}, {"user": "app"}, {"tenants.a.login.user", "tenants.b.login.user"}, "read each other's data"),
    "one login in schemas": (
        {**SCHEMA, "user": "app"}, {**SCHEMA, "user": "app"},
        {"tenants.a.login.user", "tenants.b.login.user"}, "isolation: registered on all of them"),
    "one login, one sends any SQL": (
        {"user": "app"}, {**REGISTERED, "user": "app"}, {"tenants.a.login.user"}, "read each other's data"),
    "a role that could be left": ({"role": "x"}, {}, {"tenants.a.role"}, "could be left by RESET ROLE"),
    "a list that would not hold": ({"statements": STATEMENTS}, {}, {"tenants.a.statements"}, "any SQL may run"),
    "registered without statements": (
        {"isolation": "registered"}, {}, {"tenants.a.statements"}, "at least one statement"),
    "a role that is the login": (
        {**REGISTERED, "role": "a_app"}, {}, {"tenants.a.role"}, "the login itself"),
    "a role that is another's login": (
        {**REGISTERED, "role": "b_app"}, {}, {"tenants.a.role"}, "the login of tenant b"),
    "the control role as a role": ({**REGISTERED, "role": "control"}, {}, {"tenants.a.role"}, "the control role"),
    "the control role as a login": ({"user": "control"}, {}, {"tenants.a.login.user"}, "the control role"),
    "the control database": ({"database": "postgres"}, {}, {"tenants.a.database"}, "the control database"),
    "a template": ({"database": "template1"}, {}, {"tenants.a.database"}, "copied into new databases"),
    "a mode that does not exist": ({"isolation": "rls"}, {}, {"tenants.a.isolation"}, "registered"),
    "a statement without a name": (
        {**REGISTERED, "statements": {"": "select 1"}}, {}, {"tenants.a.statements."}, "no usable name"),
    "a channel of two": (
        {**SCHEMA, "database": "one", "channels": ["a", "jobs"]}, {**SCHEMA, "database": "one", "channels": ["jobs"]},
        {"tenants.a.channels[1]", "tenants.b.channels[0]"}, "each would hear what is meant for the other"),
    "a channel whose name would be cut off": ({"channels": ["é" * 32]}, {}, {"tenants.a.channels[0]"}, "at most 63"),
    "a statement without text": (
        {**REGISTERED, "statements": {"x": ""}}, {}, {"tenants.a.statements.x"}, ""),
}  # fmt: skip


def load(a: dict[str, object], b: dict[str, object]) -> dict[str, Tenant]:
    topology = load_text(document(a, b), Path("x.yaml"), ENVIRON).topology
    return {str(name): tenant for name, tenant in topology.tenants.items()}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_kept_apart_is_taken(name: str):
    a, _ = GOOD[name]
    loaded = load(*GOOD[name])["a"]
    assert loaded.isolation is IsolationMode(a.get("isolation", "database"))
    assert loaded.statements == a.get("statements", {})
    assert loaded.channels == tuple(a.get("channels", ()))  # type: ignore[arg-type]
    assert loaded.role == a.get("role", "")


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_is_refused_with_the_reason(name: str):
    a, b, places, words = BAD[name]
    with pytest.raises(ConfigProblems) as caught:
        load(a, b)
    assert {problem.path for problem in caught.value.problems} == places
    assert all(words in problem.message for problem in caught.value.problems), caught.value.problems
