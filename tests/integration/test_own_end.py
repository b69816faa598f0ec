"""What the end of a job asks of the server: each thing once, unless whoever wrote the end has died."""

from __future__ import annotations

import json

import pytest
from timeline_kit import Timelines, spying
from waiting import eventually, known

from natsjobs.engine import runs, wire


async def test_an_owner_that_ends_its_job_asks_for_nothing_twice(
    many: Timelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows its own end by the acknowledgement, and that the record says so: of neither it makes sure later."""
    monkeypatch.setattr(runs, "_REPAIR_AFTER", 0.2)
    owner, admin = await many.add(config=many.config(timing={"sweep": 3600.0, "look": 3600.0})), await many.admin()
    jobs = [await owner.store.create_job(stream_id, "alice") for stream_id in ("ended", "orphan")]
    ended, orphan = (many.subjects.end(job.stream_id, job.generation) for job in jobs)
    records = [many.subjects.record("job", job.stream_id) for job in jobs]

    async with spying(admin, "$JS.API.STREAM.MSG.GET.>") as asked:

        def times(subject: str) -> int:
            return sum(json.loads(msg.data).get("last_by_subj") == subject for msg in asked)

        await owner.store.end_job("ended", generation=jobs[0].generation, status="complete")
        monkeypatch.setattr(runs, "_REPAIR_AFTER", 0.5)  # what is repaired then comes later than this one's would
        log = many.subjects.log("orphan", jobs[1].generation)
        newest = await admin.jetstream().get_last_msg(many.subjects.events_stream, log)
        body = wire.end_body("done", 1, "w", previous=newest.seq or 0, reason=None, request=None, data=b"null")
        await admin.request(orphan, body)
        await eventually(lambda: times(records[1]) == 1, within=20.0)
        await known(admin)
        assert times(orphan) >= 1, "what somebody else has written is looked at"
        assert (times(ended), times(records[0])) == (0, 1)
