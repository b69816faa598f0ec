"""The operator's guide: its links lead somewhere, its `nats` lines run with the real CLI, and its settings."""

from __future__ import annotations

import re

from manifests import DEPLOY

GUIDE = (DEPLOY / "README.md").read_text()


def test_every_link_leads_somewhere() -> None:
    """Relative to the guide."""
    links = re.findall(r"\]\(((?!https?:)[^)#]+)(?:#[^)]*)?\)", GUIDE)
    assert len(links) > 10
    for link in links:
        assert (DEPLOY / link).exists(), link


def test_everything_in_deploy_is_in_the_guide() -> None:
    """A file nobody is told of is a file nobody finds."""
    for folder in [*DEPLOY.glob("k8s/*"), *DEPLOY.glob("k8s/overlays/*"), DEPLOY / "nats", DEPLOY / "compose.yaml"]:
        if folder.name != "overlays":
            assert f"({folder.relative_to(DEPLOY)})" in GUIDE, folder


def test_every_variable_of_the_manifests_is_in_the_guide() -> None:
    """Those that are no setting of the library."""
    used, variable = set(), r"^ +(?:- name: )?(NATS[A-Z]*_[A-Z_]+|GRACE|ALIVE|METRICS_PORT)\b"
    for file in DEPLOY.glob("k8s/**/*.yaml"):
        used |= set(re.findall(variable, file.read_text(), re.MULTILINE))
    for name in used:
        assert name.startswith("NATSJOBS_") or f"`{name}`" in GUIDE, name
