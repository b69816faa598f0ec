"""The Kubernetes manifests: they build, fit the schemas, keep the strictest rules, and name only what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import DEPLOY, KUSTOMIZATIONS, ROOT, pod_template, rendered, resources, run, tool

from natsjobs.config import Config, _env_names
from natsjobs.jetstream.manifests import as_nack

# Kinds of operators that are not part of Kubernetes: its schemas do not know them.
CUSTOM = {"Stream", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
# Rules of the security linter that cannot hold here, and why.
SKIPPED = {
    "CKV_K8S_43": "a digest belongs to the image that you build; overlays set it",
}
TRY_ONLY = {
    "CKV_K8S_15": "an image that was loaded into a laptop's cluster is in no registry",
    "CKV_SECRET_6": "the token for trying stands in the file, and says so",
}
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
# Variables of the connection that commands and workers read.
CONNECTION = {"NATS_URL", "NATS_CREDS", "NATS_CA", "NATS_INBOX_PREFIX"}
WORKER = {"GRACE", "ALIVE", "METRICS_PORT"}


def test_every_kustomization_builds() -> None:
    """There are some, and none is forgotten by the tests below."""
    assert len(KUSTOMIZATIONS) >= 6
    assert all(resources(folder) for folder in KUSTOMIZATIONS)


def test_every_resource_fits_the_schema(tmp_path: Path) -> None:
    """Of a current Kubernetes, strictly: no unknown field; only custom resources may be unknown."""
    file = tmp_path / "all.yaml"
    file.write_text("\n---\n".join(rendered(folder) for folder in KUSTOMIZATIONS))
    said = run(tool("kubernetes-validate"), "--strict", file).splitlines()
    strange = [line for line in said if " passed " not in line]
    assert len(said) == sum(len(resources(folder)) for folder in KUSTOMIZATIONS)
    assert all("Couldn't find schema for kind" in line for line in strange), strange
    assert {line.split("for kind ")[1].split()[0] for line in strange} <= CUSTOM


def test_a_misspelt_field_would_be_noticed(tmp_path: Path) -> None:
    """The validator is there and strict."""
    file = tmp_path / "all.yaml"
    file.write_text(rendered("k8s/base").replace("imagePullPolicy", "imagePulPolicy"))
    with pytest.raises(AssertionError, match="imagePulPolicy"):
        run(tool("kubernetes-validate"), "--strict", file)


@pytest.mark.parametrize(
    ("folders", "also"),
    [
        # As they are applied: the setup Job and the worker live beside the gateway, under its network policy.
        (("k8s/overlays/existing-nats", "k8s/setup", "k8s/overlays/worker-example"), {}),
        (("k8s/overlays/try",), TRY_ONLY),
    ],
)
def test_the_security_linter_finds_nothing(folders: tuple[str, ...], also: dict[str, str], tmp_path: Path) -> None:
    """All its rules, in every severity, but those named above."""
    file = tmp_path / "all.yaml"
    file.write_text("\n---\n".join(rendered(folder) for folder in folders))
    skipped = ",".join(SKIPPED | also)
    run(tool("checkov"), "--skip-download", "--compact", "--quiet", "--skip-check", skipped, "-f", file)


def test_the_dockerfile_passes_its_linters() -> None:
    """hadolint's rules for form, checkov's for safety."""
    run(tool("hadolint"), DEPLOY / "Dockerfile")
    run(
        tool("checkov"),
        "--skip-download",
        "--compact",
        "--quiet",
        "--framework",
        "dockerfile",
        "-f",
        DEPLOY / "Dockerfile",
    )


def test_the_sources_are_tidy() -> None:
    """No duplicate key, no stray indentation: yamllint."""
    rules = {"line-length": {"max": 120}, "document-start": "disable", "comments": {"min-spaces-from-content": 1}}
    config = json.dumps({"extends": "default", "rules": rules | {"braces": {"max-spaces-inside": 1}}})
    run(tool("yamllint"), "--strict", "-d", config, *DEPLOY.glob("**/*.yaml"))


# -- what no schema sees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_selectors_select_and_images_are_pinned(folder: str) -> None:
    """Every selector matches a pod of the same kustomization; no image is "latest"; quantities are quantities."""
    found = resources(folder)
    pods = [template for one in found if (template := pod_template(one))]
    labels = [template["metadata"]["labels"] for template in pods]
    for selector in _selectors(found):
        assert any(selector.items() <= one.items() for one in labels), selector
    for template in pods:
        for container in template["spec"]["containers"]:
            assert re.fullmatch(r"[a-z/.-]+:\d[\w.-]+", container["image"])
            for amounts in container["resources"].values():
                assert all(QUANTITY.fullmatch(str(amount)) for amount in amounts.values())


def _selectors(found: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for one in found:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            yield spec["selector"]
        elif one["kind"] in {"Deployment", "PodDisruptionBudget"}:
            yield spec["selector"]["matchLabels"]
        elif one["kind"] == "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]
        for spread in (pod_template(one) or {"spec": {}})["spec"].get("topologySpreadConstraints", []):
            yield spread["labelSelector"]["matchLabels"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_variables_are_settings_and_files_are_mounted(folder: str) -> None:
    """A misspelt variable would be ignored; a path outside the mounts would be missing."""
    settings = {name for name, *_ in _env_names()}
    for one in resources(folder):
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "natsjobs":
            assert set(one["data"]) <= settings | CONNECTION
            Config.from_env(one["data"])
        if (template := pod_template(one)) is None:
            continue
        for container in template["spec"]["containers"]:
            mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
            assert set(variables) <= settings | CONNECTION | WORKER
            texts = [*container.get("args", []), *container.get("command", []), *variables.values()]
            for path in (text for text in texts if text.startswith(("/etc/", "/opt/", "/run/"))):
                assert any(path.startswith(f"{mount}/") for mount in mounts), path


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_secrets_are_named_in_the_notes(folder: str) -> None:
    """Whoever applies a kustomization is told which secrets it needs; it brings the others."""
    found = resources(folder)
    brought = {one["metadata"]["name"] for one in found if one["kind"] in {"Secret", "ConfigMap"}}
    notes = "".join(file.read_text() for file in DEPLOY.glob("k8s/**/kustomization.yaml"))
    for one in found:
        for volume in (pod_template(one) or {"spec": {}})["spec"].get("volumes", []):
            if (name := volume.get("secret", {}).get("secretName")) and name not in brought:
                assert re.search(rf"# +Secret {name} ", notes), name
            if (name := volume.get("configMap", {}).get("name")) is not None:
                assert name in brought


# -- one source -------------------------------------------------------------------------------------------------


def test_nack_makes_the_streams_that_setup_makes() -> None:
    """The file is what the command prints, and the command prints every setting."""
    shipped = (DEPLOY / "k8s/overlays/nack/streams.yaml").read_text()
    assert shipped == as_nack(Config(replicas=3))
    assert [one["spec"]["name"] for one in yaml.safe_load_all(shipped)] == ["natsjobs_events", "KV_natsjobs_jobs"]


def test_the_gateway_of_the_manifests_only_binds() -> None:
    """Its NATS user may not create streams, so it must not try."""
    data = next(one for one in resources("k8s/base") if one["kind"] == "ConfigMap")["data"]
    assert Config.from_env(data).create is False


def test_the_image_has_what_its_command_needs() -> None:
    """The Dockerfile installs the extras that ``serve`` needs, from the lock file, and runs as nobody."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r'--constraint requirements\.lock \\\n\s+"\.\[cli,http,nkeys,prometheus\]"', text)
    assert "USER 65532" in text
    version = re.search(r'__version__ = "(.+)"', (ROOT / "natsjobs/__init__.py").read_text())
    assert version
    images = {
        m[1] for file in DEPLOY.glob("**/*.yaml") for m in re.finditer(r"image: natsjobs:(\S+)", file.read_text())
    }
    assert images == {version[1]}
