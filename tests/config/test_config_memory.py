"""What a loaded configuration keeps: ten thousand tenants are to cost little, whatever reading them took."""

import sys
from pathlib import Path

from router.config.loading import load_text

TENANTS = 400
MOST_BLOCKS = 20
"""Of Python's allocator, a tenant: names, secrets and the objects that hold them, 50 to 130 bytes each; it is 13."""

HEAD = """\
admin: {tokens: [env:ADMIN]}
clusters:
  main:
    mode: follow
    control: {user: pointsman_control, password: env:ADMIN}
    endpoints: {pg: {host: one.example}}
tenants:
"""


def many_tenants(number: int) -> tuple[str, dict[str, str]]:
    """A configuration, and the environment with its secrets."""
    parts, environ = [HEAD], {"ADMIN": "admin-token"}
    for n in range(number):
        environ[f"T{n}"] = f"token-{n}"
        parts.append(
            f"  t{n}: {{cluster: main, database: d{n}, login: {{user: u{n}, password: env:T{n}}}, tokens: [env:T{n}],"
            " pool: {max_size: 4}}\n"
        )
    return "".join(parts), environ


def test_equal_policies_are_one_object() -> None:
    text, environ = many_tenants(5)
    tenants = list(load_text(text, Path("/x.yaml"), environ).topology.tenants.values())
    assert len({id(tenant.pool) for tenant in tenants}) == 1
    assert len({id(tenant.policy) for tenant in tenants}) == 1
    assert tenants[3].pool.max_size == 4


def test_a_tenant_keeps_few_blocks() -> None:
    text, environ = many_tenants(TENANTS)
    load_text(text, Path("/x.yaml"), environ)  # what is made once is made
    before = sys.getallocatedblocks()
    loaded = load_text(text, Path("/x.yaml"), environ)
    blocks = (sys.getallocatedblocks() - before) / TENANTS
    assert len(loaded.topology.tenants) == TENANTS
    assert blocks < MOST_BLOCKS
