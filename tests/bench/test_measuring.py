"""The benchmark measures what it says, on real servers, and gives no figure for a side that loses something."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import soon

from natsjobs import embedded
from natsjobs.cli.bench import servers
from natsjobs.cli.bench.catalog import COLUMNS, WORKS
from natsjobs.cli.bench.command import Plan
from natsjobs.cli.bench.rows import ROWS
from natsjobs.cli.bench.servers import Process
from natsjobs.cli.bench.stage import (
    BARE,
    BARE_JETSTREAM,
    OURS,
    OURS_LINGER_0,
    OURS_R3_LINGER_0,
    OURS_UVLOOP,
    PEER,
    PEER_UVLOOP,
    Contender,
    Stage,
)

HERE = Path(__file__).parent
TINY = 0.004
STREAMS = [[{"type": "delta", "n": 9, "t": "its own"}] * 7, ["plain text"] * 5]
REDIS = pytest.mark.skipif(not servers.has_redis(), reason="no redis-server, redis or hiredis here")


class Shared(Stage):
    """A stage whose processes are used by one work after the other: starting them takes longer than tiny works."""

    kept: dict[str, list[Process]]

    async def processes(self, count: int, **settings: object) -> list[Process]:
        """Those that are there, with as many more as are missing."""
        mine = self.kept.setdefault(repr(settings), [])
        if len(mine) < count:
            mine += await super().processes(count - len(mine), **settings)
        return mine[:count]


async def measured(contender: Contender, names: list[str]) -> dict[str, dict[str, float]]:
    """The figures of some works, tiny."""
    with servers.started(contender.server) as server:
        stage = Shared(contender, server, TINY, STREAMS)
        stage.kept = {}
        try:
            return {name: await WORKS[name].measure(stage) for name in names}
        finally:
            await stage.close()


@pytest.mark.parametrize("contender", [OURS, pytest.param(PEER, marks=REDIS)], ids=lambda one: one.name)
async def test_every_work_yields_the_figures_that_its_rows_show(contender: Contender) -> None:
    """Finite, positive, and with a meaning; the work itself has checked that everything came, once and in order."""
    found = await measured(contender, list(WORKS))
    for name, figures in found.items():
        assert figures.keys() <= COLUMNS.keys(), name
        assert all(math.isfinite(value) for value in figures.values()), (name, figures)
    for row in ROWS.values():
        for source in filter(None, (row.ours, row.other)):
            assert source.column in found[source.work], row.name
            if source.column not in {"kB", "server"}:  # a few jobs fit into memory that is there
                assert found[source.work][source.column] > 0, row.name


@pytest.mark.parametrize(
    "contender",
    [BARE, BARE_JETSTREAM, OURS_R3_LINGER_0, OURS_UVLOOP, pytest.param(PEER_UVLOOP, marks=REDIS)],
    ids=lambda one: one.name,
)
async def test_the_others_do_the_same_work(contender: Contender) -> None:
    """Bare connections, a cluster, another event loop."""
    if contender.settings.get("uvloop") and not servers.has_uvloop():
        pytest.skip("no uvloop here")
    found = await measured(contender, ["burst-1", "paced-50"])
    assert found["burst-1"]["events/s"] > 0


@pytest.mark.parametrize(
    ("side", "work", "missing"),
    [
        ("Losing", "burst-1", "event 4 came in place of 3"),
        ("Losing", "join-500", "event 4 came in place of 3"),
        ("Swapping", "burst-1", "event 4 came in place of 3"),
        ("Doubling", "burst-1", "event 3 came in place of 4"),
        ("Forgetting", "burst-1", "3 of 80 events came, then none"),
    ],
)
async def test_a_side_that_breaks_its_promise_gets_no_figure(
    side: str, work: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told what was missing; the figures of the others are there all the same, and nobody else is blamed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))
    contender = Contender("a broken one", f"broken_sides:{side}", "nats", {"patience": 6.0})
    plan = Plan(TINY if work == "burst-1" else 0.02, 1, [], works={work: [contender, OURS]})
    await plan.carry_out()
    assert plan.failed.keys() == {(work, contender)}
    assert missing in plan.failed[work, contender]
    assert plan.measured.keys() == {(work, OURS)}


async def test_who_fails_in_a_later_round_has_no_figure_of_the_first_one_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is not asked a third time; what breaks in the benchmark itself is told by its name."""
    calls = iter([1.0, 2.0, None, 3.0, 4.0, 5.0])

    async def measure(stage: Stage) -> dict[str, float]:
        if (value := next(calls)) is None:
            raise LookupError("nothing is there")
        return {"p50": value}

    monkeypatch.setitem(WORKS, "first", replace(WORKS["first"], measure=measure))
    plan = Plan(1, 3, [], works={"first": [OURS, OURS_LINGER_0]})
    await plan.carry_out()
    assert plan.failed == {("first", OURS_LINGER_0): "LookupError: nothing is there"}
    assert plan.measured == {("first", OURS): [{"p50": value} for value in (1.0, 3.0, 4.0)]}
    assert "first 2/3 natsjobs, linger 0: FAILED: LookupError: nothing is there" in capsys.readouterr().err


async def test_a_process_ends_when_its_coordinator_is_gone(newest_server: str) -> None:
    """Killed in the middle of a work it leaves nobody behind, who would wait for its server."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "natsjobs.cli.bench.actor", "natsjobs.cli.bench.ours:Ours", newest_server, "{}"),
        stdin=pipe,
        stdout=pipe,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"do": "warm", "with": {}}\n')
    assert await soon(process.stdout.readline(), within=30)
    process.stdin.write(b'{"do": "stored", "with": {"still": 600}}\n')
    await process.stdin.drain()
    process.stdin.close()
    assert await soon(process.wait(), within=15) == 0


def bench(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command itself; ``path``: where it finds programs."""
    environment = {**os.environ, "NATS_SERVER_BIN": str(embedded.find_binary()), "COLUMNS": "400"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "natsjobs", "bench", *arguments],
        env=environment | ({} if path is None else {"PATH": path}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_redis_it_measures_natsjobs_alone_and_says_so(tmp_path: Path) -> None:
    """The other half is null in JSON, whose keys are those that are documented."""
    plot = tmp_path / "plot.svg"
    done = bench("first", "--rounds", "1", "--scale", "0.02", "--json", "--plot", str(plot), path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "natsjobs is measured alone" in done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"machine", "columns", "rows", "measured", "failed"}
    assert found["failed"] == []
    (row,) = found["rows"]
    assert row.keys() == {"name", "what", "ours", "other", "ratio", "reach", "reached"}
    assert row["ours"].keys() == {"work", "contender", "column", "median", "spread", "rounds"}
    assert (row["other"]["median"], row["ratio"], row["reached"]) == (None, None, None)
    assert row["ours"]["rounds"] == [found["measured"][0]["rounds"][0]["p50"]]
    assert plot.read_text().startswith("<svg")


@REDIS
def test_a_row_is_measured_with_what_it_is_compared_with_and_nothing_else() -> None:
    """Both sides, one round; the table names the row, and progress is told."""
    done = bench("first", "--rounds", "1", "--scale", "0.02", "--markdown")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("first")] == [
        "first 1/1 natsjobs",
        "first 1/1 peer",
    ]
    assert "about" in done.stderr
    assert f"| {ROWS['first'].what} | " in done.stdout
    assert f"redis-server {_version()}" in done.stdout


def _version() -> str:
    said = subprocess.run([str(shutil.which("redis-server")), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split("v=")[1].split()[0]


def test_who_stops_it_gets_the_table_of_what_was_measured(tmp_path: Path) -> None:
    """Ctrl-C in the middle: the rows that have figures are shown, the status is that of the signal."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "natsjobs", "bench", "first", "stored", "--rounds", "1", "--markdown"],
        env={**os.environ, "NATS_SERVER_BIN": str(embedded.find_binary()), "PATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        while not running.stderr.readline().startswith("first 1/1"):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT
    assert f"| {ROWS['first'].what} | " in said
    assert ROWS["stored"].what not in said


def test_the_help_explains_every_row_and_every_figure() -> None:
    """By the names that the command takes."""
    said = bench("--help").stdout
    for row in ROWS.values():
        assert re.search(rf"^ +{re.escape(row.name)} +{re.escape(row.what)} \[", said, re.MULTILINE), row.name
        assert row.group in said
    for name, column in COLUMNS.items():
        assert re.search(rf"^ +{re.escape(name)} +{re.escape(column.meaning[:40])}", said, re.MULTILINE), name


def test_a_wrong_name_lists_the_names() -> None:
    """Before anything is started."""
    done = bench("frist")
    assert done.returncode == 2
    assert "no row 'frist'" in done.stderr
    assert all(name in done.stderr for name in ("burst-1", "limit-pace"))


def test_transcripts_need_their_folder() -> None:
    """Asked for by name it is an error; a run of everything does without them."""
    done = bench("transcripts")
    assert done.returncode == 2
    assert "--transcripts" in done.stderr
