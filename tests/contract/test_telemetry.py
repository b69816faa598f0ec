"""What an operator sees: figures that are right, and one trace from the worker to every reader."""

from __future__ import annotations

import asyncio

import pytest
from gateways import get
from making import rest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from waiting import eventually

from natsjobs import telemetry
from natsjobs.http import Action, GatewayConfig, bearer, owners
from natsjobs.telemetry.listening import hub


@pytest.fixture
def value():
    """A measure's value in Prometheus."""
    with telemetry.prometheus(CollectorRegistry()) as export:
        yield lambda name, **labels: export.registry.get_sample_value(name, labels)


@pytest.fixture
def spans():
    """Finished spans, by name."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with telemetry.opentelemetry(tracer_provider=provider, meter_provider=MeterProvider()):
        yield lambda name: [span for span in exporter.get_finished_spans() if span.name == name]
    provider.shutdown()


@pytest.fixture
def tracer(spans):
    """The application's own."""
    provider = TracerProvider()
    yield provider.get_tracer("app")
    provider.shutdown()


async def test_the_figures_of_a_run_are_those_that_happened(jobs, jobs_b, value):
    """Started, stored, running, read, ended: the same numbers that the application would count."""
    async with jobs.start("s", user_id="alice") as run:
        for number in range(20):
            await run.emit({"n": number})
            if number == 9:
                await run.flush()  # or all is one message, which whoever attaches has in hand without a page
        await run.record_usage({"input_tokens": 7, "output_tokens": 5})
        await run.flush()
        assert value("natsjobs_jobs_running") == 1
        assert value("natsjobs_connected") == 2
        async with jobs_b.subscribe("s") as events:
            assert value("natsjobs_readers") == 1
            for _ in range(20):
                await anext(events)
        assert value("natsjobs_readers") == 0
    assert value("natsjobs_jobs_running") == 0
    assert value("natsjobs_jobs_started_total") == 1
    assert value("natsjobs_events_total") == 20
    assert value("natsjobs_events_size_bytes_total") == sum(len(f'{{"n":{number}}}') for number in range(20))
    assert value("natsjobs_events_queued") == 0
    assert value("natsjobs_usage_tokens_total", type="input") == 7
    assert value("natsjobs_usage_tokens_total", type="output") == 5
    assert value("natsjobs_jobs_ended_total", status="complete", reason="") == 1
    stored = value("natsjobs_appends_total", outcome="stored")
    assert 2 <= stored <= 21
    assert value("natsjobs_append_duration_seconds_count") == stored
    assert value("natsjobs_pages_total") >= 1


async def test_every_end_is_counted_once_with_its_reason(jobs, jobs_b, value):
    """By whoever wrote it, wherever the owner is; aborts say whether the owner confirmed."""
    stop = asyncio.Event()

    async def work(run):
        await run.emit(1)
        await stop.wait()

    await jobs.spawn("s", work, user_id="alice")
    assert (await jobs_b.abort("s")).acknowledged
    assert not (await jobs_b.abort("s")).success
    with pytest.raises(ValueError, match="no"):
        async with jobs.start("t", user_id="alice"):
            raise ValueError("no")
    assert value("natsjobs_jobs_ended_total", status="aborted", reason="abort") == 1
    assert value("natsjobs_jobs_ended_total", status="error", reason="") == 1
    assert value("natsjobs_aborts_total", outcome="acknowledged") == 1
    assert value("natsjobs_aborts_total", outcome="refused") == 1
    assert value("natsjobs_aborts_total", outcome="unacknowledged") is None
    await jobs.spawn("s", work, user_id="alice")
    results = await asyncio.gather(*(one.abort("s") for one in (jobs, jobs_b) * 3))
    assert sum(result.success for result in results) == 1
    assert value("natsjobs_jobs_ended_total", status="aborted", reason="abort") == 2


async def test_the_jobs_of_a_dead_owner_are_counted(backend, value):
    """Who dies, and what it leaves."""
    config = backend.config(timing={"lease": 1.5, "renew": 0.5, "request": 1.0})
    owner, judge = await backend.replica(config), await backend.replica(config)
    await owner.store.create_job("s", "alice")
    async with judge.manager.subscribe("s") as events:
        await owner.kill()
        assert [event.end_reason async for event in events] == ["owner_lost"]
    await eventually(lambda: value("natsjobs_jobs_reaped_total") == 1)
    assert value("natsjobs_owners_lost_total") == 1
    assert value("natsjobs_jobs_ended_total", status="error", reason="owner_lost") == 1


async def test_waiting_for_room_is_measured(backend, value):
    """An emit that finds a full queue waits, and for how long is known."""
    replica = await backend.replica(backend.config(limits={"queue_events": 1}))
    async with replica.manager.start("s", user_id="alice") as run:
        await asyncio.gather(*(run.emit(number) for number in range(5)))
    assert value("natsjobs_backpressure_duration_seconds_count") >= 1


async def test_what_is_not_ours_is_counted(backend, replica, jobs, value):
    """Somebody else's message in a log is skipped, and not in silence."""
    async with jobs.start("s", user_id="alice") as run:
        await run.emit(1)
        await run.flush()
        context = replica.store.replica.context
        await context.link.events.append(context.subjects.log("s", run.job.generation), b"not ours")
    async with jobs.subscribe("s") as events:
        assert [event.data for event in await rest(events)] == [1, None]
    assert value("natsjobs_garbage_total", kind="a message in an event log") >= 1


async def test_a_worker_knows_its_stream_without_being_asked(backend, jobs, value):
    """Nobody checks its readiness: what it reads to keep room for ends is what its figures show."""
    await backend.limit(400 * 1024)
    async with jobs.start("s", user_id="alice") as run:
        await run.emit("x" * 40 * 1024)
        await run.flush()
        await eventually(lambda: (value("natsjobs_stream_size_bytes", stream="events") or 0) > 40 * 1024)
        assert value("natsjobs_stream_limit_bytes", stream="events") == 400 * 1024
    await eventually(lambda: value("natsjobs_stream_size_bytes", stream="events") is None, within=20)  # no stale alarm


async def test_a_failing_background_task_is_counted(jobs, value):
    """What is only in the log otherwise."""

    async def work(run):
        raise ValueError("no")

    await jobs.spawn("s", work, user_id="alice")
    await eventually(lambda: value("natsjobs_task_failures_total") == 1)


@pytest.mark.b_writes
async def test_losses_and_rivals_are_counted(replica, replica_b, backend, value):
    """A connection that breaks, a live path that is silent, another writer, an owner that says nothing."""
    store, transport = replica.store, replica.transport
    job = await store.create_job("s", "alice")
    async with replica_b.manager.subscribe("s") as events:
        await transport.emit_chunk("s", 0)
        await transport.flush("s")
        assert (await anext(events)).data == 0
        await replica_b.lose_live_messages()
        looks = value("natsjobs_looks_total")
        await replica_b.store.append_chunk("s", 1)
        await transport.emit_chunk("s", 2)
        await transport.flush("s")
        assert [(await anext(events)).data for _ in range(2)] == [1, 2]
        assert value("natsjobs_looks_total") > looks
    assert value("natsjobs_appends_total", outcome="refused") >= 1
    await replica_b.drop_connection()
    await eventually(lambda: value("natsjobs_reconnects_total") >= 1)
    await backend.put_record("garbage", "job", "t")
    await backend.put_record({"input_tokens": "many"}, "usage", "s", job.generation, "e")
    assert await replica_b.store.get_job("t") is None
    assert value("natsjobs_garbage_total", kind="a key of the bucket") >= 1
    await replica.kill()
    assert not (await replica_b.manager.abort("s")).acknowledged
    assert value("natsjobs_aborts_total", outcome="unacknowledged") == 1
    assert value("natsjobs_garbage_total", kind="a usage entry") >= 1
    await eventually(lambda: value("natsjobs_connected") == 1)


# -- traces -----------------------------------------------------------------------------------------------------------


async def test_worker_and_reader_are_in_one_trace(jobs, jobs_b, spans, tracer):
    """Across replicas, through the job record: request → run → model call, and run → reader, with a link to its own."""
    with tracer.start_as_current_span("request") as request:
        async with jobs.start("s", user_id="alice", conversation_id="c", model="m") as run:
            with tracer.start_as_current_span("model call") as call:
                await run.emit(1)
            await run.record_usage({"input_tokens": 7, "output_tokens": 5, "model": "m-2026", "provider": "p"})
            await run.record_usage({"input_tokens": 1})
        assert trace.get_current_span() is request
    with tracer.start_as_current_span("page") as page:
        async with jobs_b.subscribe("s") as events:
            assert len(await rest(events)) == 2
    (worker,), (reader,) = spans("natsjobs.run"), spans("natsjobs.read")
    assert worker.parent.span_id == request.get_span_context().span_id
    assert call.parent.span_id == worker.context.span_id
    assert reader.parent.span_id == worker.context.span_id
    assert {worker.context.trace_id, reader.context.trace_id} == {request.get_span_context().trace_id}
    assert [link.context.span_id for link in reader.links] == [page.get_span_context().span_id]
    about = {"messaging.system": "nats", "natsjobs.stream_id": "s", "natsjobs.generation": run.job.generation}
    assert dict(worker.attributes) == {
        **about,
        "natsjobs.status": "complete",
        "gen_ai.conversation.id": "c",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m-2026",
        "gen_ai.provider.name": "p",
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 5,
    }
    assert dict(reader.attributes) == {**about, "natsjobs.position": 2}
    declared = {span.name: set(span.attributes) for span in telemetry.SPANS}
    assert set(worker.attributes) | {"natsjobs.end_reason"} == declared["natsjobs.run"]
    assert set(reader.attributes) == declared["natsjobs.read"]


async def test_a_run_that_others_end_has_an_end_in_its_trace(jobs, jobs_b, spans):
    """Its span closes when the owner hears of it, and says why; each turn of a conversation is a trace of its own."""

    async def work(run):
        await asyncio.Event().wait()

    await jobs.spawn("s", work, user_id="alice")
    async with jobs_b.subscribe("s", follow=True) as events:
        await jobs_b.abort("s")
        await anext(events)
        await jobs.spawn("s", work, user_id="alice")
        await jobs_b.abort("s")
        await anext(events)
    first, second = await eventually(lambda: len(found := spans("natsjobs.run")) == 2 and found)
    assert first.attributes["natsjobs.end_reason"] == second.attributes["natsjobs.end_reason"] == "abort"
    assert first.context.trace_id != second.context.trace_id
    read = [span.context.trace_id for span in spans("natsjobs.read")]
    assert read == [first.context.trace_id, second.context.trace_id]


async def test_a_record_without_or_with_a_broken_trace_is_read_all_the_same(replica, jobs, jobs_b, spans):
    """Older versions write none, and anybody may write anything: the reader then begins a trace of its own."""
    await replica.store.create_job("s", "alice")
    context = replica.store.replica.context
    key = context.subjects.record("job", "s")
    for stored in (None, "x", {"traceparent": 5}, {"traceparent": "00-zz"}, {"other": {}}):
        slot = await context.records.read(key)
        await context.records.write(key, {**slot.value, "trace": stored}, expect=slot.revision)
        async with jobs_b.subscribe("s"):
            pass
    assert [span.parent for span in spans("natsjobs.read")] == [None] * 5


async def test_without_a_tracer_nothing_of_it_is_stored(replica):
    """The record is the one of version 1, to the letter."""
    assert hub.tracer is None
    await replica.store.create_job("s", "alice")
    context = replica.store.replica.context
    assert "trace" not in (await context.records.read(context.subjects.record("job", "s"))).value


async def test_opentelemetry_gets_the_measures_too(jobs):
    """Counters, histograms and gauges under the names of the table."""
    reader = InMemoryMetricReader()
    with telemetry.opentelemetry(tracer_provider=TracerProvider(), meter_provider=MeterProvider([reader])):
        async with jobs.start("s", user_id="alice") as run:
            await run.emit(1)
            await run.flush()
            found = {
                metric.name: metric
                for resource in reader.get_metrics_data().resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }
    assert set(found) <= {measure.name for measure in telemetry.MEASURES}
    assert found["natsjobs.jobs.running"].data.data_points[0].value == 1
    assert found["natsjobs.events"].data.data_points[0].value == 1
    duration = found["natsjobs.append.duration"]
    assert (duration.unit, duration.data.data_points[0].count) == ("s", 1)
    assert found["natsjobs.appends"].data.data_points[0].attributes == {"outcome": "stored"}


# -- /metrics ---------------------------------------------------------------------------------------------------------


async def test_the_gateway_serves_what_happened(open_gateway, jobs):
    """Its own answers and readers among it, and the sizes of stream and bucket; never an id."""
    gate = await open_gateway(jobs)
    async with jobs.start("conv-secret", user_id="user-secret") as run:
        await run.emit("secret-text")
        assert (await gate.client.get("/streams/none")).status_code == 404
        assert len(await gate.events("/streams/conv-secret/events", stop=1)) == 1
        answer = await gate.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'natsjobs_http_responses_total{status="404"} 1.0' in lines
    assert 'natsjobs_http_responses_total{status="200"} 1.0' in lines
    assert "natsjobs_jobs_running 1.0" in lines
    assert "natsjobs_http_open 1.0" in lines
    (size,) = [line for line in lines if line.startswith('natsjobs_stream_size_bytes{stream="events"}')]
    assert float(size.split()[1]) > 0
    (sent,) = [line for line in lines if line.startswith("natsjobs_http_feed_size_bytes_total")]
    assert float(sent.split()[1]) > 20
    assert "secret" not in answer.text


async def test_clients_that_are_shown_out_are_counted(open_gateway, jobs, value):
    """Those who take nothing, and those who never stop talking."""
    gate = await open_gateway(jobs, config=GatewayConfig(request_bytes=1000))
    async with jobs.start("s", user_id="alice"):
        _, writer = await gate.raw(get("/streams/s/events", "Content-Length: 100000"))
        await eventually(lambda: value("natsjobs_http_feeds") == 1)
        writer.write(b"x" * 5000)
        await eventually(lambda: value("natsjobs_http_cut_total") == 1)
        writer.close()


async def test_figures_are_for_whom_the_hook_lets_observe(open_gateway, jobs):
    """By default the hook is asked, and ``owners`` refuses; open and off are settings."""
    asked = []

    def observer(request, stream_id, action):
        asked.append((stream_id, action))
        return request.headers.get("x-token") == "prometheus"

    gate = await open_gateway(jobs, authorize=observer)
    assert (await gate.client.get("/metrics")).status_code == 403
    assert (await gate.client.get("/metrics", headers={"x-token": "prometheus"})).status_code == 200
    assert asked == [(None, Action.OBSERVE)] * 2
    rules = owners(jobs, bearer({"t": "alice"}))
    alice = {"Authorization": "Bearer t"}
    for metrics, status in (("authorized", 403), ("open", 200), ("off", 404)):
        gate = await open_gateway(jobs, authorize=rules, config=GatewayConfig(metrics=metrics))
        assert (await gate.client.get("/metrics", headers=alice)).status_code == status
    assert (await gate.client.get("/metrics")).status_code == 404


async def test_a_gateway_that_is_closed_measures_nothing(open_gateway, jobs):
    """It leaves nothing behind in the process."""
    assert not hub.on
    gate = await open_gateway(jobs)
    assert hub.on
    gate.app.close()
    assert not hub.on
