"""The gateway as an OpenAPI document: what every route takes and answers, as data.

Owns the descriptions; the schemas of records are those of ``natsjobs.models``. The document is complete and true: a
test compares it with the routes both ways, and schemathesis tries it against a gateway. Security is not in it: who is
let in, and by what, is the application's hook (401 and 403 are its answers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from natsjobs.http.problems import json_answer
from natsjobs.http.requests import root
from natsjobs.models import AbortResult, Job, ResumeState

Document = dict[str, Any]

_REF = "#/components/schemas/{name}"
_CURSOR = r"^([0-9a-v]{19}-[0-9]{10}-[0-9]{1,18})?$"
_PROBLEMS = {
    400: "an id, a parameter or the body cannot be meant",
    401: "the hook wants to know who asks",
    403: "the hook refuses",
    404: "no such job, or the hook says so",
    408: "the body did not arrive in time",
    409: "the job has ended, or has a newer generation",
    410: "the events that come next are gone",
    413: "the body is too large",
    429: "too many readers of this job here",
    500: "a defect, or the application's hook failed",
    501: "prometheus-client is not installed",
    503: "NATS is away, the gateway is being stopped, or it is full",
}


def _json(name: str) -> Document:
    return {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}


def _fields(**fields: Document) -> Document:
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"application/json": {"schema": schema}}


def _answers(status: dict[int, Document], *problems: int) -> Document:
    found = {str(code): answer for code, answer in status.items()}
    for code in problems:
        found[str(code)] = {"description": _PROBLEMS[code], "content": _json("Problem")}
    return found


def _path(name: str, what: str) -> Document:
    schema = {"type": "string", "minLength": 1, "maxLength": 256}
    return {"name": name, "in": "path", "required": True, "description": f"{what}; at most 256 bytes", "schema": schema}


def _query(name: str, what: str, schema: Document) -> Document:
    return {"name": name, "in": "query", "description": what, "schema": schema}


_STREAM = _path("stream_id", "the stream id of the job")
_AFTER = {"type": "string", "pattern": _CURSOR}


def _frames(*required: str, **fields: Document) -> Document:
    """Server-sent events. The schema is that of each of them, as a table of its lines."""
    properties = {"retry": {"type": "integer"}, **fields}
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"text/event-stream": {"schema": schema}}


_EVENTS = _frames(
    "data",
    "id",
    id={"type": "string", "pattern": _CURSOR, "description": "the cursor to go on after"},
    event={"type": "string", "description": "absent for an ordinary event, else its type: done, error, aborted"},
    data={
        "type": "string",
        "description": "a StreamEvent, or with `raw` what it holds as `data`",
        "contentMediaType": "application/json",
    },
)
_CHUNKS = _frames(
    "data",
    data={"type": "string", "description": "a UI message chunk as JSON, or [DONE]"},
    event={"type": "string", "description": "always absent, which means message"},
)

_USAGE = {"type": "array", "items": {"$ref": _REF.format(name="UsageMetadata")}}
_BODY = {"type": "object", "additionalProperties": False, "properties": {"generation": {"type": ["string", "null"]}}}

_SWITCH = {"type": "string", "enum": ["0", "1", "true", "false"]}
_ROW = {"type": "object", "required": ["streamId", "userId", "status", "createdAt", "generation"]}

OPERATIONS: dict[tuple[str, str], Document] = {
    ("get", "/streams"): {
        "summary": "All jobs that who asks may see, newest first, a page at a time",
        "parameters": [
            _query("id", "this stream id only", {"type": "string"}),
            _query("user", "of this user only", {"type": "string"}),
            _query("tenant", "of this tenant only", {"type": "string"}),
            _query("status", "with this status only", {"enum": ["running", "complete", "error", "aborted"]}),
            _query("q", "words that are somewhere in what identifies the job", {"type": "string"}),
            _query("limit", "rows", {"type": "integer", "minimum": 1, "maximum": 200}),
            _query("offset", "rows before them", {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999}),
            _query("activity", "1: with how busy the running ones are", _SWITCH),
        ],
        "responses": _answers(
            {
                200: {
                    "description": "digests of jobs, how many there are by status, and how old that is",
                    "content": _fields(
                        jobs={"type": "array", "items": _ROW},
                        total={"type": "integer"},
                        counts={"type": "object", "additionalProperties": {"type": "integer"}},
                        age={"type": "number"},
                        now={"type": "number"},
                    ),
                }
            },
            *(400, 401, 403, 404, 500, 503),
        ),
    },
    ("get", "/streams/{stream_id}/events"): {
        "summary": "Follow a job: server-sent events, replay, then live, then the terminal record",
        "parameters": [
            _STREAM,
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "the cursor of the last event that was seen; wins over the query",
                "schema": _AFTER,
            },
            _query("after", "the same for a first connect", _AFTER),
            _query("raw", "1: `data` is the stored JSON alone", _SWITCH),
        ],
        "responses": _answers(
            {
                200: {
                    "description": "events, until the job has ended; for who accepts `text/event-stream` also in place "
                    "of 429 and 503: no event, `retry`, and the end",
                    "content": _EVENTS,
                },
                204: {"description": "everything was seen, the end too: do not connect again"},
            },
            *(400, 401, 403, 404, 409, 410, 429, 500, 503),
        ),
    },
    ("get", "/streams/{stream_id}"): {
        "summary": "The job record",
        "parameters": [_STREAM],
        "responses": _answers(
            {200: {"description": "the newest generation", "content": _json("Job")}}, 400, 401, 403, 404, 500, 503
        ),
    },
    ("get", "/streams/{stream_id}/state"): {
        "summary": "What a page needs to draw itself, and to follow the job after `cursor`",
        "parameters": [_STREAM],
        "responses": _answers(
            {200: {"description": "the state", "content": _json("ResumeState")}}, 400, 401, 403, 404, 410, 500, 503
        ),
    },
    ("post", "/streams/{stream_id}/abort"): {
        "summary": "Stop the job, wherever it runs",
        "parameters": [_STREAM],
        "requestBody": {"description": "which generation is meant", "content": {"application/json": {"schema": _BODY}}},
        "responses": _answers(
            {200: {"description": "it has ended", "content": _json("AbortResult")}},
            *(400, 401, 403, 404, 408, 409, 413, 500, 503),
        ),
    },
    ("get", "/users/{user_id}/active"): {
        "summary": "A user's jobs that have not ended",
        "parameters": [_path("user_id", "the user"), _query("tenant", "of this tenant only", {"type": "string"})],
        "responses": _answers(
            {
                200: {
                    "description": "their stream ids",
                    "content": _fields(streamIds={"type": "array", "items": {"type": "string"}}),
                }
            },
            *(400, 401, 403, 404, 500, 503),
        ),
    },
    ("get", "/api/chat/{stream_id}/stream"): {
        "summary": "The AI SDK's stream of UI message chunks",
        "parameters": [
            _STREAM,
            _query(
                "startIndex",
                "how many chunks the client has; negative: how many it wants",
                {"type": "integer", "minimum": -999_999_999_999_999, "maximum": 999_999_999_999_999},
            ),
        ],
        "responses": _answers(
            {
                200: {
                    "description": "`data:` frames of one chunk each, the last of which is `[DONE]`",
                    "content": _CHUNKS,
                    "headers": {
                        "x-vercel-ai-ui-message-stream": {"schema": {"type": "string"}},
                        "x-workflow-stream-tail-index": {
                            "description": "with `startIndex`: the index of the newest chunk",
                            "schema": {"type": "integer"},
                        },
                    },
                },
                204: {"description": "nothing is active"},
            },
            *(400, 401, 403, 404, 409, 410, 429, 500, 503),
        ),
    },
    ("post", "/api/chat/{stream_id}/stop"): {
        "summary": "Stop the answer; too late is no error",
        "parameters": [_STREAM],
        "requestBody": {
            "description": "anything; it is not looked at",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        "responses": _answers(
            {
                200: {
                    "description": "nothing runs any more",
                    "content": _fields(stopped={"type": "boolean"}, collectedUsage=_USAGE),
                }
            },
            *(400, 401, 403, 404, 408, 413, 500, 503),
        ),
    },
    ("get", "/healthz"): {
        "summary": "Whether this process answers",
        "responses": _answers({200: {"description": "it does", "content": _fields(status={"const": "ok"})}}),
    },
    ("get", "/readyz"): {
        "summary": "Whether NATS, the stream and the bucket can be used",
        "responses": _answers(
            {200: {"description": "they can", "content": _fields(status={"const": "ready"})}}, 500, 503
        ),
    },
    ("get", "/metrics"): {
        "summary": "Figures for Prometheus",
        "responses": _answers(
            {200: {"description": "the text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
            *(401, 403, 500, 501),
        ),
    },
    ("get", "/openapi.json"): {
        "summary": "This document",
        "responses": _answers(
            {200: {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}}
        ),
    },
}
"""Every operation that a gateway can have, by method and path."""


class Description:
    """``/openapi.json``: the document of the routes that this gateway has."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        """``routes`` without the one that this adds."""
        own = Route("/openapi.json", self._document, methods=["GET"])
        self._all = [*routes, own]
        self.route: BaseRoute = own

    async def _document(self, request: Request) -> Response:
        return json_answer(document(self._all, root(request) or "/"))


def operations(routes: Iterable[BaseRoute]) -> set[tuple[str, str]]:
    """Method and path of what belongs into a document; HEAD comes with every GET."""
    return {
        (method.lower(), route.path)
        for route in routes
        if isinstance(route, Route) and route.include_in_schema
        for method in route.methods or ()
        if method != "HEAD"
    }


def document(routes: Iterable[BaseRoute], below: str = "/") -> Document:
    """The OpenAPI document of these routes ``below`` a path."""
    import natsjobs

    paths: dict[str, Document] = {}
    have = operations(routes)
    for (method, path), operation in OPERATIONS.items():
        if (method, path) in have:
            name = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
            paths.setdefault(path, {})[method] = {"operationId": name, **operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "natsjobs gateway",
            "version": natsjobs.__version__,
            "description": "Follow, resume and stop jobs on any replica. Errors are JSON with `error` and `message`.",
        },
        "servers": [{"url": below}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _schemas() -> Document:
    """The records in the form that ``to_dict`` gives: absent fields are left out, never null."""
    _, found = msgspec.json.schema_components([Job, ResumeState, AbortResult], ref_template=_REF)
    for schema in found.values():
        properties = cast("dict[str, Document]", schema.get("properties", {}))
        for name, field in properties.items():
            field.pop("default", None)
            kinds = [kind for kind in cast("list[Document]", field.get("anyOf", [])) if kind != {"type": "null"}]
            if len(kinds) == 1:
                properties[name] = kinds[0]
        if "enum" in schema:  # a newer version may know more of them
            schema["type"], schema["examples"] = "string", schema.pop("enum")
        schema["description"] = " ".join(str(schema.get("description", "")).replace("``", "`").split())
    usage = found["UsageMetadata"]
    usage["description"] = "Token usage of one model call, with whatever else the provider wrote beside it."
    usage["properties"].pop("extra")
    found["StreamEvent"] = {
        "type": "object",
        "description": "An event, or the terminal record of a generation, whose `index` is the number of its events.",
        "properties": {
            "type": {"type": "string", "examples": ["event", "done", "error", "aborted"]},
            "index": {"type": "integer"},
            "cursor": {"type": "string", "pattern": _CURSOR},
            "generation": {"type": "string"},
            "data": {"description": "the event as it was emitted; of an error its text"},
            "endReason": {"$ref": _REF.format(name="EndReason")},
        },
        "required": ["type", "index", "cursor", "generation", "data"],
    }
    found["Problem"] = {
        "type": "object",
        "description": "Why there is no other answer: `error` for programs, `message` for people.",
        "properties": {name: {"type": "string"} for name in ("error", "message", "streamId", "generation", "field")},
        "required": ["error", "message"],
    }
    return found
