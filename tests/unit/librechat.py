"""LibreChat's events, and the parts they become, in a few characters each."""

from __future__ import annotations


def step(step_id, index, **more):
    """on_run_step of a message."""
    details = {"type": "message_creation", "message_creation": {"message_id": "m"}}
    return {"event": "on_run_step", "data": {"id": step_id, "index": index, "stepDetails": details, **more}}


def calls(step_id, index, *listed, **more):
    """on_run_step of tool calls given as (id, name, args)."""
    made = [{"id": i, "name": name, "args": args} for i, name, args in listed]
    return step(step_id, index, stepDetails={"type": "tool_calls", "tool_calls": made}, **more)


def delta(step_id, content, event="on_message_delta"):
    """A delta with this content: a list of parts or one part."""
    return {"event": event, "data": {"id": step_id, "delta": {"content": content}}}


def text(step_id, *pieces):
    """on_message_delta with text parts in a list."""
    return delta(step_id, [{"type": "text", "text": piece} for piece in pieces])


def think(step_id, piece):
    """on_reasoning_delta."""
    return delta(step_id, [{"type": "think", "think": piece}], "on_reasoning_delta")


def tool(step_id, args, name=None, call_id=None, index=None, **more):
    """on_run_step_delta of one call; what is None is left out."""
    call = {"args": args, "name": name, "id": call_id, "index": index}
    listed = [{key: value for key, value in call.items() if value is not None}]
    return {
        "event": "on_run_step_delta",
        "data": {"id": step_id, "delta": {"type": "tool_calls", "tool_calls": listed, **more}},
    }


def done(step_id, call_id, name, args, output, **more):
    """on_run_step_completed of a tool call."""
    call = {"id": call_id, "name": name, "args": args, "output": output, "progress": 1, **more}
    return {
        "event": "on_run_step_completed",
        "data": {"result": {"id": step_id, "index": 0, "type": "tool_call", "tool_call": call}},
    }


def agent(index, **more):
    """on_agent_update."""
    update = {"index": index, "runId": "r", "agentId": "a", **more}
    return {"event": "on_agent_update", "data": {"type": "agent_update", "agent_update": update}}


def steer(index, words, steer_id="st1"):
    """on_steer_applied."""
    part = {"type": "steer", "steer": words, "steerId": steer_id}
    return {"event": "on_steer_applied", "data": {"steerId": steer_id, "index": index, "part": part}}


def card(call_id, name, args, **more):
    """The part of a tool call."""
    return {"type": "tool_call", "tool_call": {"id": call_id, "name": name, "args": args, "type": "tool_call", **more}}


def said(*texts):
    """Text parts."""
    return [{"type": "text", "text": one} for one in texts]


def ended(call_id, name, args, output):
    """The part of a completed tool call."""
    return card(call_id, name, args, progress=1, output=output)
