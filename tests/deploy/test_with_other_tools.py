"""What needs tools that are not to be had everywhere: the real ``nats`` command, and helm with the chart of NATS.

Skipped by name without them. The raw requests of the ``nats`` command are tested in any case (integration/test_wire).
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import DEPLOY, run, tool
from waiting import soon

import natsjobs
from natsjobs import embedded

GUIDE = (DEPLOY / "README.md").read_text()
BLOCK = re.search(r"as the user `operator`:\n\n```sh\n(.*?)```", GUIDE, re.DOTALL)
LINES = BLOCK[1].splitlines() if BLOCK else []
ENDLESS = ("nats sub ", "nats kv watch ")
TERMINAL = ("nats stream view ",)
"""It pages, and refuses to without a terminal."""
# What each line has to show, with a job "c1" that runs and has been watched.
SHOWS = {
    "nats stream ls": "natsjobs: event logs of namespace natsjobs",
    "nats stream info": "natsjobs.live.>",
    "nats stream subjects": "natsjobs.events.c1.",
    "nats stream get": "done",
    "nats kv ls": "job.c1",
    "nats kv get": '"status"',
    "nats kv history": "job.c1",
    "nats kv watch": "job.c1",
    "nats sub": "natsjobs.live.c1.",
    "nats req natsjobs.presence": "No responders",
    "nats req natsjobs.abort": "",
    "nats consumer ls": "",
}


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """A server with a job that has ended, and one that is about to emit."""
    with embedded.server() as running:
        async with natsjobs.connect(running.url) as jobs:
            async with jobs.start("c1", user_id="alice") as first:
                await first.emit({"text": "hello"})
            yield running.url


def test_the_guide_has_lines_and_every_one_is_known() -> None:
    """A line that is added is tried, too."""
    assert len(LINES) >= 12
    for line in LINES:
        assert line.startswith(TERMINAL) or any(line.startswith(known) for known in SHOWS), line


@pytest.mark.parametrize("line", LINES)
async def test_every_nats_line_of_the_guide_shows_what_it_is_for(server: str, line: str) -> None:
    """With the real command."""
    command = tool("nats")
    if line.startswith(TERMINAL):
        pytest.skip("it needs a terminal")
    argv = ["--server", server, *shlex.split(line)[1:]]
    wanted = next(shown for known, shown in SHOWS.items() if line.startswith(known))
    process = await asyncio.create_subprocess_exec(command, *argv, stdout=PIPE, stderr=STDOUT)
    assert process.stdout is not None
    said = bytearray()
    try:
        if line.startswith(ENDLESS):
            hearing = asyncio.ensure_future(_hear(wanted.encode(), process.stdout, said))
            async with natsjobs.connect(server) as jobs, jobs.start("c1", user_id="alice") as run, asyncio.timeout(30):
                while not hearing.done():  # nothing tells when it listens
                    await run.emit({"text": "again"})
                    await asyncio.wait({hearing}, timeout=0.1)
        else:
            said += await soon(process.stdout.read(), within=20)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert wanted in said.decode(), said.decode()


async def _hear(wanted: bytes, output: asyncio.StreamReader, said: bytearray) -> None:
    """Take what a command says, until it has said ``wanted`` or ends."""
    while wanted not in said and (more := await output.read(4096)):
        said += more


# -- helm -------------------------------------------------------------------------------------------------------


@pytest.fixture
def chart() -> Path:
    """A checkout of the official chart: ``NATS_CHART`` names its folder."""
    folder = os.environ.get("NATS_CHART")
    if not folder:
        pytest.skip("no chart given in NATS_CHART")
    return Path(folder)


def test_the_values_name_only_keys_of_the_chart(chart: Path) -> None:
    """Helm ignores what it does not know; a misspelt key would be silent. Below merge, patch and env all is ours."""
    known = yaml.safe_load((chart / "values.yaml").read_text())
    ours = yaml.safe_load((DEPLOY / "nats" / "helm-values.yaml").read_text())
    assert [key for key in _unknown(ours, known, "") if key] == []


def _unknown(ours: Any, known: Any, place: str) -> list[str]:
    if not isinstance(ours, dict) or place.rpartition(".")[2] in {"merge", "patch", "env", "topologySpreadConstraints"}:
        return []
    found: list[str] = []
    for key, value in ours.items():
        here = f"{place}.{key}"
        found += [here] if not isinstance(known, dict) or key not in known else _unknown(value, known[key], here)
    return found


def test_the_chart_renders_a_cluster_with_our_users(chart: Path) -> None:
    """Three nodes, their disks, TLS, the accounts file, the pings."""
    text = run(tool("helm"), "template", "nats", chart, "-f", DEPLOY / "nats" / "helm-values.yaml")
    config = next(one for one in yaml.safe_load_all(text) if one and one["metadata"]["name"] == "nats-config")
    written = config["data"]["nats.conf"]
    for part in ("include ../nats-accounts/accounts.conf;", '"ping_interval": "10s"', '"tls"', "nats-2.nats-headless"):
        assert part in written
    sets = [one for one in yaml.safe_load_all(text) if one and one["kind"] == "StatefulSet"]
    assert [one["spec"]["replicas"] for one in sets] == [3]
    mounts = sets[0]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "accounts", "mountPath": "/etc/nats-accounts", "readOnly": True} in mounts
