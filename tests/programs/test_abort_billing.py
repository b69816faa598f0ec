"""The stop button of ``abort_billing``: aborts against the run's own end, on two replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from abort_billing import Chat, Ledger, Messages, Step

import natsjobs

WORDS = [f"word{i} " for i in range(30)]
CALLS = 3
PER_CALL = 7


class Provider:
    """A model that makes three calls, and hangs at a step if it is told to."""

    def __init__(self, hang_at: int | None = None) -> None:
        self.hang_at = hang_at
        self.hangs = asyncio.Event()
        self.said = ""
        self.calls_begun = 0
        self.calls_recorded = 0

    async def __call__(self) -> AsyncIterator[Step]:
        step = 0
        for call in range(CALLS):
            for word in WORDS[call::CALLS]:
                if step == self.hang_at:
                    self.hangs.set()
                    await asyncio.Event().wait()  # only an abort helps
                self.said += word
                yield {"text": word}
                await asyncio.sleep(0)
                step += 1
            self.calls_begun += 1
            yield {"usage": {"output_tokens": PER_CALL, "model": "m"}}
            self.calls_recorded += 1


@pytest.mark.parametrize(("hang_at", "calls"), [(0, 0), (5, 0), (10, 1), (25, 2)])
async def test_a_stopped_answer_is_saved_and_billed_when_stop_returns(
    replicas: list[natsjobs.JobManager], hang_at: int, calls: int
) -> None:
    """Stop from another replica: partial text saved, the calls made so far billed once, the run left quietly."""
    ledger, messages, model = Ledger(), Messages(), Provider(hang_at)
    here, there = (Chat(jobs, ledger, messages) for jobs in replicas)
    running = asyncio.create_task(here.answer("c1", "alice", model))
    await model.hangs.wait()

    result = await there.stop("c1")

    assert (result.success, result.acknowledged) == (True, True)
    assert messages.saved["c1"] == (model.said, True)
    await running
    assert len(ledger.billed) == len(set(ledger.billed)) == calls
    assert ledger.tokens == calls * PER_CALL
    async with there.jobs.subscribe("c1") as events:
        seen = [event async for event in events]
    assert (seen[-1].type, seen[-1].data) == (natsjobs.EventType.ABORTED, {"stopped": True})
    assert "".join(e.data["data"]["delta"]["content"][0]["text"] for e in seen[1:-1]) == model.said


async def test_an_abort_that_races_the_end_never_bills_twice_and_never_forgets(
    replicas: list[natsjobs.JobManager],
) -> None:
    """Seventy races of stop against the run's own end: each entry billed exactly once, and one end for everybody."""
    for trial in range(70):
        ledger, messages, model, chat = Ledger(), Messages(), Provider(), f"race-{trial}"
        here, there = (Chat(jobs, ledger, messages) for jobs in replicas)
        running = asyncio.create_task(here.answer(chat, "alice", model))
        async with there.jobs.subscribe(chat, wait=20) as events:
            while (event := await anext(events)).index < trial // 2 and not event.is_terminal:
                pass
            result = await there.stop(chat)
            end = event if event.is_terminal else [event async for event in events][-1]
        await running

        after = await there.jobs.get(chat)
        assert after is not None
        if result.success:
            assert (after.status, end.type) == (natsjobs.JobStatus.ABORTED, natsjobs.EventType.ABORTED)
            assert messages.saved[chat] == (result.text, True)
        else:
            assert (result.reason, result.collected_usage) == ("ended", [])
            assert (after.status, end.type) == (natsjobs.JobStatus.COMPLETE, natsjobs.EventType.DONE)
            assert messages.saved[chat] == ("".join(w for c in range(CALLS) for w in WORDS[c::CALLS]), False)
        assert len(ledger.billed) == len(set(ledger.billed))
        assert model.calls_recorded <= len(ledger.billed) <= model.calls_begun
        assert await there.jobs.claim_usage(chat, generation=after.generation) == []


async def test_two_stops_at_once_bill_once(replicas: list[natsjobs.JobManager]) -> None:
    """Both tabs press stop, on two replicas: every entry of usage is billed by one of them."""
    ledger, messages, model = Ledger(), Messages(), Provider(25)
    here, there = (Chat(jobs, ledger, messages) for jobs in replicas)
    running = asyncio.create_task(here.answer("c1", "alice", model))
    await model.hangs.wait()

    results = await asyncio.gather(here.stop("c1"), there.stop("c1"))

    assert any(result.success for result in results)
    await running
    assert len(ledger.billed) == len(set(ledger.billed)) == 2
    assert messages.saved["c1"] == (model.said, True)
