"""Which test shows which of the pitfalls that others fell into, by their numbers.

| number | what went wrong elsewhere |
|---|---|
| 1 | a reader that attaches at full speed misses or doubles events |
| 2 | a stream id created again under an attached reader, and under an old writer |
| 3 | a producer that was paused past its lease goes on writing |
| 4 | an abort right after NATS was restarted is not heard |
| 5 | a killed producer leaves viewers waiting and the job "running" |
| 6 | the last record is lost on the live path |
| 7 | resuming after the end, after expiry, with garbage, with an old cursor: all the same answer |
| 8 | a large log is replayed in one piece, and out of memory |
| 9 | NATS away for a while: events lost, doubled, reordered; the producer blocked |
| 10 | a late stop hits the next turn |
| 11 | namespaces see each other |
| 13 | delete and create in the same millisecond |
| 14 | a reconnect storm leaves things behind |
| 15 | calls hang when NATS cannot be reached |
| 16 | an abort that races the completion: two ends, or nobody knows which |
| 17 | aborting one job of a user stops the others |
| 18 | an unattended run fills the memory |
"""

from __future__ import annotations

TOTAL = 18

SHOWN_BY: dict[int, tuple[str, ...]] = {
    1: (
        "tests/integration/test_races.py::test_a_thousand_resumes_at_random_moments_miss_and_double_nothing",
        "tests/contract/test_reader.py::test_attaching_at_random_moments_at_full_speed",
    ),
    2: ("tests/faults/test_pitfalls.py::test_turns_that_replace_each_other_at_full_speed_never_mix",),
    3: ("tests/faults/test_owner_death.py::test_an_owner_that_was_stopped_past_its_lease_is_fenced_and_told",),
    4: ("tests/faults/test_hard_aborts.py::test_an_abort_from_another_replica_is_a_fact",),
    5: ("tests/faults/test_owner_death.py::test_a_killed_owner_is_known_everywhere_within_its_lease",),
    6: ("tests/contract/test_reader_manners.py::test_the_last_record_lost_on_the_live_path_is_found",),
    7: ("tests/contract/test_reader_answers.py::test_four_distinct_answers",),
    8: ("tests/faults/test_pitfalls.py::test_a_log_of_90_megabytes_is_replayed_in_bounded_memory",),
    9: ("tests/faults/test_outages.py::test_an_outage_stops_nobody_and_costs_nothing",),
    10: ("tests/contract/test_abort.py::test_a_late_abort_cannot_hit_the_next_generation",),
    11: ("tests/contract/test_lifecycle.py::test_two_namespaces_cannot_see_each_other",),
    13: ("tests/faults/test_pitfalls.py::test_a_delete_and_a_create_in_the_same_moment_leave_one_truth",),
    14: (
        "tests/faults/test_pitfalls.py::test_a_reconnect_storm_of_200_readers_leaves_nothing_behind",
        "tests/contract/test_reader_manners.py::test_a_storm_of_readers_leaves_nothing_behind",
    ),
    15: ("tests/faults/test_unreachable.py::test_every_call_returns_in_bounded_time_with_a_clear_error",),
    16: ("tests/integration/test_races.py::test_a_thousand_races_of_abort_and_completion_have_one_winner_each",),
    17: ("tests/contract/test_abort.py::test_aborting_one_job_leaves_the_user_s_others_alone",),
    18: ("tests/faults/test_endurance.py::test_memory_stays_flat_over_100_000_events_without_a_viewer",),
}

LEFT_OUT: dict[int, str] = {
    12: "publishes and wall time per token are figures of the benchmark, beside those of the peer",
}
