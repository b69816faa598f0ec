"""Jobs and events that several files of the suite make."""

from __future__ import annotations


async def start(replica, stream_id="s1", user_id="alice"):
    """A running job; its generation."""
    return (await replica.store.create_job(stream_id, user_id)).generation


async def write(replica, events, stream_id="s1", *, end=True):
    """A job with these events; ended with "end" unless told otherwise. Its generation."""
    job = await replica.store.create_job(stream_id, "alice")
    for event in events:
        await replica.transport.emit_chunk(stream_id, event, generation=job.generation)
    await replica.transport.flush(stream_id, generation=job.generation)
    if end:
        await replica.transport.emit_done(stream_id, "end", generation=job.generation)
    return job.generation


async def rest(events):
    """Everything a reader still gives."""
    return [event async for event in events]


async def fill(store, stream_id, *events):
    """Append events one after the other."""
    return [await store.append_chunk(stream_id, event) for event in events]


def step(step_id, index, **more):
    """LibreChat's on_run_step."""
    details = {"type": "message_creation", "message_creation": {"message_id": "m"}}
    return {"event": "on_run_step", "data": {"id": step_id, "index": index, "stepDetails": details, **more}}


def tool_step(step_id, index, *calls, **more):
    """on_run_step of tool calls given as (id, name, args)."""
    made = [{"id": call_id, "name": name, "args": args} for call_id, name, args in calls]
    return step(step_id, index, stepDetails={"type": "tool_calls", "tool_calls": made}, **more)


def text(step_id, *pieces):
    """on_message_delta."""
    content = [{"type": "text", "text": piece} for piece in pieces]
    return {"event": "on_message_delta", "data": {"id": step_id, "delta": {"content": content}}}


def think(step_id, piece):
    """on_reasoning_delta."""
    return {
        "event": "on_reasoning_delta",
        "data": {"id": step_id, "delta": {"content": {"type": "think", "think": piece}}},
    }


def args(step_id, piece, **more):
    """on_run_step_delta with tool arguments."""
    call = {"args": piece, **more}
    return {
        "event": "on_run_step_delta",
        "data": {"id": step_id, "delta": {"type": "tool_calls", "tool_calls": [call]}},
    }


def completed(step_id, index, call_id, name, arguments, output):
    """on_run_step_completed."""
    call = {"id": call_id, "name": name, "args": arguments, "output": output, "progress": 1}
    return {
        "event": "on_run_step_completed",
        "data": {"result": {"id": step_id, "index": index, "type": "tool_call", "tool_call": call}},
    }
