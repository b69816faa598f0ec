"""The manifests as the tests see them: rendered by kubectl, or read from the files; and the validators.

Owns finding the tools: on PATH, or in ``.cache/tools`` where ``.ci/run`` installs ``tools.txt``. A test that lacks one
is skipped by the tool's name.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZATIONS = sorted(str(file.parent.relative_to(DEPLOY)) for file in DEPLOY.glob("k8s/**/kustomization.yaml"))


def tool(name: str) -> str:
    """Where a tool is; without it the test is skipped."""
    found = shutil.which(name, path=str(ROOT / ".cache" / "tools" / "bin")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (see tests/deploy/tools.txt and .ci/run)")
    return found


def run(*argv: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(arg) for arg in argv], check=False, capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, f"{argv[0]}: {done.stdout}\n{done.stderr}"
    return done.stdout


@cache
def rendered(folder: str) -> str:
    """What ``kubectl apply -k`` would send, as text."""
    return run(tool("kubectl"), "kustomize", DEPLOY / folder)


def resources(folder: str) -> list[dict[str, Any]]:
    """The same, decoded."""
    return [resource for resource in yaml.safe_load_all(rendered(folder)) if resource]


def pod_template(resource: dict[str, Any]) -> dict[str, Any] | None:
    """The pod template of a resource that has one."""
    return resource["spec"]["template"] if resource["kind"] in {"Deployment", "Job", "StatefulSet"} else None
