"""The SQL of deploy/, its README and the sample configuration name the same roles, and keep passwords to themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from router.config.loading import load_text
from router.config.sample import sample
from router.devcluster import DevCluster, find_binaries
from tests.support.dev_cluster import DEFAULT_MAJOR

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text()
REFERENCE = re.compile(r"\benv:([A-Z_]+)")


def test_the_sample_configuration_fits_what_the_scripts_make():
    config = load_text(sample(), Path("x.yaml"), {name: name for name in REFERENCE.findall(sample())})
    (made,) = set(re.findall(r"psql .*-v tenant=(\w+)", README))
    (tenant,) = config.topology.tenants.values()
    assert (tenant.name, tenant.login.user, tenant.database) == (made, made, made)
    control = config.topology.clusters[tenant.cluster].control.user
    assert f"\\set control_role {control}\n" in (DEPLOY / "roles.sql").read_text()


def test_the_readme_makes_every_secret_of_the_sample():
    block = README.partition("for pair in")[2].partition("; do")[0]
    names = set(re.findall(r"([A-Z_]+):", block))
    assert names == set(REFERENCE.findall(sample())) - {"NAME"}  # which is in the words at its top


def test_no_password_is_made_within_a_command():
    """It would show in the list of processes, and be kept nowhere."""
    for path in DEPLOY.rglob("*"):
        if path.suffix in (".md", ".sql"):
            assert not re.search(r'-v \w*password="?\$\(', path.read_text()), path


@pytest.mark.pg
def test_psql_reads_the_passwords_from_files(pg_cluster: DevCluster, tmp_path: Path):
    psql = find_binaries(major=DEFAULT_MAJOR).program("psql")
    if not psql.exists():
        pytest.skip("no psql beside the server")
    secret = tmp_path / "it's a secret"
    secret.write_text("pass'word\n")
    primary = pg_cluster.primary()
    for script, values in (
        ("roles.sql", {"control_role": "onlooker", "control_password_file": secret}),
        ("tenant.sql", {"tenant": "initech", "password_file": secret}),
    ):
        variables = [part for name, value in values.items() for part in ("-v", f"{name}={value}")]
        argv = [psql, "-X", "-q", primary.superuser_dsn, *variables, "-f", DEPLOY / script]
        subprocess.run(argv, check=True, capture_output=True, timeout=20)
    psycopg.connect(primary.dsn("onlooker", "pass'word", "postgres")).close()
    psycopg.connect(primary.dsn("initech", "pass'word", "initech")).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(primary.dsn("initech", "wrong", "initech"))


@pytest.mark.parametrize("path", ["deploy/compose/env", "environment", "secrets/admin.token"])
def test_git_never_takes_a_secret_that_the_readme_makes(path: str):
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no repository: what it ignores is not asked")
    assert path.partition("/")[0] in README or path in README
    asked = subprocess.run([git, "check-ignore", "-q", path], cwd=ROOT, check=False)
    assert asked.returncode == 0
