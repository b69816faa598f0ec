"""Never run, only type-checked, by mypy and pyright, both strict: the types people see.

A type that changes here changes programs that others have written.
"""

from __future__ import annotations

import ssl
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, assert_type

import nats
from nats.aio.client import Client
from starlette.requests import Request

import natsjobs
from natsjobs import (
    AbortResult,
    Config,
    ContentPart,
    EndReason,
    EventReader,
    EventTransport,
    EventType,
    InputTokenDetails,
    Job,
    JobChanges,
    JobFields,
    JobManager,
    JobRun,
    JobStatus,
    JobStore,
    Limits,
    MemoryEventTransport,
    MemoryJobStore,
    NatsEventTransport,
    NatsJobStore,
    Registration,
    ResumeState,
    Retention,
    RunStep,
    StreamEvent,
    Subscription,
    Timing,
    UsageMetadata,
    UserMessage,
    embedded,
)
from natsjobs.content import ContentFold, fold
from natsjobs.http import Action, Authorize, Gateway, GatewayConfig, bearer, encode_sse, gateway, owners, this_machine
from natsjobs.memory import MemorySystem
from natsjobs.usage import UsageTotals, spend_collected_usage

# -- records ----------------------------------------------------------------------------------------------------


def records(job: Job, event: StreamEvent, result: AbortResult, state: ResumeState, usage: UsageMetadata) -> None:
    assert_type(job.stream_id, str)
    assert_type(job.user_id, str)
    assert_type(job.status, JobStatus)
    assert_type(job.status.is_terminal, bool)
    assert_type(job.created_at, int)
    assert_type(job.generation, str)
    assert_type(job.completed_at, int | None)
    assert_type(job.conversation_id, str | None)
    assert_type(job.error, str | None)
    assert_type(job.user_message, UserMessage | None)
    assert_type(job.response_message_id, str | None)
    assert_type(job.sender, str | None)
    assert_type(job.sync_sent, bool)
    assert_type(job.final_event, str | None)
    assert_type(job.endpoint, str | None)
    assert_type(job.icon_url, str | None)
    assert_type(job.model, str | None)
    assert_type(job.prompt_tokens, int | None)
    assert_type(job.owner, str | None)
    assert_type(job.end_reason, EndReason | None)
    assert_type(job.last_active_at, int | None)
    assert_type(job.tenant_id, str | None)
    assert_type(job.metadata, dict[str, Any] | None)

    message = UserMessage(message_id="m")
    assert_type(message.message_id, str)
    assert_type(message.parent_message_id, str | None)
    assert_type(message.conversation_id, str | None)
    assert_type(message.text, str | None)

    assert_type(event.type, EventType)
    assert_type(event.is_terminal, bool)
    assert_type(event.index, int)
    assert_type(event.cursor, str)
    assert_type(event.generation, str)
    assert_type(event.end_reason, EndReason | None)
    assert_type(event.data, Any)
    assert_type(event.raw, bytes)

    assert_type(result.success, bool)
    assert_type(result.job_data, Job | None)
    assert_type(result.content, list[ContentPart])
    assert_type(result.final_event, Any)
    assert_type(result.text, str)
    assert_type(result.collected_usage, list[UsageMetadata])
    assert_type(result.acknowledged, bool)
    assert_type(result.reason, str | None)

    assert_type(state.run_steps, list[RunStep])
    assert_type(state.aggregated_content, list[ContentPart])
    assert_type(state.user_message, UserMessage | None)
    assert_type(state.response_message_id, str | None)
    assert_type(state.conversation_id, str | None)
    assert_type(state.sender, str | None)
    assert_type(state.generation, str)
    assert_type(state.status, JobStatus)
    assert_type(state.cursor, str)
    assert_type(state.collected_usage, list[UsageMetadata])

    assert_type(usage.id, str | None)
    assert_type(usage.input_tokens, int | None)
    assert_type(usage.output_tokens, int | None)
    assert_type(usage.total_tokens, int | None)
    assert_type(usage.model, str | None)
    assert_type(usage.provider, str | None)
    assert_type(usage.input_token_details, InputTokenDetails | None)
    assert_type(usage.cache_creation_input_tokens, int | None)
    assert_type(usage.cache_read_input_tokens, int | None)
    assert_type(usage.cache_creation, int)
    assert_type(usage.cache_read, int)
    assert_type(usage.extra, dict[str, Any])

    for record in (job, event, result, state, usage, message):
        assert_type(natsjobs.to_dict(record), dict[str, Any])

    part: ContentPart = {"type": "text", "text": "a"}
    step: RunStep = {"id": "s"}
    assert_type(part, dict[str, Any])
    assert_type(step, dict[str, Any])


def enums() -> None:
    statuses = [JobStatus.RUNNING, JobStatus.COMPLETE, JobStatus.ERROR, JobStatus.ABORTED]
    assert_type(statuses, list[JobStatus])
    reasons = [
        EndReason.ABORT,
        EndReason.REPLACED,
        EndReason.DELETED,
        EndReason.OWNER_LOST,
        EndReason.EXPIRED,
        EndReason.CANCELLED,
        EndReason.SHUTDOWN,
    ]
    assert_type(reasons, list[EndReason])
    types = [EventType.EVENT, EventType.DONE, EventType.ERROR, EventType.ABORTED]
    assert_type(types, list[EventType])
    text: str = JobStatus.RUNNING
    assert_type(text.upper(), str)


FIELDS: JobFields = {
    "user_message": UserMessage(message_id="m"),
    "response_message_id": "r",
    "sender": None,
    "sync_sent": True,
    "endpoint": "agents",
    "icon_url": None,
    "model": "m",
    "prompt_tokens": 3,
    "metadata": {"any": ["json"]},
}
CHANGES: JobChanges = {
    "sender": "AI",
    "conversation_id": "c",
    "status": "complete",
    "error": None,
    "completed_at": 1,
    "final_event": "{}",
}

# -- settings ---------------------------------------------------------------------------------------------------


def settings() -> None:
    config = Config(
        namespace="n",
        replicas=3,
        storage="memory",
        retention=Retention(running=0.0, finished=1, usage=2),
        limits=Limits(event_bytes=1, id_bytes=2, queue_events=3, queue_bytes=4, reader_events=5),
        timing=Timing(lease=10.0, renew=3, linger=0, linger_unwatched=0.5, request=5, abort=2, give_up=60),
        fold=fold,
        enc_hook=str,
        domain="d",
        allow_loss=True,
    )
    assert_type(config.namespace, str)
    assert_type(config.replicas, int)
    assert_type(config.storage, Literal["file", "memory"])
    assert_type(config.retention, Retention)
    assert_type(config.limits, Limits)
    assert_type(config.timing, Timing)
    assert_type(config.domain, str | None)
    assert_type(config.allow_loss, bool)
    assert_type(config.retention.running, float)
    assert_type(config.limits.event_bytes, int)
    assert_type(config.timing.lease, float)
    assert_type(Config.from_env(), Config)


# -- the two interfaces -----------------------------------------------------------------------------------------


async def store(jobs: JobStore, status: JobStatus) -> None:
    assert_type(await jobs.initialize(), None)
    assert_type(await jobs.check(), None)
    job = await jobs.create_job("s", "u", "c", tenant_id="t", if_running="reject", model="m", user_message=None)
    assert_type(job, Job)
    assert_type(await jobs.create_job("s", "u", **FIELDS), Job)
    assert_type(await jobs.get_job("s"), Job | None)
    assert_type(await jobs.has_job("s"), bool)
    assert_type(await jobs.update_job("s", expected_generation="g", status=status, final_event="{}"), bool)
    assert_type(await jobs.update_job("s", **CHANGES), bool)
    assert_type(await jobs.delete_job("s", expected_generation="g"), bool)
    assert_type(await jobs.list_jobs(user_id="u", status="running", tenant_id="t"), list[Job])
    assert_type(await jobs.list_jobs(status=status), list[Job])
    assert_type(await jobs.get_running_jobs(), list[Job])
    assert_type(await jobs.get_active_job_ids_by_user("u", tenant_id="t"), list[str])
    assert_type(await jobs.get_job_count(), int)
    assert_type(await jobs.get_job_count_by_status("running"), int)
    assert_type(await jobs.get_job_count_by_status(status), int)
    assert_type(await jobs.cleanup(), int)
    assert_type(jobs.set_graph("s", object()), None)
    assert_type(jobs.set_content_parts("s", [{"type": "text"}]), None)
    assert_type(await jobs.get_content_parts("s"), list[ContentPart] | None)
    assert_type(await jobs.get_run_steps("s"), list[RunStep])
    assert_type(await jobs.save_run_steps("s", [{"id": "s1"}], generation="g"), None)
    assert_type(await jobs.get_resume_state("s"), ResumeState | None)
    assert_type(await jobs.append_chunk("s", {"any": "json"}, generation="g"), int)
    assert_type(await jobs.clear_content_state("s", generation="g"), None)
    assert_type(jobs.set_collected_usage("s", []), None)
    assert_type(await jobs.get_collected_usage("s"), list[UsageMetadata])
    assert_type(await jobs.record_usage("s", {"input_tokens": 1}, generation="g"), None)
    assert_type(await jobs.record_usage("s", UsageMetadata(input_tokens=1)), None)
    assert_type(await jobs.claim_usage("s", generation="g"), list[UsageMetadata])
    assert_type(await jobs.destroy(), None)


async def transport(events: EventTransport) -> None:
    async def slow(event: Any) -> None: ...

    def quick(event: Any) -> None: ...

    async def slow_callback() -> None: ...

    def quick_callback() -> None: ...

    def ended(event: StreamEvent) -> None:
        assert_type(event, StreamEvent)

    subscription = await events.subscribe("s", on_chunk=slow, on_done=quick, on_error=slow, on_aborted=quick)
    assert_type(subscription, Subscription)
    assert_type(await subscription.unsubscribe(), None)
    reading = events.read("s", after="cursor", generation="g", wait=1.0, follow=True)
    assert_type(reading, AbstractAsyncContextManager[EventReader, None])
    assert_type(await events.emit_chunk("s", [1, "any"], generation="g"), None)
    assert_type(await events.flush("s"), None)
    assert_type(await events.emit_done("s", None, generation="g"), None)
    assert_type(await events.emit_error("s", "text", generation="g"), None)
    assert_type(await events.emit_abort("s", generation="g"), bool)
    registration = await events.on_abort("s", slow_callback, generation="g")
    assert_type(registration, Registration)
    assert_type(await registration.dispose(), None)
    assert_type(await events.on_end("s", ended, generation="g"), Registration)
    assert_type(events.get_subscriber_count("s"), int)
    assert_type(events.is_first_subscriber("s"), bool)
    assert_type(await events.count_subscribers("s"), int)
    assert_type(await events.count_events("s", generation="g"), int)
    assert_type(await events.on_all_subscribers_left("s", quick_callback), Registration)
    assert_type(await events.cleanup("s"), None)
    assert_type(events.get_tracked_stream_ids(), list[str])
    assert_type(await events.destroy(), None)


async def implementations(nc: Client) -> None:
    """Both pairs are what the Protocols say, with and without settings."""
    memory = MemoryJobStore()
    stores: list[JobStore] = [
        NatsJobStore(nc),
        NatsJobStore(nc, Config()),
        memory,
        MemoryJobStore(Config(), system=MemorySystem()),
    ]
    transports: list[EventTransport] = [
        NatsEventTransport(nc),
        NatsEventTransport(nc, Config()),
        MemoryEventTransport(memory),
    ]
    JobManager(stores[0], transports[0], config=Config())


# -- what people use --------------------------------------------------------------------------------------------


async def connecting() -> None:
    assert_type(natsjobs.connect("nats://localhost:4222"), AbstractAsyncContextManager[JobManager, None])
    assert_type(natsjobs.connect(), AbstractAsyncContextManager[JobManager, None])
    assert_type(natsjobs.connect(["nats://a:4222", "nats://b:4222"]), AbstractAsyncContextManager[JobManager, None])
    natsjobs.connect("tls://a", config=Config(), user_credentials="u.creds", tls=ssl.create_default_context())
    nc = await nats.connect("nats://localhost:4222")  # pyright: ignore[reportUnknownMemberType]
    async with natsjobs.connect(nc=nc) as jobs:
        assert_type(jobs, JobManager)


async def manager(jobs: JobManager) -> None:
    assert_type(jobs.store, JobStore)
    assert_type(jobs.transport, EventTransport)
    async with jobs as opened:
        assert_type(opened, JobManager)

    async def work(run: JobRun) -> None: ...

    starting = jobs.start("s", user_id="u", conversation_id="c", tenant_id="t", if_running="reject", model="m")
    assert_type(starting, AbstractAsyncContextManager[JobRun, bool])
    assert_type(await jobs.spawn("s", work, user_id="u", if_running="replace", metadata={"a": 1}), Job)
    assert_type(await jobs.drain(), int)
    assert_type(await jobs.drain(2.5), int)
    assert_type(await jobs.abort("s", generation="g", final_event={"any": "json"}), AbortResult)
    assert_type(await jobs.claim_usage("s", generation="g"), list[UsageMetadata])
    assert_type(await jobs.resume_state("s"), ResumeState | None)
    assert_type(await jobs.get("s"), Job | None)
    assert_type(await jobs.list_jobs(user_id="u", status="running", tenant_id="t"), list[Job])
    assert_type(await jobs.active("u", tenant_id="t"), list[str])
    assert_type(await jobs.count_subscribers("s"), int)
    assert_type(await jobs.count_events("s", generation="g"), int)

    reading = jobs.subscribe("s", after=None, generation="g", wait=1.0, follow=True)
    assert_type(reading, AbstractAsyncContextManager[EventReader, None])
    async with reading as events:
        assert_type(events.job, Job)
        assert_type(events.cursor, str | None)
        assert_type(events.stored, int)
        assert_type(await anext(events), StreamEvent)
        async for event in events:
            assert_type(event, StreamEvent)
        assert_type([event.raw async for event in events], list[bytes])


async def left_early(jobs: JobManager) -> str:  # type: ignore[return]  # pyright: ignore[reportReturnType]
    """The block of ``start`` may be left early (an abort), so a ``return`` inside it is not the only way out."""
    async with jobs.start("s", user_id="u") as run:
        assert_type(run, JobRun)
        return run.generation


async def never_left_early(jobs: JobManager) -> StreamEvent:
    """The block of ``subscribe`` swallows nothing, so nothing is missing after it."""
    async with jobs.subscribe("s") as events:
        return await anext(events)


async def run_of(run: JobRun) -> None:
    assert_type(run.stream_id, str)
    assert_type(run.generation, str)
    assert_type(run.job, Job)
    assert_type(run.status, JobStatus)
    assert_type(run.aborted, bool)
    assert_type(await run.wait_aborted(), None)
    assert_type(await run.emit({"any": "json"}), None)
    assert_type(await run.flush(), None)
    assert_type(await run.record_usage({"input_tokens": 1}), None)
    assert_type(await run.record_usage(UsageMetadata()), None)
    assert_type(await run.claim_usage(), list[UsageMetadata])
    assert_type(await run.save_run_steps([{"id": "s1"}]), None)
    assert_type(await run.update(), None)
    assert_type(await run.update(sender="AI", metadata=None), None)
    assert_type(await run.complete(), None)
    assert_type(await run.complete({"final": True}), None)
    assert_type(await run.fail("text"), None)
    assert_type(await run.fail(ValueError("text")), None)


# -- errors -----------------------------------------------------------------------------------------------------


def errors(error: natsjobs.NatsJobsError) -> None:
    if isinstance(error, natsjobs.JobNotFoundError):
        assert_type(error.stream_id, str)
    if isinstance(error, natsjobs.JobRunningError):
        assert_type(error.job, Job)
    if isinstance(error, natsjobs.JobClosedError):
        assert_type(error.stream_id, str)
        assert_type(error.generation, str)
        assert_type(error.status, JobStatus | None)
        assert_type(error.end_reason, EndReason | None)
    if isinstance(error, natsjobs.GenerationReplacedError):
        assert_type(error.generation, str)
    if isinstance(error, natsjobs.EventTooLargeError):
        assert_type(error.size, int)
        assert_type(error.limit, int)
    if isinstance(error, natsjobs.InvalidIdError):
        assert_type(error.field, str)
    if isinstance(error, natsjobs.ConfigError):
        assert_type(error.field, str)
    if isinstance(error, natsjobs.SpendError):
        assert_type(error.failures, list[tuple[Any, BaseException]])
        assert_type(error.totals, dict[str, Any])
    if isinstance(error, natsjobs.UnavailableError):
        assert_type(error.outcome_unknown, bool)
    resume: list[type[natsjobs.ResumeError]] = [
        natsjobs.InvalidCursorError,
        natsjobs.HistoryLostError,
        natsjobs.GenerationReplacedError,
    ]
    values: list[type[ValueError]] = [
        natsjobs.InvalidCursorError,
        natsjobs.InvalidEventError,
        natsjobs.EventTooLargeError,
        natsjobs.InvalidIdError,
        natsjobs.ConfigError,
    ]
    others: list[type[natsjobs.NatsJobsError]] = [natsjobs.NotOpenError, natsjobs.UnsupportedServerError]
    assert_type(resume, list[type[natsjobs.ResumeError]])
    assert_type(values, list[type[ValueError]])
    assert_type(others, list[type[natsjobs.NatsJobsError]])


# -- usage, content, tests --------------------------------------------------------------------------------------


async def usage_and_content(usage: list[UsageMetadata]) -> None:
    async def spend(entry: UsageMetadata) -> None: ...

    def spend_now(entry: UsageMetadata) -> None: ...

    totals = await spend_collected_usage(usage, spend)
    assert_type(totals, dict[str, UsageTotals])
    assert_type(await spend_collected_usage(usage, spend_now), dict[str, UsageTotals])
    for total in totals.values():
        assert_type(total.calls, int)
        assert_type(total.input_tokens, int)
        assert_type(total.output_tokens, int)
        assert_type(total.cache_creation, int)
        assert_type(total.cache_read, int)

    assert_type(fold([{"event": "on_message_delta"}]), list[ContentPart])
    assert_type(fold([], compat="3.6"), list[ContentPart])
    folding = ContentFold(compat="3.1")
    assert_type(folding.add({"event": "on_run_step"}), None)
    assert_type(folding.parts, list[ContentPart])
    assert_type(folding.run_steps, list[RunStep])


def testing() -> None:
    with embedded.server(port=0, store_dir=None) as server:
        assert_type(server.url, str)


# -- HTTP -------------------------------------------------------------------------------------------------------


def serving(jobs: JobManager, event: StreamEvent) -> None:
    async def authorize(request: Request, stream_id: str | None, action: Action) -> str | None: ...

    def authorize_now(request: Request, stream_id: str | None, action: str) -> dict[str, str]:
        return {}

    async def identify(request: Request) -> str | None: ...

    async def bill(result: AbortResult) -> None: ...

    hooks: list[Authorize] = [authorize, authorize_now, owners(jobs, identify), owners(jobs, bearer({"token": "u"}))]
    assert_type(gateway(jobs, authorize=authorize), Gateway)
    assert_type(gateway(jobs, authorize=authorize_now), Gateway)
    assert_type(gateway(jobs, authorize=hooks[0], on_abort=bill), Gateway)
    app = gateway(jobs, authorize=this_machine(), config=GatewayConfig(heartbeat=5, origins=("https://a",)))
    assert_type(app.open_streams, int)
    assert_type(app.close(), None)
    assert_type(encode_sse(event), bytes)
    assert_type(encode_sse(event, raw=True), bytes)
