"""The manifests for one router that promotes by itself: deploy/kubernetes, changed by deploy/kubernetes-promote."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.config.loaded import LoadedConfig
from router.config.loading import load_text
from router.model.topology import FailoverMode

DEPLOY = Path(__file__).parents[2] / "deploy"
CHANGES = DEPLOY / "kubernetes-promote"


def manifest(path: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(path.read_text())
    return document


def loaded(path: Path) -> LoadedConfig:
    text = manifest(path)["data"]["pointsman.yaml"]
    names = re.findall(r"\benv:([A-Z_]+)", text)
    return load_text(text, Path("x.yaml"), {name: f"value-of-{name}" for name in names})


def changed_pod() -> dict[str, Any]:
    return manifest(CHANGES / "deployment.yaml")["spec"]["template"]["spec"]


def test_its_files_are_all_named_and_stand_on_the_other_manifests():
    kustomization = manifest(CHANGES / "kustomization.yaml")
    named = [*kustomization["resources"], *(one["path"] for one in kustomization["patches"] if "path" in one)]
    here = {path.name for path in CHANGES.iterdir()} - {"kustomization.yaml"}
    assert sorted(named) == sorted(["../kubernetes", *here])
    for name in here - {"deployment.yaml"}:
        kubernetes_validate.validate(manifest(CHANGES / name), kubernetes_validate.latest_version(), strict=True)


def test_two_pods_never_promote_side_by_side():
    spec = manifest(CHANGES / "deployment.yaml")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate", "rollingUpdate": None}
    assert manifest(CHANGES / "persistentvolumeclaim.yaml")["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_nothing_keeps_a_node_from_being_drained():
    (deleted,) = (yaml.safe_load(one["patch"]) for one in manifest(CHANGES / "kustomization.yaml")["patches"]
                  if "patch" in one)  # fmt: skip
    budget = manifest(DEPLOY / "kubernetes" / "poddisruptionbudget.yaml")
    assert deleted.pop("$patch") == "delete"
    assert (deleted["kind"], deleted["metadata"]["name"]) == (budget["kind"], budget["metadata"]["name"])


def test_the_volume_is_the_state_directory_and_the_router_may_write_to_it():
    pod = changed_pod()
    (volume,), (container,) = pod["volumes"], pod["containers"]
    (mount,) = container["volumeMounts"]
    claim = manifest(CHANGES / "persistentvolumeclaim.yaml")["metadata"]["name"]
    assert (volume["persistentVolumeClaim"]["claimName"], mount["name"]) == (claim, volume["name"])
    assert loaded(CHANGES / "configmap.yaml").server.state_dir == mount["mountPath"]
    base = manifest(DEPLOY / "kubernetes" / "deployment.yaml")["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == base["securityContext"]["runAsGroup"]


def test_the_configuration_promotes_and_is_else_the_same():
    base, ours = loaded(DEPLOY / "kubernetes" / "configmap.yaml"), loaded(CHANGES / "configmap.yaml")
    assert {one.mode for one in ours.topology.clusters.values()} == {FailoverMode.PROMOTE}
    follow = {name: replace(one, mode=FailoverMode.FOLLOW) for name, one in ours.topology.clusters.items()}
    there = replace(ours.server, state_dir=base.server.state_dir)
    assert replace(ours, server=there, topology=replace(ours.topology, clusters=follow)) == base


def test_kustomize_makes_one_whole_of_it():
    tool = shutil.which("kubectl")
    if tool is None:
        pytest.skip("kubectl is not installed: the manifests are checked one by one only")
    argv = [tool, "kustomize", str(CHANGES)]
    made = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (made.returncode, made.stderr) == (0, "")
    whole = list(yaml.safe_load_all(made.stdout))
    for one in whole:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    kinds = {one["kind"]: one for one in whole}
    assert "PodDisruptionBudget" not in kinds
    assert kinds["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    assert {one["name"] for one in pod["volumes"]} == {"config", "tmp", "state"}
    assert pod["securityContext"].items() >= {"runAsUser": 10001, "fsGroup": 10001}.items()
    assert "mode: promote" in kinds["ConfigMap"]["data"]["pointsman.yaml"]


def test_the_readme_says_how_it_is_applied():
    assert "kubectl apply -k deploy/kubernetes-promote\n" in (DEPLOY / "README.md").read_text()
