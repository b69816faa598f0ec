"""The settings of stream and bucket in the words of others: ``nats stream add --config`` and NACK's custom resources.

Owns the translation, and nothing of the settings themselves (``setup`` does): whoever lets something else create the
streams gets them from here, so what is deployed and what ``natsjobs setup`` makes cannot drift.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from natsjobs.config import Config
from natsjobs.engine.subjects import Subjects
from natsjobs.jetstream.setup import Settings, settings_of

_SECOND = 1_000_000_000
_NACK = "jetstream.nats.io/v1beta2"
# JetStream's names on the left, those of NACK's Stream resource on the right.
_STREAM_FIELDS = {
    "name": "name",
    "description": "description",
    "subjects": "subjects",
    "retention": "retention",
    "storage": "storage",
    "num_replicas": "replicas",
    "discard": "discard",
    "max_age": "maxAge",
    "max_bytes": "maxBytes",
    "max_consumers": "maxConsumers",
    "max_msgs": "maxMsgs",
    "max_msg_size": "maxMsgSize",
    "max_msgs_per_subject": "maxMsgsPerSubject",
    "duplicate_window": "duplicateWindow",
    "deny_delete": "denyDelete",
    "allow_direct": "allowDirect",
    "allow_rollup_hdrs": "allowRollup",
    "allow_msg_ttl": "allowMsgTtl",
    "subject_delete_marker_ttl": "subjectDeleteMarkerTtl",
    "republish": "republish",
    "metadata": "metadata",
}
_DURATIONS = frozenset({"max_age", "duplicate_window", "subject_delete_marker_ttl"})


def as_json(config: Config) -> str:
    """Both streams, as ``STREAM.CREATE`` and ``nats stream add --config`` take them: one JSON object a line."""
    return "\n".join(json.dumps(settings) for settings in settings_of(config))


def as_nack(config: Config) -> str:
    """Two ``Stream`` resources for NACK, as YAML.

    The bucket is one too: a bucket is a stream named ``KV_…``, and NACK's ``KeyValue`` resource has no place for some
    of its settings. Values that are NACK's own defaults are written all the same, so that nobody has to know them.
    """
    return "---\n".join("\n".join(_yaml(_resource(settings, config))) + "\n" for settings in settings_of(config))


def _resource(settings: Settings, config: Config) -> dict[str, Any]:
    name = f"{config.namespace}-{'events' if settings['name'] == Subjects(config.namespace).events_stream else 'jobs'}"
    spec: dict[str, Any] = {}
    for field in sorted(settings, key=list(_STREAM_FIELDS).index):  # a setting without a place there must not get lost
        value, place = settings[field], _STREAM_FIELDS[field]
        if field == "republish":
            spec[place] = {"source": value["src"], "destination": value["dest"]}
        elif field in _DURATIONS:
            spec |= {place: _duration(value)} if value else {}
        else:
            spec[place] = value
    spec["preventDelete"] = True  # else a removed resource takes every log with it
    metadata = {"name": name.lower().replace("_", "-"), "labels": {"app.kubernetes.io/part-of": "natsjobs"}}
    return {"apiVersion": _NACK, "kind": "Stream", "metadata": metadata, "spec": spec}


def _duration(nanoseconds: int) -> str:
    if nanoseconds % _SECOND:
        return f"{nanoseconds // 1_000_000}ms"
    return f"{nanoseconds // _SECOND}s"


def _yaml(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Enough YAML for what is above: mappings, lists of texts, and scalars, which JSON writes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(value, list):
            yield f"{indent}{key}:"
            for item in value:  # pyright: ignore[reportUnknownVariableType]
                yield f"{indent}  - {json.dumps(item)}"
        else:
            yield f"{indent}{key}: {json.dumps(value)}"
