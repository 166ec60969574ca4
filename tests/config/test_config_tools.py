"""What is made from the schema: JSON Schema, the reference, the sample; and differences and the effective form."""

import dataclasses
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

from router.config.differences import diff, effect_of
from router.config.json_schema import names_at, resolve, schema
from router.config.loading import load_text
from router.config.reference import END, START, MarkersMissing, fill, reference
from router.config.sample import sample
from router.config.showing import show
from router.model import policy
from router.model.topology import IsolationMode, Login
from router.model.views import ConfigEffect
from tests.config.test_config_loading import ENVIRON, GOOD, load_good
from tests.support.certificates import Authority

ROOT = Path(__file__).parents[2]
POLICIES = [value for value in vars(policy).values() if dataclasses.is_dataclass(value)]


def changed(old: str, new: str) -> tuple[str, ...]:
    assert GOOD.count(old) == 1
    return tuple(map(str, diff(load_good(), load_good(GOOD.replace(old, new)))))


def test_the_schema_is_valid_and_takes_the_good_file():
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(yaml.safe_load(GOOD), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(GOOD), "clustres": {}}, schema())


def test_the_schema_is_json():
    assert json.loads(json.dumps(schema())) == schema()


@pytest.mark.parametrize("section", list(schema()["$defs"]))
def test_every_field_is_described(section: str):
    for name, part in schema()["$defs"][section].get("properties", {}).items():
        assert resolve(part).get("description"), f"{section}.{name} has no docstring"


def test_names_at_a_place():
    assert "max_size" in names_at(("tenants", "any", "pool"))
    assert names_at(("tenants",)) == ()
    assert names_at(("nowhere", "x")) == ()


@pytest.mark.parametrize("owner", POLICIES, ids=lambda owner: owner.__name__)
def test_every_tunable_is_in_sample_and_reference(owner: type):
    for part in dataclasses.fields(owner):
        assert f"{part.name}:" in sample()
        assert f"`{part.name}`" in reference() or f".{part.name}`" in reference()


def test_the_committed_sample_is_fresh():
    fresh = "run: pointsman config sample --write deploy/pointsman.yaml"
    assert (ROOT / "deploy" / "pointsman.yaml").read_text() == sample(), fresh


def test_the_sample_loads_as_it_is():
    environ = {
        name: name for name in ("POINTSMAN_ADMIN_TOKEN", "POINTSMAN_CONTROL_PASSWORD", "ACME_PASSWORD", "ACME_TOKEN")
    }
    config = load_text(sample(), Path("x.yaml"), environ)
    assert [endpoint.name for endpoint in config.topology.clusters["main"].endpoints] == ["pg1", "pg2", "pg3"]


def test_the_sample_with_everything_commented_in_keeps_the_schema():
    everything = "\n".join(
        line.replace("#", "", 1) if line.lstrip().startswith("#") and not line.lstrip().startswith("# ") else line
        for line in sample().splitlines()
    )
    jsonschema.validate(yaml.safe_load(everything), schema())


def test_the_committed_reference_is_fresh():
    text = (ROOT / "deploy" / "CONFIGURATION.md").read_text()
    assert fill(text) == text, "run: pointsman config reference --write deploy/CONFIGURATION.md"


def test_the_readmes_example_is_a_configuration(tmp_path: Path):
    section = (ROOT / "README.md").read_text().partition("## Configuration by example")[2]
    example = section.partition("```yaml\n")[2].partition("```")[0]
    names = ("POINTSMAN_ADMIN_TOKEN", "POINTSMAN_CONTROL_PASSWORD", "ACME_PASSWORD", "ACME_TOKEN")
    Authority().issue(dns=["router.example.net"]).write(tmp_path / "callers.pem", tmp_path / "callers.key")
    (tmp_path / "ca.pem").write_bytes((tmp_path / "callers.pem").read_bytes())
    config = load_text(example, tmp_path / "x.yaml", {name: name for name in names})
    assert config.topology.tenants["acme"].pool.floor == 4


def test_the_reference_fills_its_place_and_nothing_else():
    text = f"before\n{START}\nold\n{END}\nafter\n"
    filled = fill(text)
    assert filled.startswith(f"before\n{START}\n## `server`")
    assert filled.endswith(f"{END}\nafter\n")
    assert fill(filled) == filled
    with pytest.raises(MarkersMissing):
        fill("nothing here")


def test_nothing_changed_is_no_difference():
    assert diff(load_good(), load_good()) == ()


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("max_size: 5", "max_size: 6", ("tenants.acme.pool.max_size: 5 → 6",)),
        ("two_choices", "least_in_flight", ("tenants.acme.limits.balancer: two_choices → least_in_flight",)),
        ("hold: {window_s: 7}", "hold: {window_s: 8}", ("clusters.main.hold.window_s: 7.0 → 8.0",)),
        ("  beta:\n", "  gamma:\n", ("tenants.beta: removed", "tenants.gamma: added")),
        (
            "weights: {pg2: 200}",
            "weights: {pg1: 1}",
            ("tenants.acme.weights.pg2: removed", "tenants.acme.weights.pg1: added"),
        ),
        ("env:BETA_PW", "env:ACME_PW", ("tenants.beta.login.password: changed (secret)",)),
        ("[env:BETA_TOKEN]", "[env:BETA_PW]", ("tenants.beta.tokens: changed (secret)",)),
        ("weight: 300", "weight: 1", ("clusters.main.endpoints.pg2.weight: 300 → 1",)),
    ],
)
def test_differences_in_words(old: str, new: str, lines: tuple[str, ...]):
    assert changed(old, new) == lines


@pytest.mark.parametrize(
    ("place", "change", "effect"),
    [
        ("server listen", "a → b", ConfigEffect.RESTART),
        ("server watch_s", "1 → 2", ConfigEffect.AT_ONCE),
        ("log level", "info → debug", ConfigEffect.RESTART),
        ("retry budget_ratio", "0.1 → 0.2", ConfigEffect.RESTART),
        ("admin tokens", "changed (secret)", ConfigEffect.AT_ONCE),
        ("tenants a.pool", "removed", ConfigEffect.DRAINS),
        ("tenants a.pool", "added", ConfigEffect.AT_ONCE),
        ("tenants acme pool max_size", "5 → 6", ConfigEffect.NEW_CONNECTIONS),
        ("tenants acme login password", "changed (secret)", ConfigEffect.NEW_CONNECTIONS),
        ("tenants acme limits commit_wait", "flushed → local", ConfigEffect.NEW_CONNECTIONS),
        ("tenants acme limits max_in_flight", "5 → 6", ConfigEffect.AT_ONCE),
        ("tenants acme tokens", "changed (secret)", ConfigEffect.AT_ONCE),
        ("tenants acme weights pg1", "removed", ConfigEffect.AT_ONCE),
        ("clusters main", "removed", ConfigEffect.DRAINS),
        ("clusters main endpoints pg1", "removed", ConfigEffect.DRAINS),
        ("clusters main endpoints pg1 host", "a → b", ConfigEffect.NEW_CONNECTIONS),
        ("clusters main endpoints pg1 weight", "1 → 2", ConfigEffect.AT_ONCE),
        ("clusters main control password", "changed (secret)", ConfigEffect.NEW_CONNECTIONS),
        ("clusters main mode", "follow → promote", ConfigEffect.AT_ONCE),
        ("clusters main connects_in_flight", "2 → 8", ConfigEffect.AT_ONCE),
        ("clusters main connect_timeout_s", "3.0 → 5.0", ConfigEffect.AT_ONCE),
    ],
)
def test_how_a_change_comes_into_force(place: str, change: str, effect: ConfigEffect):
    assert effect_of(tuple(place.split()), change) is effect


def test_what_a_tenant_connects_by_is_what_makes_new_connections():
    """The words of the difference and the engine's own judgement may not drift apart."""
    acme = next(iter(load_good().topology.tenants.values()))
    other: dict[str, Any] = dict.fromkeys(("cluster", "database", "role"), "x")
    other |= {"isolation": IsolationMode.SCHEMA, "pool": policy.PoolPolicy(max_size=3)}
    other |= {"weights": {}, "tokens": (), "callers": (), "statements": {"a": "b"}, "channels": ("x",)}
    for name, value in other.items():
        reconnects = effect_of(("tenants", "acme", name), "") is ConfigEffect.NEW_CONNECTIONS
        assert acme.same_connections(replace(acme, **{name: value})) is not reconnects, name
    # Connections move to another login as well, but only once it has proven itself.
    assert effect_of(("tenants", "acme", "login"), "") is ConfigEffect.NEW_CONNECTIONS
    assert acme.same_connections(replace(acme, login=Login("x")))
    for part in fields(policy.TenantPolicy):
        limits: Any = SimpleNamespace(**{one.name: getattr(acme.policy, one.name) for one in fields(acme.policy)})
        setattr(limits, part.name, "other")
        reconnects = effect_of(("tenants", "acme", "limits", part.name), "") is ConfigEffect.NEW_CONNECTIONS
        assert acme.same_connections(replace(acme, policy=limits)) is not reconnects, part.name


def test_what_a_reload_cannot_change_is_told():
    new = load_good(f"server: {{grace_s: 3}}\nlog: {{level: debug}}\n{GOOD}")
    found = diff(load_good(), new)
    assert tuple(map(str, found)) == ("server.grace_s: 10.0 → 3.0", "log.level: info → debug")
    assert {one.effect for one in found} == {ConfigEffect.RESTART}


def test_the_effective_form_has_defaults_and_no_secret():
    shown = show(load_good(), GOOD)
    assert yaml.safe_load(shown)["tenants"]["beta"]["pool"]["max_size"] == policy.PoolPolicy().max_size
    assert not [name for pair in ENVIRON.items() for name in pair if name in shown]
