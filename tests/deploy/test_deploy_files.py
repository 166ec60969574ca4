"""What is in deploy/ fits together, and fits the router: checked offline, without Docker or a Kubernetes cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.config.addresses import parse_address
from router.config.loaded import LoadedConfig
from router.config.loading import load_text
from router.model.policy import ServerPolicy

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted(path.name for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
EXAMPLE = "secret.example.yaml"
REFERENCE = re.compile(r"\benv:([A-Z_]+)")


def manifest(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    return document


def readme() -> str:
    return (DEPLOY / "README.md").read_text()


def loaded(text: str) -> tuple[LoadedConfig, set[str]]:
    """The configuration with a value for each variable it refers to, and their names."""
    names = set(REFERENCE.findall(text))
    return load_text(text, Path("x.yaml"), {name: f"value-of-{name}" for name in names}), names


def ports_of(config: LoadedConfig) -> set[int]:
    server = config.server
    return {parse_address(text)[1] for text in (server.listen, server.admin_listen, server.metrics_listen)}


class TestKubernetes:
    @pytest.mark.parametrize("name", MANIFESTS)
    def test_each_manifest_is_valid(self, name: str):
        kubernetes_validate.validate(manifest(name), kubernetes_validate.latest_version(), strict=True)

    def test_a_wrong_manifest_would_be_noticed(self):
        broken = manifest("deployment.yaml")
        broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)

    def test_the_kustomization_names_every_manifest(self):
        assert sorted([*manifest("kustomization.yaml")["resources"], EXAMPLE]) == MANIFESTS

    def test_applying_it_never_replaces_the_secret(self):
        kinds = {manifest(name)["kind"] for name in manifest("kustomization.yaml")["resources"]}
        assert "Deployment" in kinds
        assert "Secret" not in kinds

    def test_the_stated_version_of_kubernetes_suffices(self):
        stated = set(re.findall(r"Kubernetes (1\.\d+)", readme()))
        assert stated == set(re.findall(r"Kubernetes (1\.\d+)", (DEPLOY / "kubernetes/deployment.yaml").read_text()))
        (oldest,) = stated
        for name in MANIFESTS:
            kubernetes_validate.validate(manifest(name), oldest, strict=True)

    def test_the_configuration_is_good_and_its_secrets_are_in_the_secret(self):
        _, names = loaded(manifest("configmap.yaml")["data"]["pointsman.yaml"])
        assert names == set(manifest(EXAMPLE)["stringData"])

    @pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-promote"])
    def test_a_changed_file_is_said_to_need_no_order(self, folder: str):
        text = (DEPLOY / folder / "configmap.yaml").read_text()
        assert "watch_s" not in text, "files are watched unless that is 0"
        assert "pointsman reload" not in text

    def test_no_secret_is_committed(self):
        for value in manifest(EXAMPLE)["stringData"].values():
            assert value.startswith("change-me")

    def test_ports_probes_and_grace_follow_the_configuration(self):
        config, _ = loaded(manifest("configmap.yaml")["data"]["pointsman.yaml"])
        pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        listening = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(listening.values()) == ports_of(config)
        callers = parse_address(config.server.listen)[1]
        assert container["startupProbe"]["grpc"]["port"] == container["readinessProbe"]["grpc"]["port"] == callers
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
        assert listening["metrics"] == parse_address(config.server.metrics_listen)[1]
        before_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > before_stop + config.server.grace_s
        for port in manifest("service.yaml")["spec"]["ports"]:
            assert port["port"] == listening[port["targetPort"]]

    def test_every_address_is_reachable_from_outside_the_pod(self):
        config, _ = loaded(manifest("configmap.yaml")["data"]["pointsman.yaml"])
        server = config.server
        for text in (server.listen, server.admin_listen, server.metrics_listen):
            assert parse_address(text)[0] == "0.0.0.0"

    def test_names_and_labels_meet(self):
        deployment = manifest("deployment.yaml")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        pod = deployment["spec"]["template"]["spec"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert manifest("service.yaml")["spec"]["selector"].items() <= labels.items()
        assert manifest("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert manifest("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert pod["volumes"][0]["configMap"]["name"] == manifest("configmap.yaml")["metadata"]["name"]
        assert pod["containers"][0]["envFrom"][0]["secretRef"]["name"] == manifest(EXAMPLE)["metadata"]["name"]
        assert pod["serviceAccountName"] == manifest("serviceaccount.yaml")["metadata"]["name"]
        assert manifest("poddisruptionbudget.yaml")["spec"]["minAvailable"] < deployment["spec"]["replicas"]

    def test_no_port_is_open_to_every_pod(self):
        rules = manifest("networkpolicy.yaml")["spec"]["ingress"]
        assert all(rule["from"] for rule in rules)
        assert {port["port"] for rule in rules for port in rule["ports"]} == {"grpc", "metrics"}

    def test_pods_keep_the_restricted_standard(self):
        pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
        security = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        assert pod["automountServiceAccountToken"] is False


class TestCompose:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    text = (DEPLOY / "compose" / "router" / "pointsman.yaml").read_text()

    def test_the_configuration_is_good_and_gets_its_secrets(self):
        _, names = loaded(self.text)
        given = self.compose["services"]["router"]["environment"]
        assert names == set(given)
        assert all(value.startswith(f"${{{name}:?") for name, value in given.items())

    def test_its_endpoints_are_services(self):
        config, _ = loaded(self.text)
        hosts = {endpoint.host for endpoint in config.topology.clusters["main"].endpoints}
        assert hosts == set(self.compose["services"]) - {"router"}

    def test_published_ports_are_the_configured_ones_and_local(self):
        config, _ = loaded(self.text)
        published = [port.split(":") for port in self.compose["services"]["router"]["ports"]]
        assert {host for host, _, _ in published} == {"127.0.0.1"}
        assert {int(inside) for _, _, inside in published} == ports_of(config)

    def test_mounted_files_exist(self):
        for service in self.compose["services"].values():
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / source).exists(), source
                else:
                    assert source in self.compose["volumes"]

    def test_a_configuration_that_an_editor_replaces_is_seen(self):
        (volume,) = self.compose["services"]["router"]["volumes"]
        source, target, mode = volume.split(":")
        assert (DEPLOY / source).is_dir()
        assert [path.name for path in (DEPLOY / source).iterdir()] == ["pointsman.yaml"], "no secrets beside it"
        assert (target, mode) == ("/etc/pointsman", "ro")

    def test_the_readme_makes_every_secret(self):
        wanted = set(re.findall(r"\$\{([A-Z_]+):\?", (DEPLOY / "compose.yaml").read_text()))
        block = readme().partition("## Docker Compose")[2].partition("for name in")[2].partition("; do")[0]
        assert set(re.findall(r"[A-Z_]{6,}", block)) == wanted

    def test_stopping_takes_longer_than_draining(self):
        config, _ = loaded(self.text)
        assert int(self.compose["services"]["router"]["stop_grace_period"].rstrip("s")) > config.server.grace_s

    @pytest.mark.parametrize("name", ["primary-init.sh", "replica.sh"])
    def test_scripts_are_executable_bash(self, name: str):
        path = DEPLOY / "compose" / name
        assert os.access(path, os.X_OK)
        assert "set -euo pipefail" in path.read_text()
        bash = shutil.which("bash")
        if bash is None:
            pytest.skip("bash is not installed: the scripts' syntax is not checked")
        checked = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")

    def test_the_init_script_gives_the_sql_what_it_asks_for(self):
        script = (DEPLOY / "compose" / "primary-init.sh").read_text()
        for name, optional in (
            ("roles", {"control_role", "control_password_file"}),
            ("tenant", {"connection_limit", "password_file", "login", "database", "role", "isolation"}),
            ("tenant_database", {"login", "role", "isolation"}),
        ):
            asked = set(re.findall(r"(?<![:\w]):['\"]?(?:\{\?)?([a-z_]+)", (DEPLOY / f"{name}.sql").read_text()))
            (line,) = (line for line in script.splitlines() if f"/sql/{name}.sql" in line)
            assert asked - optional <= set(re.findall(r"-v ([a-z_]+)=", line)), line


class TestDockerfile:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = tuple(line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))

    def test_it_has_two_stages_on_a_pinned_base(self):
        stages = [line for line in self.lines if line.startswith("FROM ")]
        assert stages == ["FROM python:${PYTHON} AS build", "FROM python:${PYTHON}"]
        (base,) = re.findall(r"^ARG PYTHON=(\S+)", self.text, re.MULTILINE)
        assert re.fullmatch(r"3\.\d+(\.\d+)?-slim-\w+", base)

    def test_the_last_user_is_not_root(self):
        users = [line.split()[1] for line in self.lines if line.startswith("USER ")]
        uid, _, gid = users[-1].partition(":")
        assert int(uid) >= 1000
        assert int(gid) >= 1000
        assert self.lines.index(f"USER {users[-1]}") > max(
            index for index, line in enumerate(self.lines) if line.startswith("RUN")
        )

    def test_versions_are_constrained(self):
        (install,) = (line for line in self.lines if "pip install" in line)
        assert "-c /src/constraints.txt" in install

    def test_what_is_copied_exists_and_is_let_through(self):
        ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        assert "*" in ignore
        let_through = {line[1:] for line in ignore if line.startswith("!")}
        copied = {
            word
            for line in self.lines
            if line.startswith("COPY ") and "--from" not in line
            for word in line.split()[1:-1]
        }
        assert copied == let_through
        for path in copied:
            assert (DEPLOY.parent / path).exists(), path

    def test_it_serves_checks_its_health_and_exposes_the_default_ports(self):
        assert 'ENTRYPOINT ["pointsman"]' in self.lines
        assert 'CMD ["serve", "--config", "/etc/pointsman/pointsman.yaml"]' in self.lines
        assert '"pointsman", "health"' in self.text
        (exposed,) = (line.split()[1:] for line in self.lines if line.startswith("EXPOSE"))
        policy = ServerPolicy()
        assert {int(port) for port in exposed} == {
            parse_address(text)[1] for text in (policy.listen, policy.admin_listen, policy.metrics_listen)
        }


def test_no_image_is_unpinned():
    for path in [DEPLOY / "compose.yaml", DEPLOY / "kubernetes" / "deployment.yaml"]:
        images = re.findall(r"^\s*image: (\S+)", path.read_text(), re.MULTILINE)
        assert images
        for image in images:
            assert re.search(r":\d+\.\d+", image), image


class TestSystemdUnit:
    text = (DEPLOY / "pointsman.service").read_text()

    def value(self, name: str) -> str:
        (value,) = re.findall(rf"^{name}=(.*)$", self.text, re.MULTILINE)
        return value

    def test_it_stops_by_draining(self):
        assert self.value("KillSignal") == "SIGTERM"
        assert self.value("KillMode") == "mixed", "the main process drains its workers, systemd must not"
        assert float(self.value("TimeoutStopSec")) > ServerPolicy().grace_s
        assert self.value("ExecReload") == "/bin/kill -HUP $MAINPID"
        assert self.value("RestartForceExitStatus").split() == ["SIGHUP", "SIGUSR1"], "its start may be killed by them"

    def test_its_commands_exist(self):
        from typer.main import get_command

        from router.cli import app

        commands = get_command(app).commands
        for name in ("ExecStart", "ExecStartPre"):
            assert self.value(name).split()[1] in commands

    def test_it_gives_up_privileges(self):
        for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes", "CapabilityBoundingSet="):
            assert line in self.text.splitlines()

    def test_systemd_takes_it(self, tmp_path: Path):
        tool = shutil.which("systemd-analyze")
        if tool is None:
            pytest.skip("systemd-analyze is not installed: the unit is checked by its text only")
        unit = tmp_path / "pointsman.service"
        unit.write_text(self.text.replace("/opt/pointsman/bin/pointsman", sys.executable))
        checked = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
        about_us = [line for line in checked.stderr.splitlines() if "pointsman" in line]
        assert (about_us, checked.returncode) == ([], 0), checked.stderr
