"""The custom resources: NACK's streams, the Prometheus operator's monitors and rules.

Their schemas are not ours to ship. Given a folder with the CRDs in ``NATSJOBS_CRDS`` everything is validated against
them, unknown fields included; always, against the list below of what we use, which was checked that way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import KUSTOMIZATIONS, resources

from natsjobs.jetstream.manifests import _STREAM_FIELDS

TEXT, NUMBER, FLAG, TEXTS = str, int, bool, [str]
USED: dict[str, Any] = {
    "Stream": {
        **dict.fromkeys(("name", "description", "retention", "storage", "discard"), TEXT),
        **dict.fromkeys(("maxAge", "duplicateWindow", "subjectDeleteMarkerTtl"), TEXT),
        **dict.fromkeys(("replicas", "maxBytes", "maxConsumers", "maxMsgs", "maxMsgSize", "maxMsgsPerSubject"), NUMBER),
        **dict.fromkeys(("denyDelete", "allowDirect", "allowRollup", "allowMsgTtl", "preventDelete"), FLAG),
        "subjects": TEXTS,
        "republish": {"source": TEXT, "destination": TEXT},
        "metadata": {"natsjobs-wire": TEXT},
    },
    "ServiceMonitor": {
        "selector": {"matchLabels": dict},
        "endpoints": [{"port": TEXT, "path": TEXT, "interval": TEXT}],
    },
    "PodMonitor": {"selector": {"matchLabels": dict}, "podMetricsEndpoints": [{"port": TEXT, "interval": TEXT}]},
    "PrometheusRule": {
        "groups": [
            {
                "name": TEXT,
                "rules": [{"alert": TEXT, "expr": TEXT, "for": TEXT, "labels": dict, "annotations": dict}],
            }
        ]
    },
}


def custom() -> list[dict[str, Any]]:
    """Every custom resource."""
    return [one for folder in KUSTOMIZATIONS for one in resources(folder) if one["kind"] in USED]


def misfits(value: Any, shape: Any, place: str) -> Iterator[str]:
    """What does not have the shape."""
    if isinstance(shape, type):
        if not isinstance(value, shape):
            yield f"{place} is {value!r}, no {shape.__name__}"
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            yield from misfits(item, shape[0], f"{place}[{number}]")
    else:
        for key, item in value.items():
            if key not in shape:
                yield f"{place}.{key} is not known"
            else:
                yield from misfits(item, shape[key], f"{place}.{key}")


def test_only_known_fields_are_used() -> None:
    """With the types they have; and there are resources of every kind."""
    found = custom()
    assert {one["kind"] for one in found} == set(USED)
    assert [wrong for one in found for wrong in misfits(one["spec"], USED[one["kind"]], one["kind"])] == []


def test_every_setting_that_setup_makes_has_a_field_of_nack() -> None:
    """A new setting of the stream must find its way into the resource."""
    assert set(_STREAM_FIELDS.values()) == set(USED["Stream"]) - {"preventDelete"}


def test_the_resources_fit_the_definitions_that_are_given() -> None:
    """``NATSJOBS_CRDS``: a folder with the CRDs of NACK and of the Prometheus operator, as YAML."""
    folder = os.environ.get("NATSJOBS_CRDS")
    if not folder:
        pytest.skip("no CRDs given in NATSJOBS_CRDS")
    jsonschema = pytest.importorskip("jsonschema")
    schemas: dict[tuple[str, str], Any] = {}
    for file in Path(folder).glob("*.y*ml"):
        for crd in yaml.safe_load_all(file.read_text()):
            for version in (crd or {"spec": {"versions": []}})["spec"]["versions"]:
                name = f"{crd['spec']['group']}/{version['name']}"
                schemas[name, crd["spec"]["names"]["kind"]] = _closed(version["schema"]["openAPIV3Schema"])
    for one in custom():
        schema = schemas[one["apiVersion"], one["kind"]]
        jsonschema.validate(one["spec"], schema["properties"]["spec"])


def _closed(schema: Any) -> Any:
    """The same schema, refusing unknown fields everywhere; without patterns, which are in Go's dialect."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(item) for key, item in schema.items() if not (key == "pattern" and isinstance(item, str))}
    if isinstance(closed.get("properties"), dict) and "type" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
