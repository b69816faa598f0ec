"""The wire layout, version 1, as the ``nats`` command line sees it: golden files of everything that is stored or sent.

The requests are those of ``nats stream ls / info / subjects / get``, ``nats kv get``, ``nats consumer ls``,
``nats sub`` and ``nats req``. Volatile values have placeholders; with ``UPDATE_GOLDEN=1`` in the environment the files
are written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from backends import NatsBackend
from nats.aio.msg import Msg
from strangers import Stored, Stranger
from waiting import Heard, eventually, known, take

GOLDEN = Path(__file__).parent / "golden"
TIMES = {"createdAt", "completedAt", "lastActiveAt", "at"}
TOKENS = {"writer", "write", "request", "replica", "owner", "id"}
SERVERS = {"nats-2.15": "newest_server", "nats-2.11": "oldest_server"}


@pytest.fixture(params=SERVERS)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[NatsBackend]:
    """A namespace of its own; the layout is the same on every server."""
    async with NatsBackend("nats", request.getfixturevalue(SERVERS[request.param])) as backend:
        yield backend


def check(name: str, found: Any) -> None:
    """What was found is what the golden file says, in the same order of fields."""
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


class Plain:
    """Volatile values out, placeholders in; the same value has the same placeholder."""

    def __init__(self, backend: NatsBackend) -> None:
        self._namespace = backend.namespace
        self._names: dict[str, str] = {}

    def value(self, value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {self.text(key): self.value(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if field in TIMES:
            assert isinstance(value, int)
            assert value > 1_700_000_000_000
            return "<ms>"
        if not isinstance(value, str):
            return value
        if field in TOKENS and re.fullmatch(r"r?[0-9a-v]{10,16}", value):
            return self._names.setdefault(value, f"<{field} {len(self._names) + 1}>")
        return f"<{len(value)} characters>" if len(value) > 1000 else self.text(value)

    def text(self, text: str) -> str:
        for generation in sorted(set(re.findall(r"\b1[0-9a-v]{18}\b", text))):
            text = text.replace(generation, "<generation>")
        text = re.sub(r"\.r[0-9a-v]{12}\b", ".<replica>", text)
        text = re.sub(r"(usage\..*)\.[0-9a-v]{16}$", r"\1.<id>", text)
        return text.replace(self._namespace, "<ns>")

    def message(self, message: Stored) -> Any:
        headers = {name: self.text(value) for name, value in message.headers.items()}
        if message.subject.startswith("$KV") and "Nats-Expected-Last-Subject-Sequence" in headers:
            headers["Nats-Expected-Last-Subject-Sequence"] = "<revision>"
        return {"subject": self.text(message.subject), "headers": headers, "body": self.value(message.body)}


async def play(backend: NatsBackend) -> Any:
    """Every kind of record and message once; the replica, still open."""
    a = await backend.replica(backend.config(timing={"lease": 60, "renew": 20, "sweep": 600}))
    store, transport = a.store, a.transport
    fields: dict[str, Any] = {"user_message": {"message_id": "m1", "text": "hé"}, "metadata": {"k": [1, "é"]}}
    job = await store.create_job(
        "conv 1", "alice@example.com", "conv 1", tenant_id="t", icon_url="https://example.com/i.png", **fields
    )
    await store.append_chunk("conv 1", {"text": "é"})
    for n in range(3):
        await transport.emit_chunk("conv 1", n)
    await transport.flush("conv 1")
    await store.append_chunk("conv 1", "x" * 1_200_000)
    await store.record_usage("conv 1", {"input_tokens": 3, "output_tokens": 4, "model": "m"})
    await store.save_run_steps("conv 1", [{"id": "step_1", "title": "é"}])
    await store.end_job("conv 1", generation=job.generation, status="complete", final_event={"text": "é"})
    await store.create_job("running", "bob")
    await store.append_chunk("running", {"n": 1})
    await store.create_job("aborted", "bob")
    await a.manager.abort("aborted")
    await store.create_job("failed", "bob")
    await store.update_job("failed", status="error", error="é broke")
    job = await store.create_job("large", "bob")
    await store.end_job("large", generation=job.generation, status="complete", final_event="y" * 100_000)
    await store.create_job("cleared", "bob")
    await store.append_chunk("cleared", {"n": 1})
    await store.clear_content_state("cleared")
    await store.create_job("deleted", "bob")
    await store.append_chunk("deleted", {"n": 1})
    await store.delete_job("deleted")
    return a


async def test_everything_that_is_stored_is_as_the_layout_says(backend: NatsBackend) -> None:
    """Subjects, headers, bodies, keys, markers and tombstones, in the order in which they were stored."""
    await play(backend)
    stranger, plain = await Stranger.of(backend), Plain(backend)
    log = await stranger.all(stranger.events, f"{backend.subjects.events_prefix}>")
    check("log", [plain.message(message) for message in log])
    bucket = await stranger.all(stranger.bucket, f"{backend.subjects.record_prefix}>")
    # What is removed for good goes after a second; `republished` shows it.
    check("bucket", [plain.message(message) for message in bucket if message.headers["Nats-TTL"] != "1"])
    for message in [*log, *bucket]:
        ours = [name for name in message.headers if not name.startswith("Nats-") and name != "KV-Operation"]
        assert not ours
    for message in bucket:
        text = message.raw.decode("ascii")
        assert "\n" not in text
        if ".job." in message.subject and "KV-Operation" not in message.headers:
            for field in ("status", "streamId", "generation"):
                assert text.index(f'"{field}"') < 100, "the command line cuts at 120"
            assert list(message.body)[:4] == ["status", "streamId", "generation", "userId"]


async def test_the_command_line_finds_its_way(backend: NatsBackend) -> None:
    """Streams are listed with a description, subjects are one line per log, keys can be got, no consumers."""
    a = await play(backend)
    stranger, plain = await Stranger.of(backend), Plain(backend)
    named = {"subject": f"{backend.subjects.events_prefix}running.>"}
    assert (await stranger.api("STREAM.NAMES", named))["streams"] == [stranger.events]
    listed = {s["config"]["name"]: s["config"] for s in (await stranger.api("STREAM.LIST", {"offset": 0}))["streams"]}
    settings = []
    for name in (stranger.events, stranger.bucket):
        config = listed[name]
        config["metadata"] = {k: v for k, v in config["metadata"].items() if not k.startswith("_nats")}
        sent = {"name", "description", "subjects", "metadata", "retention", "storage", "num_replicas", "discard"}
        sent |= {"max_age", "max_msgs_per_subject", "duplicate_window", "republish", "deny_delete"}
        sent |= {"allow_direct", "allow_rollup_hdrs", "allow_msg_ttl", "subject_delete_marker_ttl", "max_bytes"}
        settings.append(plain.value({key: value for key, value in sorted(config.items()) if key in sent}))
    check("streams", settings)
    info = await stranger.api(f"STREAM.INFO.{stranger.events}", {"subjects_filter": ">"})
    check("subjects", dict(sorted((plain.text(s), count) for s, count in info["state"]["subjects"].items())))
    job = await a.manager.get("running")
    key = "job.running"
    direct = await stranger.nc.request(f"$JS.API.DIRECT.GET.{stranger.bucket}.$KV.{backend.subjects.bucket}.{key}")
    assert json.loads(direct.data)["generation"] == job.generation
    kv = await stranger.nc.jetstream().key_value(backend.subjects.bucket)
    assert json.loads((await kv.get(key)).value or b"")["status"] == "running"
    assert (await stranger.get(stranger.events, last_by_subj=backend.subjects.log("running", job.generation))).body[
        "events"
    ] == [{"n": 1}]
    heard = Heard()
    subscription = await heard.attach(a.transport, "running")
    async with a.manager.subscribe("running") as events:
        await take(events, 1)
        for name in (stranger.events, stranger.bucket):
            for operation in ("NAMES", "LIST"):
                answer = await stranger.api(f"CONSUMER.{operation}.{name}")
                assert (answer["total"], answer["consumers"] or []) == (0, [])
            assert (await stranger.api(f"STREAM.INFO.{name}"))["state"]["consumer_count"] == 0
    await subscription.unsubscribe()


async def test_what_is_republished_goes_where_the_layout_says(backend: NatsBackend) -> None:
    """``nats sub '{ns}.live.>'`` and ``'{ns}.kv.>'`` show every stored message, with the server's headers."""
    stranger, plain = await Stranger.of(backend), Plain(backend)
    seen: list[Msg] = []

    async def hear(message: Msg) -> None:
        seen.append(message)

    a = await backend.replica(backend.config(timing={"lease": 60, "renew": 20, "sweep": 600}))
    for name in ("live", "kv"):
        await stranger.nc.subscribe(f"{backend.namespace}.{name}.>", cb=hear)
    await known(stranger.nc)
    await a.store.create_job("s", "bob")
    await a.store.append_chunk("s", {"text": "é"})
    await a.manager.abort("s")
    await a.store.delete_job("s")
    await eventually(lambda: len(seen) >= 9)
    found = []
    for message in seen:
        headers = dict(message.headers or {})
        assert headers.pop("Nats-Time-Stamp")
        assert int(headers.pop("Nats-Sequence")) > int(headers.pop("Nats-Last-Sequence"))
        headers = {name: plain.text(value) for name, value in headers.items() if not name.startswith("Nats-Expected")}
        body = plain.value(json.loads(message.data)) if message.data else None
        found.append({"subject": plain.text(message.subject), "headers": headers, "body": body})
    found.sort(key=lambda one: one["subject"].split(".")[1])  # two streams, each in order
    check("republished", found)


async def test_what_is_said_on_core_subjects_is_as_the_layout_says(backend: NatsBackend) -> None:
    """Abort, presence, joins, and the owner's answers, as ``nats sub`` and ``nats req`` show them."""
    stranger, plain = await Stranger.of(backend), Plain(backend)
    a, b = await backend.replica(), await backend.replica()
    said: list[Any] = []

    async def hear(message: Msg) -> None:
        if message.subject.split(".")[1] in {"abort", "joined", "owner", "presence"}:
            body = json.loads(message.data)
            if body.get("op") != "ping":
                said.append({"subject": plain.text(message.subject), "body": plain.value(body)})

    spy = await stranger.nc.subscribe(f"{backend.namespace}.>", cb=hear)
    await known(stranger.nc)
    job = await a.store.create_job("s", "bob")
    subscription = await Heard().attach(b.transport, "s")
    await eventually(lambda: len(said) >= 1)
    assert await a.transport.count_subscribers("s") == 1
    await a.transport.on_abort("s", lambda: None)
    await b.transport.emit_abort("s")
    await b.manager.abort("s", final_event={"text": "é"})
    await subscription.unsubscribe()
    await eventually(lambda: len(said) >= 6)
    await spy.unsubscribe()
    owner, presence = backend.subjects.owner(a.store.replica_id), backend.subjects.presence("s")
    subscription = await Heard().attach(b.transport, "s")
    asked = [
        (backend.subjects.abort("s"), {}),
        (backend.subjects.abort("s"), {"generation": job.generation, "id": "by hand"}),
        (presence, {}),
        (owner, {"op": "ping", "runs": [["s", job.generation]]}),
        (owner, {"op": "signal", "stream": "s", "generation": "another", "id": "by hand"}),
        (owner, None),
    ]
    answers = [
        {
            "ask": plain.text(subject),
            "with": plain.value(body),
            "answer": plain.value(await stranger.ask(subject, body)),
        }
        for subject, body in asked
    ]
    await subscription.unsubscribe()
    check("core", {"said": said, "answered": answers})


async def stored(backend: NatsBackend, name: str) -> Stranger:
    """Put what a golden file holds into stream and bucket, as another version of the library has left it."""
    stranger = await Stranger.of(backend)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    for key, value in golden["bucket"].items():
        await stranger.store(f"{backend.subjects.record_prefix}{key}", json.dumps(value).encode())
    for subject, body in golden["log"]:
        await stranger.store(
            f"{backend.subjects.events_prefix}{subject}", json.dumps(body, ensure_ascii=False).encode()
        )
    return stranger


async def test_what_version_1_has_written_is_still_read(backend: NatsBackend) -> None:
    """Records, logs, steps and usage of a replica that is gone: read, followed, ended, as if they were our own."""
    a = await backend.replica()
    await stored(backend, "written_by_version_1")
    job = await a.manager.get("conv 1")
    assert (job.status, job.user_id, job.created_at) == ("running", "alice@example.com", 1795338549173)
    assert (job.user_message.text, job.icon_url, job.prompt_tokens) == ("hé", "https://example.com/i.png", 7)
    assert job.metadata == {"k": [1, None]}
    assert await a.manager.active("alice@example.com") == ["conv 1"]
    assert [j.stream_id for j in await a.manager.list_jobs()] == ["done", "conv 1"]
    assert await a.store.get_run_steps("conv 1") == [{"id": "step_1", "type": "message_creation"}]
    async with a.manager.subscribe("conv 1") as events:
        got = await take(events, 4)
        assert [event.data for event in got] == [{"a": 1}, "zwei", [3], "half and half"]
        result = await a.manager.abort("conv 1")
        assert [entry.input_tokens for entry in result.collected_usage] == [3]
        end = (await take(events, 1))[0]
        assert (end.type, end.index) == ("aborted", 4)
    async with a.manager.subscribe("done") as events:
        assert [(e.type, e.index, e.data) for e in await take(events, 1)] == [("done", 2, {"text": "all"})]


async def test_c5_what_a_newer_version_has_written_is_kept(backend: NatsBackend) -> None:
    """Unknown fields and an unknown status stay in the record on update; unknown log records count, and are skipped."""
    a = await backend.replica(backend.config(fold=lambda values: [{"type": "text", "text": str(v)} for v in values]))
    stranger = await stored(backend, "written_by_a_newer_version")
    job = await a.manager.get("c")
    assert (str(job.status), job.status.is_terminal) == ("requires_action", False)
    assert [j.stream_id for j in await a.manager.list_jobs()] == ["c"]
    assert await a.manager.active("u") == ["c"]
    assert await a.store.update_job("c", sender="alice")
    record = await stranger.get(stranger.bucket, last_by_subj=backend.subjects.record("job", "c"))
    golden = json.loads((GOLDEN / "written_by_a_newer_version.json").read_text())["bucket"]["job.c"]
    kept = {**golden, "sender": "alice", "write": record.body["write"]}
    assert record.body == kept
    assert list(record.body)[:3] == ["status", "streamId", "generation"]
    heard = Heard()
    subscription = await heard.attach(a.transport, "c")
    assert await a.store.append_chunk("c", "four") == 4
    await heard.until(1)
    await subscription.unsubscribe()
    async with a.manager.subscribe("c") as events:
        got = await take(events, 5)
        assert [(e.index, str(e.type)) for e in got] == [
            (0, "event"), (1, "approval"), (2, "event"), (3, "steer"), (4, "event"),
        ]  # fmt: skip
        assert not any(event.is_terminal for event in got)
        assert [event.data for event in got] == ["zero", {"tool": "shell"}, "two", None, "four"]
    async with a.manager.subscribe("c", after=got[1].cursor) as events:
        assert [e.index for e in await take(events, 3)] == [2, 3, 4]
    assert [part["text"] for part in await a.store.get_content_parts("c") or []] == ["zero", "two", "four"]
    assert await a.manager.abort("c")
    ended = (await stranger.get(stranger.bucket, last_by_subj=backend.subjects.record("job", "c"))).body
    assert (ended["status"], ended["epoch"], ended["pendingAction"]) == ("aborted", 3, golden["pendingAction"])
    assert await stranger.keys("inbox") == [f"{backend.subjects.record_prefix}inbox.c.1"]
    await a.store.cleanup()
    assert await stranger.keys("inbox")
